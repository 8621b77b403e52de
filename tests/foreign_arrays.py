"""Stand-ins for arrays of other libraries: in device memory that is the host's."""

from __future__ import annotations

import numpy as np


def on_gpu(gpu, array: np.ndarray) -> np.ndarray:
    """A copy of the array in the memory of a `FakeGpu`."""
    address = gpu.allocate(array.nbytes)
    placed = gpu.bytes_at(address, array.nbytes).view(array.dtype).reshape(array.shape)
    placed[...] = array
    return placed


class CudaArray:
    """A stand-in for arrays of numba, PyCUDA and cameras, at the address of a numpy array."""

    def __init__(self, array: np.ndarray, **changes) -> None:
        self._array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (array.ctypes.data, False), "version": 3,
            "strides": array.strides, "stream": 2, **changes,
        }


class DlpackArray:
    """A stand-in for torch's arrays, by DLPack, on a device of a type (2 is CUDA) and number."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (2, 0)) -> None:
        self._array, self._device, self.streams = array, device, []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, stream: int | None = None, **options):
        self.streams.append(stream)
        return self._array.__dlpack__()


class CopyingArray(CudaArray):
    """One with a method that copies it to the host, which counts its calls."""

    def __init__(self, array: np.ndarray, name: str) -> None:
        super().__init__(array)
        self.copies = 0
        setattr(self, name, self._copy)

    def _copy(self) -> np.ndarray:
        self.copies += 1
        return self._array.copy()


class CopyingClip(CudaArray):
    """uint8 [T, H, W, 3] in device memory: indexing gives frames."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__(array)
        self.shape, self.frames = array.shape, [CopyingArray(frame, "get") for frame in array]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> CopyingArray:
        return self.frames[index]
