"""The libraries that read clips agree, hold one frame whole at a time, and end on files that have no end."""

import struct
import subprocess
import sys
import textwrap
import weakref

import av
import numpy as np
import PIL.Image
import pytest
from written_clips import frame, level, write_clip

from flamingo_rt.config import PreprocessingConfig
from flamingo_rt.errors import DataError
from flamingo_rt.processing import pyav_clips, video
from flamingo_rt.processing.preprocess import pixel_values
from flamingo_rt.processing.video import read_frames
from flamingo_rt.processing.visuals import Video


@pytest.fixture(params=["pyav", "opencv"])
def reader(request, monkeypatch):
    if request.param == "opencv":
        monkeypatch.setitem(sys.modules, "av", None)
    return request.param


@pytest.mark.parametrize(("version", "used"), [("16.1.0", False), ("17.0.1", False), ("17.1.0", True), ("18.1.0", True),
                                           ("19.0.2", False)])
def test_pyav_is_used_in_the_versions_that_work(monkeypatch, version, used):
    monkeypatch.setattr(av, "__version__", version)
    assert pyav_clips.installed() is used


# --- agreement

ORDINARY = {
    "H.264 in MP4": ("a.mp4", "libx264", "yuv420p"),
    "H.264, 10 bits, in MKV": ("a.mkv", "libx264", "yuv420p10le"),
    "H.265 in MOV": ("a.mov", "libx265", "yuv420p"),
    "VP9 in WebM": ("a.webm", "libvpx-vp9", "yuv420p"),
    "MPEG-4 in AVI": ("a.avi", "mpeg4", "yuv420p"),
    "MJPEG in AVI": ("a.avi", "mjpeg", "yuvj420p"),
    "MPEG-2 in TS": ("a.ts", "mpeg2video", "yuv420p"),
    "FFV1 in MKV": ("a.mkv", "ffv1", "yuv444p"),
}


def moving_noise(count=20, width=70, height=54):
    """Frames with detail, at a size that is no multiple of 16."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (height // 6, width // 7 + count, 3)).repeat(6, 0).repeat(7, 1).astype(np.uint8)
    return [np.ascontiguousarray(coarse[:, index : index + width]) for index in range(count)]


@pytest.mark.parametrize("case", ORDINARY.values(), ids=ORDINARY)
def test_both_libraries_give_the_same_pictures(tmp_path, monkeypatch, case):
    """Allow 2 of 255 (5 for clips of 10 bits): the libraries round the conversion to RGB differently."""
    name, codec, layout = case
    clip = write_clip(tmp_path / name, codec, layout, frames=moving_noise(), rate=25)
    for asked in (Video(clip), Video(clip, frames=20), Video(clip, frames=8, fps=5)):
        by_pyav = np.stack(read_frames(asked)).astype(int)
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, "av", None)
            by_opencv = np.stack(read_frames(asked)).astype(int)
        assert by_pyav.shape == by_opencv.shape
        assert np.abs(by_pyav - by_opencv).max() <= (5 if "10" in layout else 2)


# --- memory


@pytest.mark.parametrize("resize", ["pad", "crop", "squash"])
@pytest.mark.parametrize("source", ["file", "sequence", "array"])
def test_frames_preprocessed_as_they_come_are_those_preprocessed_afterwards(tmp_path, reader, resize, source):
    frames = moving_noise(6)
    given = {"file": lambda: write_clip(tmp_path / "a.mp4", frames=frames), "sequence": lambda: frames,
             "array": lambda: np.stack(frames)}[source]()
    config = PreprocessingConfig(resize=resize)
    video_ = Video(given, frames=9)
    as_they_come = read_frames(video_, lambda picture: pixel_values(picture, config, 32))
    afterwards = [pixel_values(picture, config, 32) for picture in read_frames(video_)]
    np.testing.assert_array_equal(np.stack(as_they_come), np.stack(afterwards))


def test_one_frame_is_held_whole_at_a_time(tmp_path, reader):
    """Check that the reader keeps no picture when it gives the next one to preprocessing."""
    clip = write_clip(tmp_path / "a.mp4")
    for given in (clip, [frame(index) for index in range(4)]):
        before: list[weakref.ref] = []

        def preprocess(picture, before=before):
            assert not any(earlier() for earlier in before)
            before.append(weakref.ref(picture))
            return len(before)

        assert read_frames(Video(given, frames=4), preprocess) == [1, 2, 3, 4]


PEAK = """
    import resource, sys
    import numpy as np
    from flamingo_rt.config import PreprocessingConfig
    from flamingo_rt.processing.visuals import Video
    from flamingo_rt.processing.preprocess import pixel_values
    from flamingo_rt.processing.video import read_frames
    if sys.argv[1] == "opencv":
        sys.modules["av"] = None
    def peak(path, frames):
        found = read_frames(Video(path, frames), lambda picture: pixel_values(picture, PreprocessingConfig(), 64))
        assert len(found) == frames
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(peak(sys.argv[2], 1), peak(sys.argv[2], 12))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux tells it")
def test_more_frames_take_little_more_memory(tmp_path, reader):
    """11 frames of 4 megapixels are 176 MB as Pillow holds them."""
    frames = [np.full((2000, 2000, 3), 20 * index, np.uint8) for index in range(12)]
    clip = write_clip(tmp_path / "a.avi", "mjpeg", "yuvj420p", frames=frames)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(PEAK), reader, str(clip)], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, twelve = map(int, done.stdout.split())
    assert twelve - one < 80  # MB


