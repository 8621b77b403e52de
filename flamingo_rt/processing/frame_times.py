"""The choice of a clip's frames for the model: by display time, or by index where the clip has no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Seconds. Matroska and FLV round timestamps to milliseconds: closer ones are the same moment.
TICK = 1e-3


def frame_indices(count: int, frames: int) -> list[int]:
    """Indices of ``frames`` of a clip's ``count`` frames, at the centres of equal intervals.

    Ascending; a clip with fewer frames has each repeated, as evenly as possible.
    """
    return [(2 * interval + 1) * count // (2 * frames) for interval in range(frames)]


@dataclass(frozen=True)
class Timeline:
    """The display times of a clip's frames. starts: float64 [N], seconds, ascending. A frame is shown until the next
    one starts, the last one until ``end``."""

    starts: np.ndarray
    end: float

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float(self.end - self.starts[0])


def read_timeline(starts: Sequence[float], end: float | None = None) -> Timeline | None:
    """The timeline of a clip's timestamps, or None where they are missing, out of order or all the same.

    Without ``end`` the last frame is held as long as the one before it.
    """
    times = np.asarray(starts, np.float64)
    if not len(times) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        return None
    if end is None:
        end = float(times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0))
    if not math.isfinite(end) or end < times[-1] or (len(times) > 1 and end == times[0]):
        return None
    return Timeline(times, end)


def frames_in_time(timeline: Timeline, frames: int, fps: float | None = None) -> list[int]:
    """Indices of the frames that are shown at the centres of ``frames`` equal intervals of time.

    With ``fps`` the intervals are 1 / fps seconds long, from the start, as many as have their centre in the clip; where
    that is more than ``frames``, the clip is seen whole in ``frames`` intervals. At least one frame is taken.
    """
    duration = timeline.duration
    if fps is not None:
        intervals = math.ceil(min(duration * fps - 0.5, frames + 1) - 1e-9)
        if 1 <= intervals <= frames:
            return _shown_at(timeline, (np.arange(intervals) + 0.5) / fps)
        frames = min(max(intervals, 1), frames)
    if _has_constant_rate(timeline):
        return frame_indices(len(timeline.starts), frames)
    return _shown_at(timeline, (np.arange(frames) + 0.5) * (duration / frames))


def _shown_at(timeline: Timeline, seconds: np.ndarray) -> list[int]:
    """The last frame that has started at each time, counted from the first frame's start."""
    shown = np.searchsorted(timeline.starts - timeline.starts[0], seconds + TICK, side="right") - 1
    return [int(index) for index in shown]


def _has_constant_rate(timeline: Timeline) -> bool:
    """Whether every start is where a constant rate would put it, within the rounding of a millisecond clock."""
    starts, count = timeline.starts, len(timeline.starts)
    step = (starts[-1] - starts[0]) / (count - 1) if count > 1 else timeline.duration
    even = starts[0] + step * np.arange(count + 1)
    return bool((np.abs(np.append(starts, timeline.end) - even) <= 1.5 * TICK).all())
