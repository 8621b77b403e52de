"""`PixelValues`: what is taken as it is, put in order, left on the device or refused; arrays of other libraries as
pictures."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch
from foreign_arrays import CopyingArray, CopyingClip, CudaArray, DlpackArray

from flamingo_rt.device_arrays import DeviceFrames, device_array, is_device_array
from flamingo_rt.errors import DataError
from flamingo_rt.presets import preset
from flamingo_rt.processing.preprocess import decode_visual, lies_on_device, visual_pixels
from flamingo_rt.processing.visuals import Image, PixelValues, Video

SIZE = 8
CONFIG = preset("tiny")
CONFIG = replace(CONFIG, vision=replace(CONFIG.vision, image_size=SIZE))
PICTURE = np.random.default_rng(0).standard_normal((3, SIZE, SIZE), dtype=np.float32)
CLIP = np.random.default_rng(1).standard_normal((5, 3, SIZE, SIZE), dtype=np.float32)
FRAME = np.random.default_rng(2).integers(0, 256, (20, 12, 3), dtype=np.uint8)
KINDS = {
    "numpy": lambda array: array, "torch": torch.from_numpy, "dlpack": lambda array: DlpackArray(array, (1, 0)),
}


def pixels(array):
    return decode_visual(PixelValues(array), CONFIG).pixels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [PICTURE, CLIP, CLIP[:1]], ids=["picture", "clip", "clip of one"])
def test_pixel_values_in_host_memory_are_taken_as_they_are(kind, values) -> None:
    given = KINDS[kind](values)
    found = pixels(given)
    np.testing.assert_array_equal(found, values.reshape(-1, 3, SIZE, SIZE))
    assert np.shares_memory(found, values)
    assert not lies_on_device(PixelValues(given))


def test_an_array_that_is_turned_is_put_in_order() -> None:
    turned = torch.from_numpy(PICTURE).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    found = pixels(turned)
    assert not turned.is_contiguous()
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found[0], PICTURE)


def text_or_type(value) -> str:
    """The part of a test's name that a parameter makes: the same in every process, as an address is not."""
    return value if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize(("array", "message"), [
    (PICTURE.astype(np.float64), r"<array float64 \[3, 8, 8\]> is float64.*are float32 \[3, 8, 8\]"),
    (FRAME, "is uint8.*give an Image"),
    (PICTURE[:, :4], r"\[3, 4, 8\]"),
    (PICTURE.transpose(1, 2, 0), r"\[8, 8, 3\]"),
    (PICTURE[0], r"\[8, 8\]"),
    (CLIP[None], r"\[1, 5, 3, 8, 8\]"),
    (CLIP[:0], r"\[0, 3, 8, 8\]"),
    (np.broadcast_to(PICTURE, (1025, 3, SIZE, SIZE)), "a clip of up to 1024 frames"),
    (np.where(PICTURE > 1, np.float32("nan"), PICTURE), r"holds \d+ values that are NaN"),
    (np.full_like(PICTURE, np.inf), "holds 192 values that are NaN or infinite"),
    (torch.from_numpy(PICTURE).bfloat16(), r"<Tensor torch.bfloat16 \[3, 8, 8\]> cannot be read: .*numpy"),
    (torch.from_numpy(PICTURE).requires_grad_(), r"cannot be read: .*detach\(\)"),
    ("a.png", "a.png is not an array; .*Image and Video"),
], ids=text_or_type)
def test_arrays_that_are_no_pixel_values_are_refused(array, message) -> None:
    with pytest.raises(DataError, match=message):
        pixels(array)


@pytest.mark.parametrize("kind", [CudaArray, DlpackArray])
@pytest.mark.parametrize("values", [PICTURE, CLIP], ids=["picture", "clip"])
def test_pixel_values_in_device_memory_stay_there(kind, values) -> None:
    given = kind(values)
    found = pixels(given)
    assert lies_on_device(PixelValues(given))
    assert is_device_array(found)
    assert isinstance(found, DeviceFrames)
    assert found.array is given
    assert found.shape == values.reshape(-1, 3, SIZE, SIZE).shape


@pytest.mark.parametrize("kind", [CudaArray, DlpackArray])
def test_slices_of_frames_are_places_in_the_same_memory(kind) -> None:
    given = kind(CLIP)
    frames = pixels(given)
    for part, expected in ((frames[0:4], CLIP[0:4]), (frames[4:8], CLIP[4:8]), (frames[1:4][1:], CLIP[2:4])):
        located = device_array(part, 7)
        assert (len(part), located.shape, located.dtype) == (len(expected), expected.shape, np.float32)
        assert located.address == expected.ctypes.data
    if kind is DlpackArray:
        assert given.streams == [-1, 7, 7, 7], "only who reads it has a stream that the producer waits for"


