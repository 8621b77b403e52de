"""Arrays of other libraries in device memory, as a runner's inputs: used where they are, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from foreign_arrays import CudaArray, DlpackArray, on_gpu

from flamingo_rt.contract import VISION_ENCODER, graph_specs

# What a stand-in finds when Python frees its memory is a warning otherwise.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("kind", [CudaArray, DlpackArray])
def test_pixels_in_device_memory_are_used_where_they_are(runner, gpu, ort, kind) -> None:
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    spec = graph_specs(ort.config)[VISION_ENCODER].output("features")
    features = [np.empty(spec.resolve({"N": 2}), np.float32) for _ in range(2)]
    array, backend = kind(on_gpu(gpu, pixels)), runner.backend("tensorrt")
    backend.bind(VISION_ENCODER, {"pixel_values": array}, {"features": features[0]})()
    ort.backend.bind(VISION_ENCODER, {"pixel_values": pixels}, {"features": features[1]})()
    np.testing.assert_allclose(features[0], features[1], rtol=0, atol=1e-4)
    if kind is CudaArray:
        assert gpu.called("wait for") == [("wait for", 2)]
    else:
        assert array.streams == [7], "the producer must know which stream waits"


PIXELS = np.zeros((2, 3, 32, 32), dtype=np.float32)


@pytest.mark.parametrize("make", [
    lambda array: CudaArray(array, strides=(12288, 4, 384, 12)), lambda array: CudaArray(array, typestr="<f2"),
    lambda array: CudaArray(array, mask=object()), lambda array: DlpackArray(array.astype(np.float64)),
    lambda array: DlpackArray(array.transpose(0, 1, 3, 2)), lambda array: DlpackArray(array.astype(np.float16)),
], ids=["strides", "half", "masked", "dlpack double", "dlpack strides", "dlpack half"])
def test_device_arrays_that_cannot_be_read_in_place_are_refused(runner, gpu, ort, make) -> None:
    features = np.empty(graph_specs(ort.config)[VISION_ENCODER].output("features").resolve({"N": 2}), np.float32)
    backend = runner.backend("tensorrt")
    with pytest.raises(ValueError, match="device array"):
        backend.bind(VISION_ENCODER, {"pixel_values": make(on_gpu(gpu, PIXELS))}, {"features": features})
