"""Frames are taken by the time at which they are shown; at a constant rate they are those taken by index."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_clips import frame, level, reds, write_clip

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.processing.frame_times import Timeline, frame_indices, frames_in_time, read_timeline
from flamingo_rt.processing.video import read_frames
from flamingo_rt.processing.visuals import Video


@given(count=st.integers(1, 1000), frames=st.integers(1, 64))
def test_indices_are_centres_of_equal_intervals(count, frames):
    indices = frame_indices(count, frames)
    centres = (np.arange(frames) + 0.5) * count / frames
    assert len(indices) == frames
    assert all(0 <= index < count for index in indices)
    offsets = centres - np.array(indices)  # a frame covers [index, index + 1)
    assert (offsets > -1e-9).all()
    assert (offsets < 1 + 1e-9).all()
    repeats = [indices.count(index) for index in range(count)]
    assert max(repeats) - min(repeats) <= 1


RATES = [1, 10, 24, 24000 / 1001, 25, 30, 60]
CLOCKS = [0, 1 / 90000, 1e-3]  # seconds a tick; 0: exact


@given(count=st.integers(1, 3000), frames=st.integers(1, 64), rate=st.sampled_from(RATES),
       tick=st.sampled_from(CLOCKS), start=st.sampled_from([0.0, 1.4, 36000.0]))
def test_a_constant_rate_gives_the_frames_of_the_index_whatever_the_clock(count, frames, rate, tick, start):
    times = start + np.arange(count) / rate
    if tick:
        times = np.round(times / tick) * tick
    assert frames_in_time(read_timeline(times), frames) == frame_indices(count, frames)


@st.composite
def timelines(draw):
    gaps = draw(st.lists(st.integers(0, 2000), min_size=1, max_size=30))
    return read_timeline(np.cumsum([0, *gaps, 50]) / 1000)


@given(timeline=timelines(), frames=st.integers(1, 20))
def test_a_frame_is_held_until_the_next_one_starts(timeline, frames):
    found = frames_in_time(timeline, frames)
    assert len(found) == frames
    assert found == sorted(found)
    starts, ends = timeline.starts, np.append(timeline.starts[1:], timeline.end)
    for interval, index in enumerate(found):
        centre = (interval + 0.5) * timeline.duration / frames
        assert starts[index] - 0.002 <= centre < ends[index] + 0.002  # a clock's tick and a half, and rounding


def test_a_clip_that_pauses_is_seen_as_it_pauses():
    timeline = Timeline(np.array([0, 0.1, 0.2, 0.3, 5.3]), 5.4)
    assert frames_in_time(timeline, 4) == [3, 3, 3, 3]
    assert frames_in_time(timeline, 1) == [3]
    assert frames_in_time(timeline, 27) == [1, *[3] * 25, 4]


FPS = {  # duration of a clip of 10 frames a second, fps, frames -> the times that are shown
    "1 a second": (4.0, 1, 8, [0.5, 1.5, 2.5, 3.5]),
    "the last interval is cut": (4.4, 1, 8, [0.5, 1.5, 2.5, 3.5]),
    "its centre is in the clip": (4.6, 1, 8, [0.5, 1.5, 2.5, 3.5, 4.5]),
    "3 a second": (1.0, 3, 8, [1 / 6, 3 / 6, 5 / 6]),
    "more than frames": (16.0, 1, 4, [2, 6, 10, 14]),
    "just frames": (4.0, 1, 4, [0.5, 1.5, 2.5, 3.5]),
    "a clip of half an interval": (0.4, 1, 4, [0.2]),
    "a rate next to nothing": (4.0, 1e-300, 8, [2]),
    "a rate beyond all": (4.0, 1e300, 2, [1, 3]),
    "faster than the clip": (0.2, 20, 8, [0.025, 0.075, 0.125, 0.175]),
}


@pytest.mark.parametrize(("duration", "fps", "frames", "times"), FPS.values(), ids=FPS)
def test_fps_takes_the_centres_of_intervals_of_that_length(duration, fps, frames, times):
    timeline = read_timeline(np.arange(round(duration * 10)) / 10)
    assert timeline.duration == pytest.approx(duration)
    assert frames_in_time(timeline, frames, fps) == [int(time * 10 + 1e-6) for time in times]


@pytest.mark.parametrize("times", [[], [np.nan, 0.1], [0, 0.2, 0.1], [0, 0, 0], [0, np.inf]], ids=str)
def test_impossible_times_give_no_timeline(times):
    assert read_timeline(times) is None


def test_a_single_frame_is_all_there_is():
    for fps in (None, 0.1, 100.0):
        assert set(frames_in_time(read_timeline([3.2]), 4, fps)) == {0}


# --- of files


@pytest.fixture(params=["pyav", "opencv"])
def reader(request, monkeypatch):
    if request.param == "opencv":
        monkeypatch.setitem(sys.modules, "av", None)
    return request.param


PAUSING = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 3.6, 3.7, 3.8, 3.9, 4.0]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_file_of_a_varying_rate_is_sampled_in_time(tmp_path, reader, name):
    clip = write_clip(tmp_path / name, frames=[frame(index) for index in range(len(PAUSING))], times=PAUSING)
    expected = [next(i for i in reversed(range(12)) if PAUSING[i] <= (k + 0.5) * 4.1 / 8) for k in range(8)]
    assert expected == [2, 6, 6, 6, 6, 6, 6, 9]
    np.testing.assert_allclose(reds(read_frames(Video(clip))), [reds([frame(index)])[0] for index in expected], atol=6)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"),
                                         ("a.ts", "libx264"), ("a.webm", "libvpx")])
def test_fps_takes_that_many_frames_of_a_file(tmp_path, reader, name, codec):
    clip = write_clip(tmp_path / name, codec, options={"b": "4M"}, rate=5)  # 16 frames, 3.2 s
    found = reds(read_frames(Video(clip, frames=8, fps=1.0)))
    np.testing.assert_allclose(found, [level(index) for index in (2, 7, 12)], atol=8)
    assert len(read_frames(Video(clip, frames=2, fps=3))) == 2
    assert len(read_frames(Video(clip, frames=32, fps=np.float32(3)))) == 10


def test_fps_of_a_file_without_times_is_refused(tmp_path, reader):
    clip = write_clip(tmp_path / "a.h264")
    np.testing.assert_allclose(reds(read_frames(Video(clip, frames=2))), [level(4), level(12)], atol=6)
    with pytest.raises(DataError, match="does not say when its frames are shown: leave fps out"):
        read_frames(Video(clip, fps=1.0))


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_fps_must_be_a_number_above_0(fps):
    with pytest.raises(UsageError, match="frames a second: give a number above 0"):
        Video("a.mp4", fps=fps)


def test_pictures_have_no_fps():
    with pytest.raises(UsageError, match="<clip of 2 pictures> has no time that fps could refer to"):
        Video(["a.png", "b.png"], fps=1.0)


def test_a_count_of_frames_may_be_any_integer():
    video = Video(["a.png"], frames=np.int64(2))
    assert video.frames == 2
    assert type(video.frames) is int
