"""Clips give evenly spaced frames whatever their header says; unreadable ones are refused quietly."""

import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from read_or_refused import may_be_refused

from flamingo_rt.errors import DataError, DependencyError, UsageError
from flamingo_rt.processing import decoded_clip as clip_frames
from flamingo_rt.processing import opencv_clips, pyav_clips
from flamingo_rt.processing.video import read_frames
from flamingo_rt.processing.visuals import Video

FRAME_COUNT = 16


def level(index):
    return 10 + 15 * index


def write_clip(path, count=FRAME_COUNT, codec="FFV1"):
    """A clip of 32 x 16 frames; frame i is (level(i), 20, 200) in RGB; FFV1 is lossless but for its colour space."""
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 10, (32, 16))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV cannot write {codec}")
    for index in range(count):
        writer.write(np.full((16, 32, 3), (200, 20, level(index)), np.uint8))
    writer.release()
    return path


@pytest.fixture(params=["pyav", "opencv"], autouse=True)
def reader(request, monkeypatch):
    """Every clip is read by both libraries."""
    if request.param == "opencv":
        monkeypatch.setitem(sys.modules, "av", None)
    return request.param


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mkv")


def reds(frames):
    return [round(float(np.asarray(frame)[..., 0].mean())) for frame in frames]


def expect(frames, indices):
    assert all(frame.mode == "RGB" and frame.size == (32, 16) for frame in frames)
    np.testing.assert_allclose(reds(frames), [level(index) for index in indices], atol=4)


def test_frames_of_a_file_are_evenly_spaced_and_rgb(clip):
    frames = read_frames(Video(clip))
    expect(frames, [1, 3, 5, 7, 9, 11, 13, 15])
    np.testing.assert_allclose(np.asarray(frames[0]).mean((0, 1)), [level(1), 20, 200], atol=4)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mp4v"), ("a.avi", "MJPG")])
def test_common_containers_are_read(tmp_path, name, codec):
    frames = read_frames(Video(str(write_clip(tmp_path / name, codec=codec)), frames=4))
    np.testing.assert_allclose(reds(frames), [level(i) for i in (2, 6, 10, 14)], atol=8)  # lossy


def test_all_frames_are_given_when_asked_for_all(clip):
    expect(read_frames(Video(clip, frames=FRAME_COUNT)), range(FRAME_COUNT))


