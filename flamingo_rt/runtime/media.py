"""The keys and values of visuals: computed once per visual, arranged by row for the language model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from flamingo_rt.backend import Backend
from flamingo_rt.contract import ENCODED_AT_ONCE, RESAMPLER, VISION_ENCODER, GraphSpec
from flamingo_rt.device_arrays import DeviceFrames
from flamingo_rt.runtime.timing import StageTimer

# One visual: a tensor [Hx, L, d] for each media input of the language model.
VisualMedia = dict[str, np.ndarray]


def encode_visuals(
    backend: Backend, specs: dict[str, GraphSpec], pixels: Sequence[np.ndarray], timer: StageTimer
) -> list[VisualMedia]:
    """Keys and values of visuals given as pixel values [F, 3, H, W] each."""
    return resample(backend, specs, encode_frames(backend, specs, pixels, timer), timer)


def encode_frames(
    backend: Backend, specs: dict[str, GraphSpec], pixels: Sequence[np.ndarray] | Sequence[DeviceFrames],
    timer: StageTimer,
) -> list[np.ndarray]:
    """Features [F, S, Dv] of visuals given as pixel values [F, 3, H, W] each: their frames one after the other,
    `ENCODED_AT_ONCE` in a run. Those of one visual, which may lie in device memory, are read where they are."""
    if not pixels:
        return []
    spec = specs[VISION_ENCODER].output("features")
    frames = pixels[0] if len(pixels) == 1 else np.concatenate(pixels)
    features = np.empty(spec.resolve({"N": len(frames)}), dtype=spec.array_dtype)
    with timer.stage("vision"):
        for start in range(0, len(frames), ENCODED_AT_ONCE):
            run = slice(start, start + ENCODED_AT_ONCE)
            backend.bind(VISION_ENCODER, {"pixel_values": frames[run]}, {"features": features[run]})()
    return np.split(features, np.cumsum([len(p) for p in pixels[:-1]]))


def resample(
    backend: Backend, specs: dict[str, GraphSpec], features: Sequence[np.ndarray], timer: StageTimer
) -> list[VisualMedia]:
    """Keys and values of visuals given as features [F, S, Dv] each: those with the same number of frames together,
    `ENCODED_AT_ONCE` in a run of the resampler."""
    spec = specs[RESAMPLER]
    by_frames: dict[int, list[int]] = defaultdict(list)
    for visual, array in enumerate(features):
        by_frames[len(array)].append(visual)
    encoded: dict[int, VisualMedia] = {}
    for visuals in _runs(by_frames.values()):
        stacked = np.stack([features[visual] for visual in visuals])  # [M, F, S, Dv]
        outputs = {out.name: np.empty(out.resolve({"M": len(visuals)}), dtype=out.array_dtype) for out in spec.outputs}
        with timer.stage("resampler"):
            backend.bind(RESAMPLER, {"features": stacked}, outputs)()
        for position, visual in enumerate(visuals):
            encoded[visual] = {name: array[position] for name, array in outputs.items()}
    return [encoded[visual] for visual in range(len(features))]


def _runs(groups: Iterable[list[int]]) -> Iterator[list[int]]:
    for group in groups:
        for start in range(0, len(group), ENCODED_AT_ONCE):
            yield group[start : start + ENCODED_AT_ONCE]


def stack_rows(rows: Sequence[Sequence[VisualMedia]], resampler: GraphSpec) -> dict[str, np.ndarray]:
    """Media inputs [B, Hx, V * L, d] of a batch: each row's visuals in order, zeros where a row has fewer (at least one
    slot, since a graph cannot take none)."""
    slots = max(1, max(len(row) for row in rows))
    stacked = {}
    for spec in resampler.outputs:
        _, heads, latents, width = spec.shape
        array = np.zeros((len(rows), heads, slots * latents, width), dtype=spec.array_dtype)
        for index, row in enumerate(rows):
            for slot, media in enumerate(row):
                array[index, :, slot * latents : (slot + 1) * latents] = media[spec.name]
        stacked[spec.name] = array
    return stacked
