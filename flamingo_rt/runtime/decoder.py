"""One batch in flight: a cache allocated once, filled by prefill, extended in place token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import LANGUAGE_MODEL, RESAMPLER, GraphSpec, layer_parts, past_name, present_name
from flamingo_rt.runtime.engine import Engine
from flamingo_rt.runtime.media import VisualMedia, stack_rows


@dataclass(frozen=True)
class Row:
    """New tokens of one row: input_ids and media_index int64 [T]; media_index counts within ``media``, 0 is none."""

    input_ids: np.ndarray
    media_index: np.ndarray
    media: Sequence[VisualMedia]


@dataclass(frozen=True)
class Prefix:
    """The state after some tokens of one row: its cache [1, Hk, length, d] by name, and the media that later tokens
    may still look at."""

    cache: dict[str, np.ndarray]
    length: int
    media: tuple[VisualMedia, ...]


class Decoder:
    """Runs the language model over a batch of ``rows`` rows with room for ``capacity`` tokens each."""

    def __init__(
        self, engine: Engine, config: FlamingoConfig, specs: dict[str, GraphSpec], rows: int, capacity: int
    ) -> None:
        self._engine, self._config, self._specs = engine, config, specs
        self._parts = layer_parts(config.language.layers)
        spec, sizes = specs[LANGUAGE_MODEL], {"B": rows, "C": capacity}
        self._cache = {
            past_name(*part): np.zeros(spec.input(past_name(*part)).resolve(sizes), dtype=np.float32)
            for part in self._parts
        }
        self._capacity = capacity
        self.lengths = np.zeros(rows, dtype=np.int64)
        self._media: list[tuple[VisualMedia, ...]] = [()] * rows
        self._step: _Step | None = None

    def restore(self, prefix: Prefix) -> None:
        """Start every row from ``prefix``."""
        for name, array in prefix.cache.items():
            self._cache[name][:, :, : prefix.length] = array
        self.lengths[:] = prefix.length
        self._media = [prefix.media] * len(self.lengths)

    def prefix(self) -> Prefix:
        """A copy of the state of the only row."""
        length = int(self.lengths[0])
        cache = {name: array[:1, :, :length].copy() for name, array in self._cache.items()}
        return Prefix(cache, length, self._media[0])

    def prefill(self, rows: Sequence[Row]) -> np.ndarray:
        """Take each row's new tokens; returns the logits after the last of each, float32 [B, vocab]."""
        carried = [len(media) for media in self._media]
        media = [(*old, *row.media) for old, row in zip(self._media, rows, strict=True)]
        indexed = [
            Row(row.input_ids, row.media_index + count, all_media)
            for row, count, all_media in zip(rows, carried, media, strict=True)
        ]
        last = [np.array([len(row.input_ids) - 1]) for row in rows]
        if self.lengths.any() and len(rows) > 1:
            # Runtimes continue a filled cache with several tokens for one row at a time only.
            logits = [self._forward([row], slice(i, i + 1), [last[i]]) for i, row in enumerate(indexed)]
            result = np.concatenate(logits)
        else:
            result = self._forward(indexed, slice(0, len(rows)), last)
        self.lengths += [len(row.input_ids) for row in rows]
        # From here on tokens look at the last visual alone, unless the model attends to all.
        keep = None if self._config.cross_attention.attend == "all" else -1
        self._media = [tuple(row_media[keep:]) if row_media else () for row_media in media]
        return result[:, 0]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Take one token for each row, int64 [B]; returns the next logits [B, vocab], valid until the next step."""
        if self._step is None:
            self._step = self._bind_step()
        step = self._step
        step.input_ids[:, 0] = tokens
        # A row that has ended goes on beside the others; it must not write behind its buffer.
        np.minimum(self.lengths, self._capacity - 1, out=step.cache_length)
        step.run()
        self.lengths += 1
        return step.logits[:, 0]

    def peek(self, tokens: np.ndarray) -> np.ndarray:
        """Logits after each of some tokens, [T, vocab], were they appended to the only row; they are not kept."""
        phi = np.full(len(tokens), len(self._media[0]), dtype=np.int64)
        row = Row(tokens, phi, self._media[0])
        return self._forward([row], slice(0, 1), [np.arange(len(tokens))])[0]

    def _forward(self, rows: Sequence[Row], which: slice, wanted: Sequence[np.ndarray]) -> np.ndarray:
        """Logits [B, K, vocab] at each row's ``wanted`` positions; the cache of the rows ``which`` is extended."""
        length = max(len(row.input_ids) for row in rows)
        input_ids, media_index = (np.zeros((len(rows), length), dtype=np.int64) for _ in range(2))
        for index, row in enumerate(rows):  # right padding: what is behind a row's end is overwritten later
            input_ids[index, : len(row.input_ids)] = row.input_ids
            media_index[index, : len(row.media_index)] = row.media_index
        inputs = {
            "input_ids": input_ids,
            "media_index": media_index,
            "logits_index": np.stack(wanted).astype(np.int64),
            "cache_length": self.lengths[which].copy(),
            **stack_rows([row.media for row in rows], self._specs[RESAMPLER]),
        }
        logits, run = self._bind(inputs, {name: array[which] for name, array in self._cache.items()})
        run()
        return logits

    def _bind_step(self) -> _Step:
        rows = len(self.lengths)
        step = _Step(
            input_ids=np.zeros((rows, 1), dtype=np.int64),
            cache_length=self.lengths.copy(),
            logits=np.empty(0),
            run=lambda: None,
        )
        inputs = {
            "input_ids": step.input_ids,
            "cache_length": step.cache_length,
            "media_index": np.array([[len(media)] for media in self._media], dtype=np.int64),
            "logits_index": np.zeros((rows, 1), dtype=np.int64),
            **stack_rows(self._media, self._specs[RESAMPLER]),
        }
        step.logits, step.run = self._bind(inputs, self._cache)
        return step

    def _bind(
        self, inputs: dict[str, np.ndarray], cache: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, Callable[[], None]]:
        rows, wanted = inputs["logits_index"].shape
        logits = np.empty((rows, wanted, self._config.language.vocab_size), dtype=np.float32)
        present = {present_name(*part): cache[past_name(*part)] for part in self._parts}
        return logits, self._engine.bind(LANGUAGE_MODEL, {**inputs, **cache}, {"logits": logits, **present})


@dataclass
class _Step:
    """The buffers of the one-token step, bound once."""

    input_ids: np.ndarray
    cache_length: np.ndarray
    logits: np.ndarray
    run: Callable[[], None]
