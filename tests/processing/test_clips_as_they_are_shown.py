"""Clips are shown to the model as players show them: turned, mirrored, over white; or a missing library is named."""

import logging
import sys

import av
import numpy as np
import PIL.Image
import pytest
from read_or_refused import may_be_refused
from written_clips import HEIGHT, WIDTH, frame, set_matrix, write_clip

from flamingo_rt.errors import DataError, DependencyError
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.video import read_frames
from flamingo_rt.processing.visuals import Video

# a, b, c, d of the display matrix -> the pixels it shows, in numpy's words.
TURNS = {
    "as stored": ((1, 0, 0, 1), lambda pixels: pixels),
    "by 180": ((-1, 0, 0, -1), lambda pixels: pixels[::-1, ::-1]),
    "clockwise": ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),
    "counterclockwise": ((0, -1, 1, 0), lambda pixels: np.rot90(pixels)),
    "left to right": ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
    "top to bottom": ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
    "along the diagonal": ((0, 1, 1, 0), lambda pixels: pixels.transpose(1, 0, 2)),
    "along the other diagonal": ((0, -1, -1, 0), lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2)),
}
MIRRORED = list(TURNS)[4:]


@pytest.fixture
def without_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)


def turned_clip(folder, matrix):
    return set_matrix(write_clip(folder / "a.mp4", options={"crf": "1"}), matrix)


def difference(picture, pixels):
    """The mean difference of the values, which is above 20 for any other turn of `frame`."""
    assert picture.size == (pixels.shape[1], pixels.shape[0])
    return np.abs(np.asarray(picture, np.float32) - pixels).mean()


def test_no_turn_of_the_picture_looks_like_another():
    stored = frame(8)
    shown = [turn(stored) for _, turn in TURNS.values()]
    for index, one in enumerate(shown):
        for other in shown[index + 1 :]:
            assert one.shape != other.shape or np.abs(one.astype(float) - other).mean() > 8


@pytest.mark.parametrize("turn", TURNS)
def test_pyav_turns_and_mirrors_as_the_matrix_says(tmp_path, turn):
    matrix, shown = TURNS[turn]
    [picture] = read_frames(Video(turned_clip(tmp_path, matrix), frames=1))
    assert difference(picture, shown(frame(8))) < 4


@pytest.mark.parametrize("turn", [turn for turn in TURNS if turn not in MIRRORED])
def test_opencv_turns_as_the_matrix_says(tmp_path, without_pyav, turn):
    matrix, shown = TURNS[turn]
    [picture] = read_frames(Video(turned_clip(tmp_path, matrix), frames=1))
    assert difference(picture, shown(frame(8))) < 4


@pytest.mark.parametrize("turn", MIRRORED)
def test_without_pyav_a_mirrored_clip_is_refused_by_name(tmp_path, without_pyav, turn):
    clip = turned_clip(tmp_path, TURNS[turn][0])
    with pytest.raises(DependencyError, match=r"mirrored.*pip install 'flamingo-rt\[video\]'"):
        read_frames(Video(clip))


def test_a_matrix_of_zeros_and_a_scale_change_nothing(tmp_path):
    for matrix in ((0, 0, 0, 0), (2, 0, 0, 3)):
        [picture] = read_frames(Video(turned_clip(tmp_path, matrix), frames=1))
        assert difference(picture, frame(8)) < 4


@pytest.mark.parametrize("library", ["pyav", "opencv"])
def test_an_angle_between_quarter_turns_is_refused(tmp_path, monkeypatch, library):
    if library == "opencv":
        monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"turned by (45|315) degrees"):
        read_frames(Video(turned_clip(tmp_path, (1, 1, -1, 1))))


