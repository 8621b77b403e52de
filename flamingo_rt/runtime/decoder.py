"""One batch: a decoder opens a cache, fills it by prefill, extends it in place by one or more tokens, and closes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamingo_rt.backend import Backend, GreedySteps, present_buffers
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import (
    CACHE_LENGTH,
    INPUT_IDS,
    LANGUAGE_MODEL,
    LOGITS,
    LOGITS_INDEX,
    MEDIA_INDEX,
    NEXT_LOGPROB,
    NEXT_TOKEN,
    RESAMPLER,
)
from flamingo_rt.runtime.visual_encoder import VisualMedia, stack_rows


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
    """Runs the language model over a batch of ``rows`` rows with room for ``capacity`` tokens each.

    It opens a cache of the backend and closes it at the end: use it in a ``with`` block, or call `close`.
    """

    def __init__(self, backend: Backend, config: FlamingoConfig, rows: int, capacity: int) -> None:
        """Raises `DataError` for more tokens than the backend takes, or than there is memory for."""
        self._backend, self._config = backend, config
        self._capacity = capacity
        self._cache = backend.cache(rows, capacity)
        self.lengths = np.zeros(rows, dtype=np.int64)
        self._media: list[tuple[VisualMedia, ...]] = [()] * rows
        self._common = 0  # tokens that all rows have in common since `expand_rows`
        self._steps: dict[int, _Step] = {}
        self._greedy_steps: GreedySteps | None = None
        self._step_media: dict[str, np.ndarray] | None = None  # shared by all steps: they look at the same visuals

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the steps bound to the cache, then close it. Closing twice does nothing."""
        self._drop_steps()
        self._cache.close()

    @property
    def runs_ahead(self) -> bool:
        """Whether a greedy step begins before the tokens of the previous one are known."""
        return self._backend.steps_ahead > 0

    def restore(self, prefix: Prefix) -> None:
        """Start every row from ``prefix``."""
        self._cache.restore(prefix.cache, prefix.length)
        self.lengths[:] = prefix.length
        self._media = [prefix.media] * len(self.lengths)

    def prefix(self) -> Prefix:
        """A copy of the state of the only row."""
        length = int(self.lengths[0])
        # The media too: they may be parts of larger arrays, which would be kept as long as the prefix.
        media = tuple({name: array.copy() for name, array in visual.items()} for visual in self._media[0])
        return Prefix(self._cache.save(length), length, media)

    def prefill(self, rows: Sequence[Row]) -> np.ndarray:
        """Take each row's new tokens; returns the logits after the last of each, float32 [B, vocab]."""
        carried = [len(media) for media in self._media]
        media = [(*old, *row.media) for old, row in zip(self._media, rows, strict=True)]
        indexed = [
            Row(row.input_ids, row.media_index + count, all_media)
            for row, count, all_media in zip(rows, carried, media, strict=True)
        ]
        last = [np.array([len(row.input_ids) - 1]) for row in rows]
        if self.lengths.any() and len(rows) > 1 and not self._backend.continues_batches:
            logits = [
                self._forward([row], self.lengths[i : i + 1], [last[i]], self._cache.row(i))
                for i, row in enumerate(indexed)
            ]
            result = np.concatenate(logits)
        else:
            result = self._forward(indexed, self.lengths, last, self._cache.buffers())
        self.lengths += [len(row.input_ids) for row in rows]
        # From here on tokens look at the last visual alone, unless the model attends to all.
        keep = None if self._config.cross_attention.attend == "all" else -1
        self._media = [tuple(row_media[keep:]) if row_media else () for row_media in media]
        return result[:, 0]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Take one token for each row, int64 [B]; returns the next logits [B, vocab], valid until the next step."""
        return self._append(tokens[:, None])[:, 0]

    def extend(self, tokens: np.ndarray) -> np.ndarray:
        """Take several tokens for the only row, int64 [T], where there is room for them; returns the logits after each,
        [T, vocab], valid until as many are taken again."""
        return self._append(tokens[None])[0]

    def step_greedily(self, tokens: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Take one token for each row, int64 [B], then in each step the likeliest token of the previous one. Yields the
        tokens chosen by each of at most ``most`` steps, int64 [B], and their log-probabilities, float32 [B]."""
        if self._greedy_steps is None:
            self._greedy_steps = self._bind_greedy_steps()
        steps, enqueued = self._greedy_steps, 0
        steps.begin(tokens)
        try:
            for done in range(most):
                while enqueued < min(most, done + 1 + self._backend.steps_ahead):
                    steps.enqueue(self._bounded(self.lengths + (enqueued - done), 1))
                    enqueued += 1
                chosen = steps.wait_next()
                self.lengths += 1
                yield chosen
        finally:
            steps.finish()  # steps that ran ahead wrote beyond the rows' ends, where the next tokens will be written

    def rewind(self, length: int) -> None:
        """Shorten the only row to its first ``length`` tokens; the next tokens overwrite the rest."""
        self.lengths[0] = length

    def expand_rows(self, rows: int) -> None:
        """Make the only row ``rows`` equal rows; nothing is computed again."""
        length = int(self.lengths[0])
        self._drop_steps()  # they hold the buffers of one row
        self._cache = self._cache.expand_rows(rows, length)
        self.lengths = np.full(rows, length)
        self._media = self._media * rows
        self._common = length

    def reorder(self, parents: Sequence[int]) -> None:
        """Continue each row from the tokens of row ``parents[row]``, in place. All rows must have the same length and
        come from one `expand_rows`: the tokens since then are copied, for the rows that change."""
        moved = [row for row, parent in enumerate(parents) if parent != row]
        since = slice(self._common, int(self.lengths[0]))
        if not moved or since.start == since.stop:
            return
        self._cache.copy_rows(moved, [parents[row] for row in moved], since)

    def _append(self, tokens: np.ndarray) -> np.ndarray:
        """Append tokens [B, T] to the rows; returns the logits after each, [B, T, vocab]."""
        count = tokens.shape[1]
        if count not in self._steps:
            self._steps[count] = self._bind_step(count)
        step = self._steps[count]
        step.input_ids[:] = tokens
        step.cache_length[:] = self._bounded(self.lengths, count)
        step.run()
        self.lengths += count
        return step.logits

    def _bounded(self, lengths: np.ndarray, count: int) -> np.ndarray:
        """``lengths``, cut so that ``count`` tokens fit: a row that has ended still runs beside the others."""
        return np.minimum(lengths, self._capacity - count)

    def _forward(
        self, rows: Sequence[Row], lengths: np.ndarray, wanted: Sequence[np.ndarray], cache: Mapping[str, Any]
    ) -> np.ndarray:
        """Logits [B, K, vocab] at each row's ``wanted`` positions; the rows' ``cache``, filled up to ``lengths``, is
        extended."""
        length = max(len(row.input_ids) for row in rows)
        input_ids, media_index = (np.zeros((len(rows), length), dtype=np.int64) for _ in range(2))
        for index, row in enumerate(rows):  # right padding: cache slots beyond a row's end are overwritten later
            input_ids[index, : len(row.input_ids)] = row.input_ids
            media_index[index, : len(row.media_index)] = row.media_index
        inputs = {
            INPUT_IDS: input_ids,
            MEDIA_INDEX: media_index,
            LOGITS_INDEX: np.stack(wanted).astype(np.int64),
            CACHE_LENGTH: lengths.copy(),
            **stack_rows([row.media for row in rows], self._backend.specs[RESAMPLER]),
        }
        logits = self._logits(*inputs[LOGITS_INDEX].shape)
        self._backend.bind(LANGUAGE_MODEL, {**inputs, **cache}, {LOGITS: logits, **present_buffers(cache)})()
        return logits

    def _bind_step(self, count: int) -> _Step:
        """A step that takes ``count`` tokens a row and gives the logits after each."""
        inputs, cache = self._step_inputs(count), self._cache.buffers()
        logits = self._logits(len(self.lengths), count)
        run = self._backend.bind(
            LANGUAGE_MODEL, {**inputs, **cache}, {LOGITS: logits, **present_buffers(cache)}, _constant(inputs)
        )
        return _Step(inputs[INPUT_IDS], inputs[CACHE_LENGTH], logits, run)

    def _bind_greedy_steps(self) -> GreedySteps:
        """Steps that take one token a row and choose the likeliest next one."""
        inputs, rows = self._step_inputs(1), len(self.lengths)
        chosen = {NEXT_TOKEN: np.empty((rows, 1), np.int64), NEXT_LOGPROB: np.empty((rows, 1), np.float32)}
        return self._backend.bind_greedy_steps(self._cache, inputs, chosen, _constant(inputs))

    def _drop_steps(self) -> None:
        """Forget the bound steps: they hold the cache's buffers."""
        self._steps.clear()
        self._greedy_steps = self._step_media = None

    def _step_inputs(self, count: int) -> dict[str, np.ndarray]:
        """Inputs of a step of ``count`` tokens a row, without the cache."""
        rows = len(self.lengths)
        if self._step_media is None:
            self._step_media = stack_rows(self._media, self._backend.specs[RESAMPLER])
        return {
            INPUT_IDS: np.zeros((rows, count), dtype=np.int64),
            CACHE_LENGTH: self.lengths.copy(),
            MEDIA_INDEX: np.array([[len(row_media)] * count for row_media in self._media], dtype=np.int64),
            LOGITS_INDEX: np.tile(np.arange(count), (rows, 1)),
            **self._step_media,
        }

    def _logits(self, rows: int, wanted: int) -> np.ndarray:
        return np.empty((rows, wanted, self._config.language.vocab_size), dtype=np.float32)


def _constant(inputs: dict[str, np.ndarray]) -> list[str]:
    """Names of the inputs that are the same in all steps."""
    return [name for name in inputs if name not in (INPUT_IDS, CACHE_LENGTH)]


@dataclass(frozen=True)
class _Step:
    """A bound step of one or several tokens a row, and its buffers."""

    input_ids: np.ndarray
    cache_length: np.ndarray
    logits: np.ndarray
    run: Callable[[], None]
