"""Pixel values as visuals of a prompt: in host memory like any picture, in device memory read where they are."""

from __future__ import annotations

import ctypes
import math
import threading

import numpy as np
import pytest
import torch
from foreign_arrays import CudaArray
from recording import RecordingEngine, encoded

import flamingo_rt
from flamingo_rt.contract import RESAMPLER, VISION_ENCODER
from flamingo_rt.device_arrays import device_array, is_device_array
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.processing.preprocess import visual_pixels
from flamingo_rt.processing.visuals import Image, PixelValues, Video
from flamingo_rt.runtime.model import Model
from flamingo_rt.runtime.visual_encoder import MediaCache, VisualEncoder


class OnDevice:
    """An array in "device" memory, and the threads that asked where it lies or copied it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.threads = array, set()

    @property
    def __cuda_array_interface__(self) -> dict:
        self.threads.add(threading.get_ident())
        return {**CudaArray(self.array).__cuda_array_interface__, "stream": None}

    def cpu(self) -> np.ndarray:
        self.threads.add(threading.get_ident())
        return self.array


class GpuBackend(RecordingEngine):
    """Reads pixel values at their address; one that is odd is refused, as engines refuse what is not aligned."""

    def __init__(self, backend) -> None:
        super().__init__(backend)
        self.reads_device_arrays = True
        self.addresses: list[int] = []

    def bind(self, graph, inputs, outputs, constant=()):
        def resolved(value):
            if not is_device_array(value):
                return value
            located = device_array(value, stream=7)
            if located.address % 4:
                raise ValueError(f"a device array at {located.address:#x}")
            self.addresses.append(located.address)
            buffer = (ctypes.c_float * math.prod(located.shape)).from_address(located.address)
            return np.ctypeslib.as_array(buffer).reshape(located.shape)

        return super().bind(graph, {name: resolved(value) for name, value in inputs.items()}, outputs, constant)


@pytest.fixture
def backend(flamingo):
    return GpuBackend(TorchBackend(flamingo))


@pytest.fixture
def encode(backend, config):
    """Encodes visuals, with a cache."""
    encoder = VisualEncoder(backend, MediaCache(2**20))
    return lambda visuals: encoded(encoder, visuals, config)


@pytest.fixture
def pixels(pictures, config):
    """Pixel values of each picture, [3, H, W]."""
    return [visual_pixels(picture, config)[0] for picture in pictures]


def frames(backend):
    return [bound.inputs["pixel_values"].shape[0] for bound in backend.of(VISION_ENCODER)]


def assert_same_media(found, expected, atol=2e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        for name in other:
            np.testing.assert_allclose(one[name], other[name], rtol=0, atol=atol)  # sums in another order


def test_pixel_values_give_the_answer_of_their_picture(model, pictures, pixels, clip, config):
    clip_pixels = PixelValues(torch.from_numpy(visual_pixels(clip, config)))
    for ours, theirs in ((PixelValues(pixels[0]), pictures[0]), (clip_pixels, clip)):
        found, expected = (
            model.generate([visual, "Output:"], max_new_tokens=4).result() for visual in (ours, theirs)
        )
        assert (found.tokens, found.logprobs) == (expected.tokens, expected.logprobs)
    (best, *_) = model.score(model.question_prompt(PixelValues(pixels[0]), "Is it red?"), ["yes", "no"])
    (other, *_) = model.score(model.question_prompt(pictures[0], "Is it red?"), ["yes", "no"])
    assert best.logprob == other.logprob


def test_pixel_values_in_host_memory_are_batched_and_cached_like_their_pictures(encode, backend, pictures, pixels):
    given = [PixelValues(pixels[0]), pictures[1], PixelValues(torch.from_numpy(pixels[1].copy())), pictures[0]]
    media = encode(given)
    assert frames(backend) == [2]
    assert_same_media([media[0], media[1]], [media[3], media[2]], atol=0)
    encode([PixelValues(pixels[1].copy())])
    assert frames(backend) == [2]


def test_pixel_values_in_device_memory_are_read_there_one_by_one(encode, backend, config, pictures, pixels):
    clip = np.stack([*pixels, pixels[0][::-1].copy()])  # 7 frames
    placed = [OnDevice(pixels[0]), OnDevice(clip)]
    visuals = [pictures[1], PixelValues(placed[0]), pictures[2], PixelValues(placed[1]), pictures[3]]
    expected = encoded(
        VisualEncoder(backend, MediaCache(0)),
        [pictures[1], PixelValues(pixels[0]), pictures[2], PixelValues(clip), pictures[3]], config,
    )
    backend.bound.clear()
    assert_same_media(encode(visuals), expected)
    assert frames(backend) == [1, 4, 3, 3]  # the picture; the clip; those in host memory together
    frame = pixels[0].nbytes
    assert backend.addresses == [pixels[0].ctypes.data, clip.ctypes.data, clip.ctypes.data + 4 * frame]
    assert sorted(bound.inputs["features"].shape[:2] for bound in backend.of(RESAMPLER)) == [(1, 7), (4, 1)]


def test_pixel_values_in_device_memory_are_encoded_once_a_call_and_not_kept(backend, config, tokenizer, pixels):
    model = Model(backend, config, tokenizer)
    held = pixels[0].copy()
    visual = PixelValues(OnDevice(held))
    same_array = PixelValues(visual.array)
    prompt = [visual, "a", visual, "b", same_array, "c"]
    first = model.generate(prompt, max_new_tokens=3)
    assert backend.calls[VISION_ENCODER] == 1
    held[...] = pixels[1]  # the next frame of a camera, written where the last one was
    second = model.generate(prompt, max_new_tokens=3).result()
    assert backend.calls[VISION_ENCODER] == 2
    for result, shown in ((first.result(), pixels[0]), (second, pixels[1])):
        expected = model.generate([PixelValues(shown), "a", PixelValues(shown), "b", PixelValues(shown), "c"],
                                  max_new_tokens=3).result()
        assert (result.tokens, result.logprobs) == (expected.tokens, expected.logprobs)


def test_pixel_values_in_device_memory_are_read_in_the_calling_thread(encode, pictures, pixels):
    placed = [OnDevice(pixels[0]), OnDevice(pictures[1].source), OnDevice(pictures[2].source)]
    encode(
        [pictures[3], PixelValues(placed[0]), Image(placed[1]), pictures[4], Video([placed[2]], frames=1), pictures[5]]
    )
    assert [array.threads for array in placed] == [{threading.get_ident()}] * 3


def test_pixel_values_that_the_engine_cannot_read_in_place_are_reported_with_a_remedy(encode, pixels):
    memory = np.zeros(pixels[0].nbytes + 4, dtype=np.uint8)
    odd = memory[1 : 1 + pixels[0].nbytes].view(np.float32).reshape(pixels[0].shape)
    with pytest.raises(DataError, match=r"<OnDevice in device memory>: a device array at 0x\w+; copy .*clone\(\)"):
        encode([PixelValues(OnDevice(odd))])


def test_a_backend_in_host_memory_refuses_pixel_values_on_a_device(torch_model, ort_model, pixels, tmp_path):
    for model in (torch_model, ort_model):
        with pytest.raises(UsageError, match=rf"{model.backend.name} backend.*array.cpu\(\)"):
            model.generate([Image(tmp_path / "no.png"), PixelValues(OnDevice(pixels[0])), "a"])


def test_a_prompt_of_wrong_pixel_values_is_refused(torch_model, pixels):
    with pytest.raises(DataError, match=r"float32 \[3, 32, 32\]"):
        torch_model.generate([PixelValues(pixels[0][:, :16]), "a"])
    with pytest.raises(UsageError, match=r"str, Image, Video and PixelValues, not an array, .* or PixelValues\(...\)"):
        torch_model.generate([pixels[0], "a"])
    assert flamingo_rt.PixelValues is PixelValues
