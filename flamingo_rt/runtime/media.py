"""The keys and values of visuals: computed once per visual, arranged by row for the language model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from flamingo_rt.contract import RESAMPLER, VISION_ENCODER, GraphSpec
from flamingo_rt.runtime.engine import Engine
from flamingo_rt.runtime.timing import StageTimer

# One visual: a tensor [Hx, L, d] for each media input of the language model.
VisualMedia = dict[str, np.ndarray]


def encode_visuals(
    engine: Engine, specs: dict[str, GraphSpec], pixels: Sequence[np.ndarray], timer: StageTimer
) -> list[VisualMedia]:
    """Keys and values of visuals given as pixel values [F, 3, H, W] each: one call of the vision encoder for all, one
    of the resampler for each number of frames."""
    if not pixels:
        return []
    vision, resampler = specs[VISION_ENCODER], specs[RESAMPLER]
    frames = np.ascontiguousarray(np.concatenate(pixels))
    features = np.empty(vision.output("features").resolve({"N": len(frames)}), dtype=np.float32)
    with timer.stage("vision"):
        engine.bind(VISION_ENCODER, {"pixel_values": frames}, {"features": features})()
    starts = np.cumsum([0, *(len(p) for p in pixels)])
    by_frames: dict[int, list[int]] = defaultdict(list)
    for visual, array in enumerate(pixels):
        by_frames[len(array)].append(visual)
    encoded: dict[int, VisualMedia] = {}
    for visuals in by_frames.values():
        stacked = np.stack([features[starts[v] : starts[v + 1]] for v in visuals])  # [M, F, S, Dv]
        outputs = {
            spec.name: np.empty(spec.resolve({"M": len(visuals)}), dtype=spec.dtype) for spec in resampler.outputs
        }
        with timer.stage("resampler"):
            engine.bind(RESAMPLER, {"features": stacked}, outputs)()
        for position, visual in enumerate(visuals):
            encoded[visual] = {name: array[position] for name, array in outputs.items()}
    return [encoded[visual] for visual in range(len(pixels))]


def stack_rows(rows: Sequence[Sequence[VisualMedia]], resampler: GraphSpec) -> dict[str, np.ndarray]:
    """Media inputs [B, V, Hx, L, d] of a batch: each row's visuals in order, zeros where a row has fewer (at least one
    slot, since a graph cannot take none)."""
    slots = max(1, max(len(row) for row in rows))
    stacked = {}
    for spec in resampler.outputs:
        array = np.zeros((len(rows), slots, *spec.shape[1:]), dtype=spec.dtype)
        for index, row in enumerate(rows):
            for slot, media in enumerate(row):
                array[index, slot] = media[spec.name]
        stacked[spec.name] = array
    return stacked
