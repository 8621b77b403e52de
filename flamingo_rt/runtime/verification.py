"""Whether a backend computes what the bundle's graphs computed at export; without PyTorch, so on a device too.

The prompts of the reference outputs go the way that prompts of users go: pictures through the vision encoder and the
resampler, alone and in a ragged batch, after a prefix that was read before, by prefill, greedy steps, steps whose
logits are read, and several tokens at once. Each graph is given what this backend computed before it, so a deviation of
the vision encoder shows in the graphs after it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flamingo_rt.backend import Backend
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import FEATURES, GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER, Limits, TensorSpec
from flamingo_rt.errors import DataError
from flamingo_rt.runtime.batch_memory import Prefill, check_memory
from flamingo_rt.runtime.decoder import Decoder, Row
from flamingo_rt.runtime.reference_outputs import ReferenceOutputs, ReferencePrompt
from flamingo_rt.runtime.timing import StageTimer
from flamingo_rt.runtime.visual_encoder import VisualMedia, encode_frames, resample

MASKED = 1e4  # a logit beyond this says "never"; it must not set the scale of the others
SEVERAL = 4  # tokens that are taken at once, as those that were guessed ahead


@dataclass(frozen=True)
class GraphDeviation:
    """The largest deviation of one graph's outputs from the reference, relative to a tensor's scale (at least 1), what
    is accepted, and where it was found, None for a graph that no prompt ran. ``deviation`` is infinite where an output
    is not a number."""

    graph: str
    deviation: float
    tolerance: float
    where: str | None

    @property
    def accepted(self) -> bool:
        """Whether the deviation is within the tolerance."""
        return self.deviation <= self.tolerance


@dataclass(frozen=True)
class TokenDifference:
    """The first greedy token of an answer that is not the reference's, ``position`` tokens into the answer. ``margin``
    is the difference of the two tokens' logits in the reference, relative to the scale of the logits."""

    where: str
    position: int
    found: int
    expected: int
    margin: float
    tolerance: float

    @property
    def accepted(self) -> bool:
        """Whether rounding can have swapped the two: each logit may be off by the tolerance."""
        return self.margin <= 2 * self.tolerance


