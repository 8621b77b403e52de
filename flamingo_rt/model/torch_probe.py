"""A device's memory bandwidth and rate of matrix products by PyTorch alone: what ``flamingo-rt bench`` compares the
torch backend on a GPU with."""

from __future__ import annotations

import torch

from flamingo_rt.model.torch_device import Device

COPY_BYTES = 256 << 20  # far more than a GPU's cache holds
SIZE = 4096  # rows and columns of the matrices: enough work for the largest GPUs
REPEATS = 8  # copies or products in one measurement
ROUNDS = 3  # measurements, of which the fastest counts


class TorchProbe:
    """Measures a device; see `flamingo_rt.bench.rates.Measured`."""

    def __init__(
        self, device: Device, dtype: torch.dtype, copy_bytes: int | None = None, size: int | None = None
    ) -> None:
        """``dtype`` is the type of the products; by default `COPY_BYTES` are copied, and matrices of `SIZE` multiplied.
        """
        self._device, self._dtype = device, dtype
        self._bytes, self._size = copy_bytes or COPY_BYTES, size or SIZE

    def __enter__(self) -> TorchProbe:
        return self

    def __exit__(self, *exception: object) -> None:
        """Do nothing: memory is taken for each measurement."""

    def bandwidth(self) -> tuple[float, str]:
        """Bytes read and written per second, and how they were measured. Raises `DataError` when there is too little
        memory."""
        with self._device.running("measuring its memory"):
            target, source = (self._device.zeros((self._bytes,), torch.uint8) for _ in range(2))

            def copies() -> None:
                for _ in range(REPEATS):
                    target.copy_(source)

            seconds = min(self._device.seconds(copies) for _ in range(ROUNDS))
        how = f"copies of {self._bytes / 1e6:.0f} MB within {self._device.title}, read and written"
        return 2 * self._bytes * REPEATS / seconds, how

    def products(self) -> tuple[float, str]:
        """FLOPs per second, and what computed them."""
        with self._device.running("measuring its matrix products"):
            # Random numbers: zeros would take less power, and be faster.
            left, right = (
                torch.randn(self._size, self._size, device=self._device.place).to(self._dtype) for _ in range(2)
            )

            def products() -> None:
                for _ in range(REPEATS):
                    torch.matmul(left, right)

            seconds = min(self._device.seconds(products) for _ in range(ROUNDS + 1))  # the first one prepares kernels
        kind = str(self._dtype).removeprefix("torch.")
        return 2 * self._size**3 * REPEATS / seconds, f"matmul of PyTorch {torch.__version__}, {self._size}³, {kind}"