def test_short_file_repeats_its_frames(tmp_path):
    expect(read_frames(Video(write_clip(tmp_path / "a.mkv", count=2), frames=6)), [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("stated", [0, 1, 5, 17, 1000])
def test_wrong_frame_count_in_the_header_changes_nothing(clip, monkeypatch, reader, stated):
    kind = pyav_clips.PyavClip if reader == "pyav" else opencv_clips.OpencvClip
    monkeypatch.setattr(kind, "stated_frames", property(lambda self: stated, lambda self, value: None), raising=False)
    expect(read_frames(Video(clip)), [1, 3, 5, 7, 9, 11, 13, 15])


def test_cut_file_gives_the_frames_before_the_cut(tmp_path):
    whole = write_clip(tmp_path / "a.mkv")
    cut = tmp_path / "cut.mkv"
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) * 3 // 4])
    frames = read_frames(Video(cut, frames=2))
    assert level(0) - 4 <= reds(frames)[0] < reds(frames)[1] < level(12)


def test_sequence_is_sampled_like_a_file():
    pictures = [np.full((16, 32, 3), level(index), np.uint8) for index in range(FRAME_COUNT)]
    expect(read_frames(Video(pictures)), [1, 3, 5, 7, 9, 11, 13, 15])
    expect(read_frames(Video(np.stack(pictures), frames=2)), [4, 12])


def test_sequence_may_mix_sources_and_be_short(tmp_path):
    PIL.Image.new("RGB", (32, 16), (level(1), 0, 0)).save(tmp_path / "a.png")
    sources = (PIL.Image.new("RGB", (32, 16), (level(0), 0, 0)), str(tmp_path / "a.png"))
    expect(read_frames(Video(sources, frames=3)), [0, 1, 1])


def test_refused_frame_is_named():
    with pytest.raises(DataError, match=r"frame 1 of <clip of 2 pictures>: .*none\.png"):
        read_frames(Video([np.zeros((4, 4, 3), np.uint8), "none.png"], frames=2))


# --- refused


def refusal(source):
    with pytest.raises(DataError) as caught:
        read_frames(Video(source))
    assert Video(source).label in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_file_and_directory_are_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.mp4")
    assert "is a directory" in refusal(tmp_path)


def test_empty_clips_are_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    assert "empty" in refusal(tmp_path / "a.mp4")
    assert "no frames" in refusal([])
    assert "no frames" in refusal(np.zeros((0, 4, 4, 3), np.uint8))


def test_clip_without_a_frame_is_refused(tmp_path):
    path = write_clip(tmp_path / "a.avi", count=0, codec="MJPG")
    if path.stat().st_size == 0:
        path.write_bytes(b"RIFF")
    refusal(path)


def test_text_and_truncated_files_named_mp4_are_refused_without_noise(tmp_path, reader):
    """Use a new process: FFmpeg takes its log level once, and writing the clips has set it in this one."""
    text, cut = tmp_path / "text.mp4", write_clip(tmp_path / "cut.mp4", codec="mp4v")
    text.write_text("hello world")
    cut.write_bytes(cut.read_bytes()[:-500])
    code = (
        "import sys\n"
        f"if {reader == 'opencv'}: sys.modules['av'] = None\n"
        "from flamingo_rt.processing.video import DataError, Video, read_frames\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_frames(Video(path))\n"
        "    except DataError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(text), str(cut)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert [line.split(" is not a video")[0] for line in done.stdout.splitlines()] == [str(text), str(cut)]


def test_damaged_files_give_frames_or_a_data_error(tmp_path, clip):
    content = clip.read_bytes()
    path = tmp_path / "a.mkv"

    @given(data=st.data())
    @settings(derandomize=True, max_examples=20, deadline=None, database=None)
    def check(data):
        damaged = bytearray(content)
        for where in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
            damaged[where] = data.draw(st.integers(0, 255))
        path.write_bytes(damaged[: data.draw(st.integers(1, len(content)))])
        with may_be_refused(path):
            assert len(read_frames(Video(path, frames=3))) == 3

    check()


def test_a_codec_that_nobody_knows_is_refused(tmp_path):
    path = write_clip(tmp_path / "a.mp4", codec="mp4v")
    path.write_bytes(path.read_bytes().replace(b"mp4v", b"zzzz").replace(b"esds", b"zzzz"))
    assert "convert it, for example to H.264" in refusal(path)


def test_frames_too_large_are_refused(clip, monkeypatch):
    monkeypatch.setattr(clip_frames, "MAX_FRAME_PIXELS", 500)
    assert "more than the 500" in refusal(clip)


@pytest.mark.parametrize("source", [b"RIFF", None, 3, np.zeros((4, 4, 3), np.uint8)], ids=["bytes", "none", "3", "one"])
def test_sources_that_are_no_clips_are_refused(source):
    assert "not a clip" in refusal(source)


@pytest.mark.parametrize("frames", [0, -1, 1025, 2.0, True])
def test_frames_must_be_an_integer_within_bounds(frames):
    with pytest.raises(UsageError, match="from 1 to 1024"):
        Video("a.mp4", frames=frames)


def test_without_a_library_the_error_names_both(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DependencyError, match="pip install opencv-python-headless"):
        read_frames(Video(clip))


@pytest.mark.parametrize("given_options", [None, "rtsp_transport;udp"])
def test_settings_of_the_process_are_restored(clip, monkeypatch, given_options):
    import cv2

    logs = getattr(cv2.utils, "logging", cv2)  # OpenCV 5, 4
    monkeypatch.delenv(opencv_clips.FFMPEG_LOG_LEVEL, raising=False)
    monkeypatch.delenv(opencv_clips.FFMPEG_OPTIONS, raising=False)
    if given_options is not None:
        monkeypatch.setenv(opencv_clips.FFMPEG_OPTIONS, given_options)
    before = logs.getLogLevel()
    read_frames(Video(clip))
    assert opencv_clips.FFMPEG_LOG_LEVEL not in os.environ
    assert logs.getLogLevel() == before
    assert os.environ.get(opencv_clips.FFMPEG_OPTIONS) == given_options


def test_an_animation_on_a_canvas_that_is_too_large_is_refused_before_it_is_decoded(tmp_path):
    file = tmp_path / "clip.webp"
    frames = [PIL.Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=100)
    content = bytearray(file.read_bytes())
    canvas = content.index(b"VP8X") + 12  # width and height, each less by 1, in 24 bits
    content[canvas : canvas + 6] = (6000 - 1).to_bytes(3, "little") + (5000 - 1).to_bytes(3, "little")
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"frames of 6,000 x 5,000 pixels, more than the 25,000,000 that are read"):
        read_frames(Video(file, 2), np.asarray)