@pytest.mark.parametrize(("array", "message"), [
    (CudaArray(PICTURE.transpose(0, 2, 1)), r"not C-contiguous.*contiguous\(\)"),
    (DlpackArray(PICTURE.transpose(0, 2, 1)), "not C-contiguous"),
    (CudaArray(PICTURE.astype(np.float16)), "is float16"), (CudaArray(FRAME), "is uint8"),
    (DlpackArray(FRAME), "cannot be read: .* 8 bits"), (CudaArray(PICTURE[:2]), r"\[2, 8, 8\]"),
    (CudaArray(PICTURE, mask=object()), "mask"),
], ids=text_or_type)
def test_pixel_values_in_device_memory_that_cannot_be_read_there_are_refused(array, message) -> None:
    with pytest.raises(DataError, match=f"<(Cuda|Dlpack)Array in device memory>.*{message}"):
        pixels(array)


def test_an_array_on_another_gpu_is_refused() -> None:
    class OnAnother(DlpackArray):
        def __dlpack__(self, **options):
            capsule = super().__dlpack__()
            pointer = ctypes.pythonapi.PyCapsule_GetPointer
            pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
            ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 12).value = 1  # DLTensor.device.device_id
            return capsule

    with pytest.raises(DataError, match="on GPU 1 cannot be read"):
        pixels(OnAnother(PICTURE))


# Pictures and clips


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frame", [FRAME, FRAME[..., 0].copy(), FRAME[:, ::2]], ids=["colour", "grey", "strided"])
def test_arrays_of_other_libraries_are_pictures(kind, frame) -> None:
    found = visual_pixels(Image(KINDS[kind](frame)), CONFIG)
    np.testing.assert_array_equal(found, visual_pixels(Image(frame.copy()), CONFIG))


@pytest.mark.parametrize("name", ["cpu", "get", "copy_to_host"])
def test_a_picture_in_device_memory_is_copied_once_by_its_library(name) -> None:
    frame = CopyingArray(FRAME, name)
    np.testing.assert_array_equal(visual_pixels(Image(frame), CONFIG), visual_pixels(Image(FRAME), CONFIG))
    assert frame.copies == 1
    assert lies_on_device(Image(frame))
    assert lies_on_device(Video([FRAME, frame], frames=2))


def test_a_picture_that_numpy_can_read_itself_is_copied_by_it() -> None:
    class Mapped(CudaArray):
        __array_interface__ = FRAME.__array_interface__

    np.testing.assert_array_equal(visual_pixels(Image(Mapped(FRAME)), CONFIG), visual_pixels(Image(FRAME), CONFIG))


def test_a_picture_that_nothing_copies_is_refused() -> None:
    with pytest.raises(DataError, match=r"<CudaArray in device memory> has none of the methods .*cpu, get"):
        visual_pixels(Image(CudaArray(FRAME)), CONFIG)


def test_the_error_of_a_library_that_cannot_copy_is_passed_on() -> None:
    class Lost(CudaArray):
        def cpu(self):
            raise RuntimeError("CUDA error:\nunspecified launch failure")

    with pytest.raises(DataError, match="cannot be read: CUDA error: unspecified launch failure; give"):
        visual_pixels(Image(Lost(FRAME)), CONFIG)


def test_a_float_array_as_a_picture_is_refused_with_the_alternative() -> None:
    with pytest.raises(DataError, match=r"<Tensor torch.float32 \[3, 8, 8\]>.*uint8.*PixelValues"):
        visual_pixels(Image(torch.from_numpy(PICTURE)), CONFIG)


def test_a_clip_may_be_a_tensor() -> None:
    clip = np.stack([FRAME, FRAME[::-1], FRAME[:, ::-1]])
    expected = visual_pixels(Video(list(clip), frames=2), CONFIG)
    np.testing.assert_array_equal(visual_pixels(Video(torch.from_numpy(clip), frames=2), CONFIG), expected)
    with pytest.raises(DataError, match="has no frames"):
        visual_pixels(Video(torch.from_numpy(clip[:0])), CONFIG)


def test_only_the_frames_that_are_seen_of_a_clip_in_device_memory_are_copied() -> None:
    clip = np.stack([np.roll(FRAME, index, axis=0) for index in range(6)])
    on_device = CopyingClip(clip)
    found = visual_pixels(Video(on_device, frames=2), CONFIG)
    np.testing.assert_array_equal(found, visual_pixels(Video(clip, frames=2), CONFIG))
    assert [frame.copies for frame in on_device.frames] == [0, 1, 0, 0, 1, 0]
