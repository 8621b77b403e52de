"""The vision encoder's input of a sample's pictures and clips."""

from __future__ import annotations

import tempfile

import numpy as np
import PIL.Image
import pytest
from made_data import level_of, png, write_clip

from flamingo_rt.config import PreprocessingConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.preprocess import pixel_values
from flamingo_rt.processing.visuals import MAX_FRAMES
from flamingo_rt.training.data.augmentation import Augmentation
from flamingo_rt.training.data.samples import DamagedSample, Visual
from flamingo_rt.training.data.visual_pixels import visual_pixels
from flamingo_rt.training.options import LARGEST, DataOptions

PREPROCESSING = PreprocessingConfig()


def pixels(content, kind="image", name="a.png", change=None, **options) -> np.ndarray:
    return visual_pixels(Visual(kind, content, name), "x:1", DataOptions("x", **options), PREPROCESSING, 32, change)


def levels(frames: np.ndarray) -> list[int]:
    return [level_of(frame) for frame in frames]


def test_a_picture_is_preprocessed_as_at_inference(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(png(90, (40, 20)))
    right = pixel_values(open_picture(png(90, (40, 20))), PREPROCESSING, 32)[None]
    array = np.asarray(PIL.Image.open(tmp_path / "a.png"))
    for content in (tmp_path / "a.png", png(90, (40, 20)), array):
        assert np.array_equal(pixels(content), right)


def test_a_change_is_made_before_the_preprocessing() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert np.array_equal(pixels(picture, change=Augmentation(flip=True)), pixels(picture)[..., ::-1])


def test_a_clip_gives_a_frame_a_second_and_equally_many_always(tmp_path) -> None:
    path = write_clip(tmp_path / "a.avi", [20, 40, 60, 80, 100, 120], fps=2.0)
    frames = levels(pixels(path, "video", frames=8))
    assert len(frames) == 8
    assert frames[3:] == [frames[2]] * 5  # three seconds long: then the last frame stays
    assert np.abs(np.array(frames[:3]) - [40, 80, 120]).max() <= 6
    assert len(pixels(path, "video", frames=2)) == 2
    assert len(pixels(path, "video", frames=8, fps=2.0)) == 8
    assert levels(pixels(path.read_bytes(), "video", "1.avi", frames=8)) == frames


def test_a_clip_with_a_long_name_is_decoded(tmp_path) -> None:
    content = write_clip(tmp_path / "a.avi", [20, 40]).read_bytes()
    assert np.array_equal(pixels(content, "video", "a." + "\N{DOG FACE}" * 78), pixels(content, "video", "a.avi"))


def test_a_clip_without_times_is_read_by_the_number_of_its_frames(tmp_path) -> None:
    frames = [PIL.Image.new("RGB", (24, 24), (level, 40, 200)) for level in (10, 20, 30, 40)]
    frames[0].save(tmp_path / "a.apng", "PNG", save_all=True, append_images=frames[1:], duration=0)
    for content in (tmp_path / "a.apng", (tmp_path / "a.apng").read_bytes()):
        assert levels(pixels(content, "video", "a.apng", frames=2)) == [20, 40]
        assert levels(pixels(content, "video", "a.apng", frames=8, fps=3.0)) == [10, 10, 20, 20, 30, 30, 40, 40]


def test_the_most_frames_of_the_options_are_those_that_a_clip_can_be_read_as() -> None:
    assert LARGEST["frames"] == MAX_FRAMES


def test_drawn_clips_are_arrays() -> None:
    clip = np.repeat(np.array([10, 20, 30, 40], np.uint8)[:, None, None, None], 3, axis=3).repeat(8, 1).repeat(8, 2)
    assert levels(pixels(clip, "video", frames=2)) == [20, 40]


def test_all_frames_of_a_clip_are_changed_alike() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    flipped = pixels(clip, "video", frames=3, change=Augmentation(flip=True))
    assert np.array_equal(flipped, pixels(clip, "video", frames=3)[..., ::-1])


@pytest.mark.parametrize("content", [b"", b"no picture", png(3)[:60]])
def test_a_picture_that_cannot_be_decoded_is_a_damaged_sample(content) -> None:
    with pytest.raises(DamagedSample, match=r"^x:1: a\.png") as error:
        pixels(content)
    assert "<bytes>" not in str(error.value)


def test_a_clip_that_cannot_be_decoded_is_a_damaged_sample_and_leaves_no_file(tmp_path, monkeypatch) -> None:
    whole = write_clip(tmp_path / "a.avi", [1, 2, 3]).read_bytes()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for content in (b"no clip", whole[:100]):
        with pytest.raises(DamagedSample, match=r"^x:1: b\.avi") as error:
            pixels(content, "video", "b.avi")
        assert str(tmp_path) not in str(error.value)
    assert len(pixels(whole, "video", "b.avi")) == 8
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="set TMPDIR to another folder"):
        pixels(whole, "video", "b.avi")
    assert list((tmp_path / "temporary").iterdir()) == []
