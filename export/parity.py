"""Does the exported bundle compute what the PyTorch model computes? Checked before a bundle is written.

Every graph is run through the engine that will run it and compared with the stateless model, tensor by tensor: media
of pictures and clips, then prompts without a picture, with one, with several, with clips, in a ragged batch, each by
prefill and then token by token, and one continued by several tokens at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flamingo_rt.contract import (
    LANGUAGE_MODEL,
    RESAMPLER,
    VISION_ENCODER,
    graph_specs,
    layer_parts,
    media_name,
    past_name,
    present_name,
)
from flamingo_rt.errors import ParityError
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.language import ScoreBias, attend_without_cache
from flamingo_rt.runtime.engine import Engine

TOLERANCE = 1e-4  # float32 sums of a few thousand terms in another order differ by about 1e-6


@dataclass(frozen=True)
class Case:
    """A prompt: for each row its tokens and where its visuals stand; then more tokens, in ``pieces``."""

    name: str
    lengths: tuple[int, ...]
    visuals: tuple[tuple[int, ...], ...]
    frames: int = 1
    pieces: tuple[int, ...] = (1, 1, 1)


CASES = (
    Case("no picture", (7,), ((),)),
    Case("one picture", (9,), ((1,),)),
    Case("text, then one picture", (11,), ((6,),)),
    Case("several pictures", (23,), ((0, 5, 9, 15, 16),)),
    Case("clips", (12,), ((1, 7),), frames=3),
    Case("clips with more frames than trained", (6,), ((1,),), frames=12),
    Case("ragged batch", (5, 13, 8, 1), ((1,), (2, 6, 7), (), (0,))),
    Case("continued by several tokens", (10,), ((1, 4),), pieces=(6, 1, 4)),
)


class Deviation:
    """The largest deviation per graph, relative to the tensor's scale (at least 1); raises beyond the tolerance."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.largest = dict.fromkeys((VISION_ENCODER, RESAMPLER, LANGUAGE_MODEL), 0.0)

    def check(self, graph: str, tensor: str, case: str, found: np.ndarray, expected: Tensor) -> None:
        """Compare one tensor. Raises `ParityError` that names graph, tensor, prompt and error."""
        reference = expected.numpy()
        error = float(np.abs(found - reference).max() / max(1.0, float(np.abs(reference).max())))
        if not error <= self.tolerance:  # also when it is not a number
            raise ParityError(
                f"graph {graph}, tensor {tensor}, prompt '{case}': deviates from PyTorch by {error:.2e}, "
                f"allowed is {self.tolerance:.0e}; no bundle was written"
            )
        self.largest[graph] = max(self.largest[graph], error)


class _Recorder:
    """The reference attention, keeping each layer's keys and values: what a cache must hold."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor,
        bias: ScoreBias | None, bias_query: Tensor,
    ) -> Tensor:
        for part, tensor in (("key", key), ("value", value)):
            self.seen[present_name(layer, part)] = tensor.transpose(1, 2)
        return attend_without_cache(layer, query, key, value, positions, bias, bias_query)


@torch.no_grad()
def check_parity(model: Flamingo, engine: Engine, tolerance: float = TOLERANCE) -> dict[str, float]:
    """The largest deviation of each graph. Raises `ParityError` when one is beyond ``tolerance``."""
    deviation = Deviation(tolerance)
    generator = torch.Generator().manual_seed(0)
    for case in CASES:
        media = _check_media(model, engine, case, deviation, generator)
        _check_language(model, engine, case, media, deviation, generator)
    return deviation.largest


def _check_media(
    model: Flamingo, engine: Engine, case: Case, deviation: Deviation, generator: torch.Generator
) -> dict[str, Tensor]:
    """Vision encoder and resampler; returns the reference's media keys and values, [M, Hx, L, d] by name."""
    config, specs = model.config, graph_specs(model.config)
    visuals = max(1, sum(map(len, case.visuals)))
    side = config.vision.image_size
    pixels = torch.randn(visuals * case.frames, 3, side, side, generator=generator)
    features = model.vision(pixels)
    found = _run(engine, VISION_ENCODER, {"pixel_values": pixels}, specs[VISION_ENCODER].outputs, {"N": len(pixels)})
    deviation.check(VISION_ENCODER, "features", case.name, found["features"], features)
    by_visual = features.unflatten(0, (visuals, case.frames)).contiguous()
    keys, values = model.cross_attention.keys_values(model.resampler(by_visual))
    parts = {"key": keys, "value": values}
    media = {media_name(layer, part): parts[part][layer] for layer, part in layer_parts(len(keys))}
    found = _run(engine, RESAMPLER, {"features": by_visual}, specs[RESAMPLER].outputs, {"M": visuals})
    for name, tensor in media.items():
        deviation.check(RESAMPLER, name, case.name, found[name], tensor)
    return media