@dataclass(frozen=True)
class Verification:
    """The result. ``equal_tokens`` of ``compared_tokens`` greedy tokens are the reference's: an answer counts up to its
    first difference. ``left_out`` are prompts that are beyond the limits of compiled engines."""

    graphs: tuple[GraphDeviation, ...]
    equal_tokens: int
    compared_tokens: int
    differences: tuple[TokenDifference, ...]
    left_out: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every graph is within its tolerance, and no token differs that must not."""
        return all(graph.accepted for graph in self.graphs) and all(one.accepted for one in self.differences)


def verify(
    backend: Backend, config: FlamingoConfig, reference: ReferenceOutputs, tolerance: Mapping[str, float],
    on_prompt: Callable[[int], None] = lambda count: None,
) -> Verification:
    """Run the prompts of ``reference`` on a backend, and compare its outputs and greedy tokens; ``tolerance`` is the
    largest deviation accepted of each graph. ``on_prompt`` is called with 1 for each prompt.

    Raises `DataError` when the backend takes none of the prompts, cannot run them, or has too little memory for them.
    """
    taken, left_out = _split_by_limits(reference.prompts, backend.limits)
    if not taken:
        raise DataError(
            f"the engines' limits are too small for every reference prompt ({', '.join(left_out)}): build them for more"
        )
    check = _Check(backend, config, reference, tolerance)
    rows: list[tuple[ReferencePrompt, Row]] = []
    visuals = 0
    for prompt in reference.prompts:
        if prompt in taken:
            row = Row(prompt.input_ids, prompt.media_index, check.media(prompt, visuals))
            rows.append((prompt, row))
            check.alone(prompt, row)
            if len(prompt.visuals) > 1:
                check.behind_a_prefix(prompt, row)
        visuals += len(prompt.visuals)
        on_prompt(1)
    batch = rows if backend.limits is None else rows[: backend.limits.batch]
    if len(batch) > 1:
        check.together(batch)
    return check.result(left_out)


def _split_by_limits(
    prompts: Sequence[ReferencePrompt], limits: Limits | None
) -> tuple[list[ReferencePrompt], tuple[str, ...]]:
    """The prompts that fit, and the names of the others."""
    fitting = [
        prompt for prompt in prompts
        if limits is None or (
            len(prompt.input_ids) <= limits.tokens and prompt.tokens <= limits.capacity
            and len(prompt.visuals) <= limits.visuals
            and max(map(len, prompt.visuals), default=0) <= limits.frames
        )
    ]
    return fitting, tuple(prompt.name for prompt in prompts if prompt not in fitting)


@dataclass
class _Worst:
    """The largest deviation so far, and where."""

    deviation: float = 0.0
    where: str | None = None

    def take(self, deviation: float, where: str) -> None:
        deviation = math.inf if math.isnan(deviation) else deviation
        if self.where is None or deviation > self.deviation:
            self.deviation, self.where = deviation, where


@dataclass
class _Tokens:
    """Greedy tokens compared so far."""

    equal: int = 0
    compared: int = 0
    differences: list[TokenDifference] = field(default_factory=list)


class _Check:
    """One backend's outputs against the reference."""

    def __init__(
        self, backend: Backend, config: FlamingoConfig, reference: ReferenceOutputs, tolerance: Mapping[str, float]
    ) -> None:
        self._backend, self._config, self._reference, self._tolerance = backend, config, reference, tolerance
        self._worst = {name: _Worst() for name in GRAPHS}
        self._tokens = _Tokens()

    def result(self, left_out: tuple[str, ...]) -> Verification:
        """All that was compared."""
        graphs = tuple(
            GraphDeviation(name, worst.deviation, self._tolerance[name], worst.where)
            for name, worst in self._worst.items()
        )
        tokens = self._tokens
        return Verification(graphs, tokens.equal, tokens.compared, tuple(tokens.differences), left_out)

    def media(self, prompt: ReferencePrompt, first: int) -> list[VisualMedia]:
        """Encode a prompt's visuals; ``first`` is the number of the first one in the reference."""
        reference, size, timer = self._reference, self._config.vision.image_size, StageTimer()
        specs = self._backend.specs
        pixels = [
            np.concatenate([reference.pixel_values(picture, size) for picture in frames]) for frames in prompt.visuals
        ]
        features = encode_frames(self._backend, pixels, timer)
        media = resample(self._backend, features, timer)
        feature_spec, media_specs = specs[VISION_ENCODER].output(FEATURES), specs[RESAMPLER].outputs
        for number, (frames, encoded) in enumerate(zip(prompt.visuals, features, strict=True)):
            for picture, frame in zip(frames, encoded, strict=True):
                found, expected = as_float(frame, feature_spec), reference.features[picture]
                self._worst[VISION_ENCODER].take(
                    _sampled_deviation(found, reference.features_at, expected), f"{FEATURES} of picture {picture + 1}"
                )
            for index, spec in enumerate(media_specs):
                found, expected = as_float(media[number][spec.name], spec), reference.media[first + number, index]
                self._worst[RESAMPLER].take(
                    _sampled_deviation(found, reference.media_at, expected),
                    f"{spec.name} of visual {number + 1} of '{prompt.name}'",
                )
        return media

    def alone(self, prompt: ReferencePrompt, row: Row) -> None:
        """Prefill and greedy steps; then the same answer again, several tokens at once and one by one."""
        where, length = f"'{prompt.name}'", len(prompt.input_ids)
        with self._decoder(1, prompt.tokens) as decoder:
            logits = decoder.prefill([row])
            self._logits(prompt, 0, logits[0], f"{where}, prefill")
            self._greedy(decoder, [prompt], logits, where)
            decoder.rewind(length)
            several = min(SEVERAL, len(prompt.answer) - 1)
            if several:
                for position, found in enumerate(decoder.extend(prompt.answer[:several])):
                    self._logits(prompt, position + 1, found, f"{where}, {several} tokens at once")
            self._steps(decoder, [prompt], several, where)

    def behind_a_prefix(self, prompt: ReferencePrompt, row: Row) -> None:
        """Read everything before the last visual, and let another decoder continue from that prefix, as from a compiled
        prompt."""
        where, cut = f"'{prompt.name}' after a prefix", int(np.argmax(row.media_index))
        before = len(row.media) - 1
        with self._decoder(1, cut) as reading:
            reading.prefill([Row(row.input_ids[:cut], row.media_index[:cut], row.media[:before])])
            prefix = reading.prefix()
        with self._decoder(1, prompt.tokens) as decoder:
            decoder.restore(prefix)
            logits = decoder.prefill([Row(row.input_ids[cut:], row.media_index[cut:] - before, row.media[before:])])
            self._logits(prompt, 0, logits[0], f"{where}, prefill")
            self._greedy(decoder, [prompt], logits, where)

    def together(self, rows: Sequence[tuple[ReferencePrompt, Row]]) -> None:
        """All prompts as one ragged batch: prefill and greedy steps; then the same answers again, one by one."""
        prompts = [prompt for prompt, _ in rows]
        with self._decoder(len(rows), max(prompt.tokens for prompt in prompts)) as decoder:
            logits = decoder.prefill([row for _, row in rows])
            for prompt, found in zip(prompts, logits, strict=True):
                self._logits(prompt, 0, found, f"'{prompt.name}' in a batch, prefill")
            self._greedy(decoder, prompts, logits, "in a batch")
            decoder.lengths[:] = [len(prompt.input_ids) for prompt in prompts]
            self._steps(decoder, prompts, 0, "in a batch")

    def _decoder(self, rows: int, capacity: int) -> Decoder:
        visuals = max(len(prompt.visuals) for prompt in self._reference.prompts)
        check_memory(self._backend, rows, capacity, visuals, prefill=Prefill(self._config, capacity))
        return Decoder(self._backend, self._config, rows, capacity)

    def _steps(self, decoder: Decoder, prompts: Sequence[ReferencePrompt], start: int, where: str) -> None:
        """Take the reference's tokens from ``start`` on, one at a time, and compare the logits after each."""
        for position in range(start, len(prompts[0].answer) - 1):
            logits = decoder.step(np.array([prompt.answer[position] for prompt in prompts]))
            for prompt, found in zip(prompts, logits, strict=True):
                self._logits(prompt, position + 1, found, f"'{prompt.name}' {where}" if len(prompts) > 1 else where)

    def _greedy(
        self, decoder: Decoder, prompts: Sequence[ReferencePrompt], logits: np.ndarray, where: str
    ) -> None:
        """Let the answers grow greedily after the prompts' ``logits`` [B, vocab], and compare tokens and
        log-probabilities."""
        tokens = [logits.argmax(axis=-1)]
        logprobs = []
        for chosen, logprob in decoder.step_greedily(tokens[0], len(prompts[0].answer) - 1):
            tokens.append(chosen)
            logprobs.append(logprob)
        for index, prompt in enumerate(prompts):
            place = where if len(prompts) == 1 else f"'{prompt.name}' {where}"
            found = np.array([step[index] for step in tokens])
            equal = self._compare_tokens(prompt, found, place)
            for position, logprob in enumerate(logprobs[: equal - 1 if equal else 0], start=1):
                # The token's logit and the sum over the vocabulary may both be off.
                off = abs(float(logprob[index]) - float(prompt.logprobs[position])) / (2 * _scale(prompt.logits))
                self._worst[LANGUAGE_MODEL].take(off, f"{place}, log-probability of token {position + 1}")

    def _compare_tokens(self, prompt: ReferencePrompt, found: np.ndarray, where: str) -> int:
        """The number of tokens up to the first one that differs."""
        differs = np.flatnonzero(found != prompt.answer)
        equal = int(differs[0]) if len(differs) else len(found)
        self._tokens.equal += equal
        self._tokens.compared += min(equal + 1, len(found))
        if len(differs):
            self._tokens.differences.append(TokenDifference(
                where, equal, int(found[equal]), int(prompt.answer[equal]),
                prompt.margin(equal, int(found[equal])) / _scale(prompt.logits), self._tolerance[LANGUAGE_MODEL],
            ))
        return equal

    def _logits(self, prompt: ReferencePrompt, position: int, found: np.ndarray, where: str) -> None:
        """Compare logits [vocab] before a token of the answer."""
        deviation = _sampled_deviation(
            found, prompt.logits_at[position], prompt.logits[position], _scale(prompt.logits)
        )
        self._worst[LANGUAGE_MODEL].take(deviation, f"{where}, logits before token {position + 1}")


def _sampled_deviation(
    found: np.ndarray, positions: np.ndarray, expected: np.ndarray, scale: float | None = None
) -> float:
    """`relative_deviation` at positions of the flattened array; infinite where any of it is not a number."""
    if not np.isfinite(found).all():
        return math.inf
    return relative_deviation(found.reshape(-1)[positions], expected, scale)


def relative_deviation(found: np.ndarray, expected: np.ndarray, scale: float | None = None) -> float:
    """The largest deviation relative to ``scale``, by default that of the expected values; NaN for one that is not a
    number. Values beyond `MASKED` are compared relative to themselves."""
    size = np.abs(expected)
    each = np.maximum(size * (size >= MASKED), _scale(expected) if scale is None else scale)
    return float((np.abs(found - expected) / each).max(initial=0.0))


def _scale(values: np.ndarray) -> float:
    """The largest size of values that are not masked, at least 1."""
    size = np.abs(values)
    return max(1.0, float(size.max(where=size < MASKED, initial=0.0)))


def as_float(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """An array of the type of ``spec`` in float32; numpy keeps bfloat16 as its bits."""
    if spec.dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)