# --- files without an end


def repeated_edit(clip, times):
    """An MP4 whose edit list shows its one track so often: 12 bytes each."""
    content = bytearray(clip.read_bytes())
    assert content.count(b"elst") == 1
    at = content.index(b"elst")
    size = struct.unpack(">I", content[at - 4 : at])[0]
    entries = struct.pack(">II", 0, times) + bytes(content[at + 12 : at + 24]) * times
    added = 8 + len(entries) - size
    content[at - 4 : at - 4 + size] = struct.pack(">I", 8 + len(entries)) + b"elst" + entries
    for kind in (b"edts", b"trak", b"moov"):
        where = content.index(kind) - 4
        content[where : where + 4] = struct.pack(">I", struct.unpack(">I", content[where : where + 4])[0] + added)
    clip.write_bytes(content)
    return clip


def test_a_clip_that_shows_its_frames_again_and_again_ends(tmp_path, reader, monkeypatch):
    clip = repeated_edit(write_clip(tmp_path / "a.mp4"), 8_000)  # 128,000 frames in 98 kB
    monkeypatch.setattr(video, "LEAST_FRAMES", 500)
    monkeypatch.setattr(video, "BYTES_PER_FRAME", 1000)
    with pytest.raises(DataError, match="goes on after 598 frames of 64 x 48 pixels, more than are decoded"):
        read_frames(Video(clip))


def test_edits_are_followed(tmp_path, reader):
    """Show the 16 frames three times: four frames are the centres of the quarters of 48."""
    clip = repeated_edit(write_clip(tmp_path / "a.mp4"), 3)
    found = [np.asarray(picture, int)[-1, -1, 0] for picture in read_frames(Video(clip, frames=4))]
    np.testing.assert_allclose(found, [level(index % 16) for index in (6, 18, 30, 42)], atol=6)


def test_pixels_are_bounded_by_the_size_of_the_file(tmp_path, reader, monkeypatch):
    clip = write_clip(tmp_path / "a.mp4")
    monkeypatch.setattr(video, "PIXELS_PER_BYTE", 0)
    monkeypatch.setattr(video, "LEAST_PIXELS", 10 * 64 * 48)
    with pytest.raises(DataError, match="goes on after 10 frames of 64 x 48 pixels, more than are decoded"):
        read_frames(Video(clip))
    monkeypatch.setattr(video, "LEAST_PIXELS", 16 * 64 * 48)
    assert len(read_frames(Video(clip))) == 8


def test_an_animation_is_bounded_too(tmp_path, monkeypatch):
    images = [PIL.Image.fromarray(frame(index)) for index in range(8)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    monkeypatch.setattr(video, "BYTES_PER_FRAME", 10**9)
    monkeypatch.setattr(video, "LEAST_FRAMES", 5)
    with pytest.raises(DataError, match="goes on after 5 frames"):
        read_frames(Video(tmp_path / "a.gif"))