def _run(engine: Engine, graph: str, inputs: dict[str, Tensor], outputs: Sequence, sizes: dict[str, int]) -> dict:
    arrays = {spec.name: np.empty(spec.resolve(sizes), dtype=spec.dtype) for spec in outputs}
    engine.bind(graph, {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}, arrays)()
    return arrays


def _check_language(
    model: Flamingo, engine: Engine, case: Case, media: dict[str, Tensor], deviation: Deviation,
    generator: torch.Generator,
) -> None:
    """Prefill, then the case's pieces, against one pass of the stateless model over all tokens."""
    language, rows = model.config.language, len(case.lengths)
    prompt, added = max(case.lengths), sum(case.pieces)
    input_ids = torch.randint(language.vocab_size, (rows, prompt + added), generator=generator)
    phi, by_row = _arrange(case, media, prompt + added)
    # Row by row, without padding: what comes after a row's prompt are the pieces' tokens.
    expected, caches = [], []
    for row, length in enumerate(case.lengths):
        ids = torch.cat([input_ids[row, :length], input_ids[row, prompt:]])[None]
        index = torch.cat([phi[row, :length], phi[row, prompt:]])[None]
        recorder = _Recorder()
        keys, values = ([by_row[name][row : row + 1] for name in by_row if name.endswith(p)] for p in ("key", "value"))
        positions = torch.arange(ids.shape[1])[None]
        expected.append(model.decode(ids, positions, index, keys, values, recorder)[0])
        caches.append(recorder.seen)
    cache = _empty_cache(model, rows, prompt + added)
    start, lengths = 0, np.array(case.lengths)
    for piece in (prompt, *case.pieces):
        taken = lengths if start == 0 else lengths + (start - prompt)
        cached = np.zeros(rows, dtype=np.int64) if start == 0 else taken
        logits = _piece(engine, model, input_ids, phi, by_row, cache, cached, slice(start, start + piece))
        for row in range(rows):
            tokens = int(lengths[row]) if start == 0 else piece
            begin = 0 if start == 0 else int(taken[row])
            wanted = expected[row][begin : begin + tokens]
            deviation.check(LANGUAGE_MODEL, "logits", case.name, logits[row, :tokens], wanted)
        start += piece
    for row, seen in enumerate(caches):
        for name, tensor in seen.items():
            found = cache[name.replace("present", "past_key_values")][row, :, : tensor.shape[2]]
            deviation.check(LANGUAGE_MODEL, name, case.name, found, tensor[0])


def _arrange(case: Case, media: dict[str, Tensor], tokens: int) -> tuple[Tensor, dict[str, Tensor]]:
    """phi [B, tokens], and media by row [B, V, Hx, L, d], zeros in unused slots."""
    slots = max(1, max(map(len, case.visuals)))
    phi = torch.zeros(len(case.visuals), tokens, dtype=torch.int64)
    by_row = {name: torch.zeros(len(case.visuals), slots, *tensor.shape[1:]) for name, tensor in media.items()}
    next_visual = 0
    for row, places in enumerate(case.visuals):
        for slot, place in enumerate(places):
            phi[row, place:] += 1
            for name, tensor in media.items():
                by_row[name][row, slot] = tensor[next_visual]
            next_visual += 1
    return phi, by_row


def _empty_cache(model: Flamingo, rows: int, capacity: int) -> dict[str, np.ndarray]:
    spec, parts = graph_specs(model.config)[LANGUAGE_MODEL], layer_parts(model.config.language.layers)
    sizes = {"B": rows, "C": capacity}
    return {past_name(*p): np.zeros(spec.input(past_name(*p)).resolve(sizes), dtype=np.float32) for p in parts}


def _piece(
    engine: Engine, model: Flamingo, input_ids: Tensor, phi: Tensor, by_row: dict[str, Tensor],
    cache: dict[str, np.ndarray], cached: np.ndarray, tokens: slice,
) -> np.ndarray:
    """Logits of all tokens of one call; the cache is extended in place."""
    rows, count = len(cached), tokens.stop - tokens.start
    logits = np.empty((rows, count, model.config.language.vocab_size), dtype=np.float32)
    inputs = {
        "input_ids": np.ascontiguousarray(input_ids[:, tokens].numpy()),
        "media_index": np.ascontiguousarray(phi[:, tokens].numpy()),
        "cache_length": cached.astype(np.int64),
        "logits_index": np.tile(np.arange(count), (rows, 1)),
        **{name: tensor.numpy() for name, tensor in by_row.items()},
    }
    present = {name.replace("past_key_values", "present"): array for name, array in cache.items()}
    engine.bind(LANGUAGE_MODEL, {**inputs, **cache}, {"logits": logits, **present})()
    return logits