@pytest.mark.parametrize("turn", [turn for turn in TURNS if turn != "as stored"])
def test_a_matroska_clip_is_turned_and_mirrored_too(tmp_path, turn, monkeypatch):
    """Written from the MP4, so that FFmpeg makes Matroska's projection of its matrix."""
    matrix, shown = TURNS[turn]
    with av.open(str(turned_clip(tmp_path, matrix))) as given, av.open(str(tmp_path / "a.mkv"), "w") as taken:
        stream = taken.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                taken.mux(packet)
    assert b"\x76\x70" in (tmp_path / "a.mkv").read_bytes()  # Projection
    [picture] = read_frames(Video(tmp_path / "a.mkv", frames=1))
    assert difference(picture, shown(frame(8))) < 4
    monkeypatch.setitem(sys.modules, "av", None)
    if turn in MIRRORED:
        with pytest.raises(DependencyError, match="mirrored"):
            read_frames(Video(tmp_path / "a.mkv"))
    else:
        [picture] = read_frames(Video(tmp_path / "a.mkv", frames=1))
        assert difference(picture, shown(frame(8))) < 4


def test_interlaced_clips_are_shown_or_a_library_is_named(tmp_path, monkeypatch):
    """OpenCV 5.0 returns uninitialised memory for them."""
    clip = write_clip(tmp_path / "a.mp4", options={"x264-params": "tff=1", "crf": "1"})
    assert difference(read_frames(Video(clip, frames=1))[0], frame(8)) < 4
    monkeypatch.setitem(sys.modules, "av", None)
    with may_be_refused("interlaced", "flamingo-rt[video]", error=DependencyError):
        [picture] = read_frames(Video(clip, frames=1))
        assert difference(picture, frame(8)) < 4


def test_a_clip_in_which_nothing_moves_is_shown_or_a_library_is_named(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "a.mp4", frames=[frame(8)] * 8, options={"qp": "0"})
    assert all(difference(picture, frame(8)) < 4 for picture in read_frames(Video(clip)))
    monkeypatch.setitem(sys.modules, "av", None)
    with may_be_refused("the same picture in all frames", error=DependencyError):
        assert difference(read_frames(Video(clip))[0], frame(8)) < 4


# --- transparent

TRANSPARENT = {
    "QuickTime RLE": ("a.mov", "qtrle", "argb", {}),
    "ProRes 4444": ("a.mov", "prores_ks", "yuva444p10le", {}),
    "PNG in MOV": ("a.mov", "png", "rgba", {}),
    "PNG in MOV, 16 bits": ("a.mov", "png", "rgba64be", {}),
    "grey PNG in MOV": ("a.mov", "png", "ya8", {}),
    "VP8": ("a.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0", "crf": "4", "b": "4M"}),
    "VP9": ("a.webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0", "crf": "4", "b": "0"}),
    "UT Video": ("a.avi", "utvideo", "gbrap", {}),
    "raw": ("a.avi", "rawvideo", "bgra", {}),
    "HuffYUV": ("a.avi", "huffyuv", "bgra", {}),
    "FFV1": ("a.mkv", "ffv1", "yuva420p", {}),
    "FFV1, big-endian": ("a.mkv", "ffv1", "yuva444p16le", {}),
}


