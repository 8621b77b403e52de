"""`PixelValues` in device memory, from the prompt to the tokens, on the stand-ins: read where they are, no upload."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from fake_gpu import FakeGpu
from foreign_arrays import CudaArray, DlpackArray, on_gpu
from runners import LOWERINGS, assert_same

from flamingo_rt import Image, PixelValues
from flamingo_rt.contract import VISION_ENCODER, graph_specs
from flamingo_rt.device_arrays import DeviceFrames
from flamingo_rt.errors import DataError
from flamingo_rt.processing.preprocess import visual_pixels

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


class Frame(CudaArray):
    """An array whose memory goes with it, as those of CuPy and torch do; the stand-in refuses that while it is used."""

    def __init__(self, gpu: FakeGpu, array: np.ndarray) -> None:
        self._gpu = gpu
        super().__init__(on_gpu(gpu, array))

    def __del__(self) -> None:
        self._gpu.free(self.__cuda_array_interface__["data"][0])


@pytest.fixture
def uploads(monkeypatch) -> list[tuple]:
    """The shapes of what is copied to the device."""
    from flamingo_rt.engines.gpu.cuda import Cuda

    shapes, upload = [], Cuda.upload
    monkeypatch.setattr(
        Cuda, "upload", lambda self, address, array: (shapes.append(array.shape), upload(self, address, array))[1]
    )
    return shapes


def host_pixels(model, visuals) -> np.ndarray:
    """[F, 3, H, W]: each picture a frame."""
    return np.concatenate([visual_pixels(visual, model.config) for visual in visuals])


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("kind", [CudaArray, DlpackArray])
def test_tokens_are_those_of_the_pictures_and_no_pixel_is_uploaded(
    runner, gpu, pictures, text, uploads, lowering, kind
) -> None:
    model = runner.model(lowering)
    pixels = host_pixels(model, pictures[:2])
    given = [PixelValues(kind(on_gpu(gpu, frame))) for frame in pixels]
    expected = model.generate([pictures[0], "a", pictures[1], text], max_new_tokens=8).result()
    assert any(shape[1:] == pixels.shape[1:] for shape in uploads)
    uploads.clear()
    found = model.generate([given[0], "a", given[1], text], max_new_tokens=8).result()
    assert_same([found], [expected])
    assert not any(shape[-3:] == pixels.shape[-3:] for shape in uploads)
    if kind is DlpackArray:
        assert all(visual.array.streams == [-1, 7] for visual in given), "looked at, then waited for by our stream"


def test_a_clip_on_the_device_is_read_a_few_frames_at_a_time(runner, gpu, ort, uploads) -> None:
    frames = np.random.default_rng(0).standard_normal((4 + 3, 3, 32, 32), dtype=np.float32)
    backend, spec = runner.backend("tensorrt"), graph_specs(ort.config)[VISION_ENCODER].output("features")
    found, expected = (np.empty(spec.resolve({"N": len(frames)}), np.float32) for _ in range(2))
    placed = DeviceFrames(CudaArray(on_gpu(gpu, frames)), frames.shape)
    for run in (slice(0, 4), slice(4, 8)):
        backend.bind(VISION_ENCODER, {"pixel_values": placed[run]}, {"features": found[run]})()
        ort.backend.bind(VISION_ENCODER, {"pixel_values": frames[run]}, {"features": expected[run]})()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert uploads == []


def test_pictures_of_both_kinds_stand_in_one_prompt_and_batch(runner, gpu, pictures, text) -> None:
    model = runner.model("tensorrt")
    pixels = host_pixels(model, pictures)
    on_device = PixelValues(CudaArray(on_gpu(gpu, pixels[1])))
    clip = PixelValues(DlpackArray(on_gpu(gpu, pixels[2:4])))
    expected = model.generate_batch(
        [[pictures[0], pictures[1], text], [pictures[1], PixelValues(pixels[2:4]), text]], max_new_tokens=6
    )
    found = model.generate_batch([[pictures[0], on_device, text], [on_device, clip, text]], max_new_tokens=6)
    assert_same(found, expected)


def test_an_array_lives_until_it_has_been_read_and_no_longer(runner, gpu, pictures, text) -> None:
    model = runner.model("tensorrt")
    frame = Frame(gpu, host_pixels(model, pictures[:1]))
    gone = weakref.ref(frame)
    expected = model.generate([pictures[0], text], max_new_tokens=4).result()
    generation = model.generate([PixelValues(frame), text], max_new_tokens=4)
    del frame
    gc.collect()
    assert gone() is None, "nothing looks at a picture again once it is encoded"
    assert_same([generation.result()], [expected])


def test_a_run_keeps_the_array_that_it_reads(runner, gpu, ort) -> None:
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    features = np.empty(graph_specs(ort.config)[VISION_ENCODER].output("features").resolve({"N": 2}), np.float32)
    frame = Frame(gpu, pixels)
    gone = weakref.ref(frame)
    run = runner.backend("tensorrt").bind(
        VISION_ENCODER, {"pixel_values": DeviceFrames(frame, pixels.shape)}, {"features": features}
    )
    del frame
    gc.collect()
    for _ in range(2):
        run()  # the stand-in refuses memory that was freed
    assert gone() is not None
    del run
    gc.collect()
    assert gone() is None


def test_a_frame_that_is_not_aligned_is_refused_with_a_remedy(runner, gpu, pictures) -> None:
    model = runner.model("tensorrt")
    (pixels,) = host_pixels(model, pictures[:1])
    memory = on_gpu(gpu, np.concatenate([np.zeros(1, np.float32), pixels.reshape(-1)]))
    with pytest.raises(DataError, match=r"multiple of 256 bytes; copy it to memory of its own"):
        model.generate([PixelValues(CudaArray(memory[1:].reshape(pixels.shape))), "a"])


def test_a_picture_in_device_memory_is_copied_and_preprocessed_on_the_host(runner, gpu, pictures, text) -> None:
    class Tensor(CudaArray):
        def cpu(self):
            return self._array.copy()

    model = runner.model("tensorrt")
    frame = Tensor(on_gpu(gpu, pictures[0].source))
    expected = model.generate([pictures[0], text], max_new_tokens=4).result()
    assert_same([model.generate([Image(frame), text], max_new_tokens=4).result()], [expected])
