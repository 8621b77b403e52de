"""Arrays of other libraries in device memory, as a runner's inputs: used where they are, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from fake_gpu import FakeGpu

from flamingo_rt.contract import (
    VISION_ENCODER,
    graph_specs,
)

# What a stand-in finds when Python frees its memory is a warning otherwise.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


class CudaArray:
    """What CuPy, numba and PyCUDA have: an array in the stand-in's memory."""

    def __init__(self, gpu: FakeGpu, array: np.ndarray, **changes) -> None:
        self._gpu = gpu
        self.address = gpu.allocate(array.nbytes)
        gpu.bytes_at(self.address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (self.address, False), "version": 3,
            "strides": None, "stream": 2, **changes,
        }


class DlpackArray:
    """What torch has: the same memory through DLPack, which is told the stream that reads it."""

    def __init__(self, gpu: FakeGpu, array: np.ndarray) -> None:
        count = array.nbytes
        held = gpu.bytes_at(gpu.allocate(count), count).view(array.dtype).reshape(array.shape)
        held[:] = array
        self._array, self.stream = held if array.flags.c_contiguous else held.transpose(0, 1, 3, 2), None

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, stream: int):
        self.stream = stream
        return self._array.__dlpack__()


@pytest.mark.parametrize("kind", [CudaArray, DlpackArray])
def test_pixels_in_device_memory_are_used_where_they_are(runner, gpu, ort, kind) -> None:
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    spec = graph_specs(ort.config)[VISION_ENCODER].output("features")
    features = [np.empty(spec.resolve({"N": 2}), np.float32) for _ in range(2)]
    array, engine = kind(gpu, pixels), runner.engine("tensorrt")
    engine.bind(VISION_ENCODER, {"pixel_values": array}, {"features": features[0]})()
    ort.engine.bind(VISION_ENCODER, {"pixel_values": pixels}, {"features": features[1]})()
    np.testing.assert_allclose(features[0], features[1], rtol=0, atol=1e-4)
    if kind is CudaArray:
        assert gpu.called("wait for") == [("wait for", 2)]
    else:
        assert array.stream == 7, "the producer must know which stream waits"


PIXELS = np.zeros((2, 3, 32, 32), dtype=np.float32)


@pytest.mark.parametrize("make", [
    lambda gpu: CudaArray(gpu, PIXELS, strides=(12288, 4, 384, 12)), lambda gpu: CudaArray(gpu, PIXELS, typestr="<f2"),
    lambda gpu: CudaArray(gpu, PIXELS, mask=object()), lambda gpu: DlpackArray(gpu, PIXELS.astype(np.float64)),
    lambda gpu: DlpackArray(gpu, PIXELS.transpose(0, 1, 3, 2)), lambda gpu: DlpackArray(gpu, PIXELS.astype(np.float16)),
], ids=["strides", "half", "masked", "dlpack double", "dlpack strides", "dlpack half"])
def test_device_arrays_that_cannot_be_read_in_place_are_refused(runner, gpu, ort, make) -> None:
    features = np.empty(graph_specs(ort.config)[VISION_ENCODER].output("features").resolve({"N": 2}), np.float32)
    engine = runner.engine("tensorrt")
    with pytest.raises(ValueError, match="device array"):
        engine.bind(VISION_ENCODER, {"pixel_values": make(gpu)}, {"features": features})