def half_transparent(count=16):
    """Frames [H, W, 4]: the left half as in `frame`, the right half of a hidden colour, transparent."""
    for index in range(count):
        pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
        pixels[:, : WIDTH // 2, :3] = frame(index)[:, : WIDTH // 2]
        pixels[:, : WIDTH // 2, 3] = 255
        pixels[:, WIDTH // 2 :, 0] = 180
        yield pixels


def transparent_clip(folder, name, codec, layout, options):
    return write_clip(folder / name, codec, layout, frames=list(half_transparent()), options=options)


@pytest.mark.parametrize("case", TRANSPARENT.values(), ids=TRANSPARENT)
def test_pyav_shows_transparent_clips_over_white(tmp_path, case):
    [picture] = read_frames(Video(transparent_clip(tmp_path, *case), frames=1))
    pixels = np.asarray(picture, np.float32)
    assert pixels[:, WIDTH // 2 + 2 :].min() > 250
    opaque = pixels[:, : WIDTH // 2 - 2]
    if case[2] == "ya8":
        assert np.ptp(opaque, axis=2).max() == 0
        assert opaque.max() < 200
    else:
        assert np.abs(opaque - frame(8)[:, : WIDTH // 2 - 2]).mean() < 5


@pytest.mark.parametrize("case", TRANSPARENT.values(), ids=TRANSPARENT)
def test_without_pyav_a_transparent_clip_is_named(tmp_path, without_pyav, caplog, case):
    clip = transparent_clip(tmp_path, *case)
    if case[1] == "ffv1":  # OpenCV's own writer gives opaque clips an alpha
        with caplog.at_level(logging.WARNING):
            assert len(read_frames(Video(clip))) == 8
        assert "transparent parts" in caplog.text
        assert "flamingo-rt[video]" in caplog.text
    else:
        with pytest.raises(DependencyError, match=r"transparent parts.*pip install 'flamingo-rt\[video\]'"):
            read_frames(Video(clip))


ANIMATED = {"gif": {"disposal": 2}, "png": {"disposal": 1}, "webp": {"lossless": True}}


@pytest.mark.parametrize("library", ["pyav", "opencv"])
@pytest.mark.parametrize("kind", ANIMATED)
def test_animations_are_shown_as_pictures_are(tmp_path, monkeypatch, kind, library):
    if library == "opencv":
        monkeypatch.setitem(sys.modules, "av", None)
    images = [PIL.Image.fromarray(pixels) for pixels in half_transparent()]
    path = tmp_path / f"a.{kind}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=100, loop=0, **ANIMATED[kind])
    pictures = read_frames(Video(path))
    np.testing.assert_array_equal(pictures[0], read_frames(Video(path, frames=16))[1])
    np.testing.assert_array_equal(open_picture(path), read_frames(Video(path, frames=16))[0])
    for picture, index in zip(pictures, range(1, 16, 2), strict=True):
        expected = np.full((HEIGHT, WIDTH, 3), 255)
        expected[:, : WIDTH // 2] = frame(index)[:, : WIDTH // 2]
        np.testing.assert_allclose(np.asarray(picture, int), expected, atol=6)  # GIF's palette has few colours


def test_an_animation_is_sampled_by_its_delays_and_its_first_picture_may_be_none_of_it(tmp_path):
    images = [PIL.Image.fromarray(frame(index)) for index in range(4)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[100, 100, 100, 900])
    found = [int(np.asarray(picture)[-1, -1, 0]) for picture in read_frames(Video(tmp_path / "a.gif", frames=4))]
    np.testing.assert_allclose(found, [frame(index)[-1, -1, 0] for index in (1, 3, 3, 3)], atol=4)
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], duration=100, default_image=True)
    found = [int(np.asarray(picture)[-1, -1, 0]) for picture in read_frames(Video(tmp_path / "a.png", frames=3))]
    assert found == [int(frame(index)[-1, -1, 0]) for index in (1, 2, 3)]


def test_a_picture_is_a_clip_of_one_frame(tmp_path):
    PIL.Image.fromarray(frame(3)).save(tmp_path / "a.png")
    for picture in read_frames(Video(tmp_path / "a.png", frames=2)):
        np.testing.assert_array_equal(picture, frame(3))


def test_a_damaged_animation_gives_the_frames_before_the_damage_or_is_refused(tmp_path):
    images = [PIL.Image.fromarray(frame(index)) for index in range(8)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    content = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(content[: len(content) // 2])
    assert len(read_frames(Video(tmp_path / "cut.gif"))) == 8
    (tmp_path / "none.gif").write_bytes(content[:14])
    with pytest.raises(DataError, match=r"none.gif"):
        read_frames(Video(tmp_path / "none.gif"))
