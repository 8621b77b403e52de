"""The reference outputs that a bundle carries: prompts in the model's own form, answered by the graphs as exported.

All prompts are answered as one batch, so a language model of gigabytes is read `ANSWER` times. A device answers them
alone, in a batch and after a prefix (`flamingo_rt.runtime.verification`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flamingo_rt.backend import Backend
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import FEATURES, GRAPHS, RESAMPLER, VISION_ENCODER
from flamingo_rt.errors import ParityError
from flamingo_rt.processing.prompt import Part, Prompt, build_prompt
from flamingo_rt.processing.tasks import caption_prompt, question_prompt
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.processing.visuals import Image
from flamingo_rt.runtime.decoder import Decoder, Row
from flamingo_rt.runtime.reference_outputs import (
    LIKELIEST,
    ReferenceOutputs,
    ReferencePrompt,
    grid_pixels,
    spread_positions,
)
from flamingo_rt.runtime.sampling import log_softmax
from flamingo_rt.runtime.timing import StageTimer
from flamingo_rt.runtime.verification import as_float
from flamingo_rt.runtime.visual_encoder import VisualMedia, encode_frames, resample

SEED = 0
# Cells of a picture's side: patches of 14 or 16 pixels do not end where these do, so there are edges in them.
SIDE = 24
SHOTS = ("a red circle", "two blue stars")  # captions of the pictures before the query
FRAMES = 3
ANSWER = 16  # tokens
FEATURES_SAMPLED, MEDIA_SAMPLED = 512, 64  # of a picture; of each key and value of a visual
LOGITS_SAMPLED = 56  # of the logits at a position, beside the `LIKELIEST`


@dataclass(frozen=True)
class _Asked:
    """A prompt, and for each of its visuals which pictures its frames are."""

    name: str
    prompt: Prompt
    visuals: tuple[tuple[int, ...], ...]


class Recording:
    """Reference outputs in the making: `encode` with a backend that has the vision encoder and the resampler, then
    `answer` with one that has the language model. Not all weights need to be in memory at once."""

    def __init__(self, config: FlamingoConfig, tokenizer: TextTokenizer) -> None:
        self._config = config
        self._length = min(ANSWER, config.language.context // 4)
        asked = _prompts(config, tokenizer)
        self._asked = [one for one in asked if len(one.prompt) + self._length <= config.language.context]
        frames = [picture for one in self._asked for visual in one.visuals for picture in visual]
        self._pictures = _pictures(max(frames, default=-1) + 1)
        self._media: list[list[VisualMedia]] = []

    @property
    def possible(self) -> bool:
        """Whether any prompt fits into the model's context."""
        return bool(self._asked) and self._length > 1

    def encode(self, backend: Backend) -> None:
        """Record the features of every picture and the media of every visual."""
        size, specs, timer = self._config.vision.image_size, backend.specs, StageTimer()
        spec, media_specs = specs[VISION_ENCODER].output(FEATURES), specs[RESAMPLER].outputs
        features = encode_frames(backend, [grid_pixels(picture, size) for picture in self._pictures], timer)
        self._features_at = spread_positions(int(np.prod(spec.resolve({"N": 1}))), FEATURES_SAMPLED)
        self._features = _sampled([as_float(array, spec) for array in features], self._features_at)
        for one in self._asked:
            frames = [np.concatenate([features[picture] for picture in visual]) for visual in one.visuals]
            self._media.append(resample(backend, frames, timer))
        self._media_at = spread_positions(int(np.prod(media_specs[0].resolve({"M": 1}))), MEDIA_SAMPLED)
        self._media_sampled = np.array([
            _sampled([as_float(media[tensor.name], tensor) for tensor in media_specs], self._media_at)
            for visuals in self._media for media in visuals
        ], np.float32).reshape(-1, len(media_specs), len(self._media_at))

    def answer(self, backend: Backend) -> ReferenceOutputs:
        """Answer all prompts greedily, and return everything that was recorded. Raises `ParityError` when logits are
        not numbers."""
        rows = [
            Row(one.prompt.input_ids, one.prompt.media_index, media)
            for one, media in zip(self._asked, self._media, strict=True)
        ]
        capacity = max(len(one.prompt) for one in self._asked) + self._length
        with Decoder(backend, self._config, len(rows), capacity) as decoder:
            positions = [_Position.of(decoder.prefill(rows))]
            while len(positions) < self._length:
                positions.append(_Position.of(decoder.step(positions[-1].tokens)))
        prompts = tuple(
            ReferencePrompt(
                one.name, one.prompt.input_ids, one.prompt.media_index, one.visuals,
                np.array([position.tokens[row] for position in positions]),
                np.array([position.logprobs[row] for position in positions], np.float32),
                np.array([position.logits[row] for position in positions], np.float32),
                np.array([position.logits_at[row] for position in positions]),
            )
            for row, one in enumerate(self._asked)
        )
        return ReferenceOutputs(
            prompts, self._pictures, self._features, self._features_at, self._media_sampled, self._media_at
        )


@dataclass(frozen=True)
class _Position:
    """Record of one position of all answers: the likeliest ``tokens`` and their ``logprobs`` [B], and ``logits`` [B, L]
    at the ids ``logits_at``."""

    tokens: np.ndarray
    logprobs: np.ndarray
    logits: np.ndarray
    logits_at: np.ndarray

    @staticmethod
    def of(logits: np.ndarray) -> _Position:
        """Sample logits float32 [B, vocab]."""
        if not np.isfinite(logits).all():
            raise ParityError("the language model's logits are not numbers; no bundle was written")
        vocab = logits.shape[1]
        likeliest = np.argsort(-logits, axis=1, kind="stable")[:, :LIKELIEST]
        spread = spread_positions(vocab, LOGITS_SAMPLED)
        others = np.broadcast_to(spread, (len(logits), len(spread)))
        at = np.concatenate([likeliest, others], axis=1)
        tokens = likeliest[:, 0]
        logprobs = np.array([log_softmax(row)[token] for row, token in zip(logits, tokens, strict=True)])
        return _Position(tokens, logprobs, np.take_along_axis(logits, at, axis=1), at)


def _prompts(config: FlamingoConfig, tokenizer: TextTokenizer) -> list[_Asked]:
    """Prompts in the model's own form: without a picture, with one, with several, with a clip."""
    blank = Image(b"")  # not opened while a prompt is built
    shots = SHOTS[: max(0, config.max_visuals - 1)]
    frames = min(FRAMES, config.resampler.max_frames or FRAMES)
    several = tuple((1 + number,) for number in range(len(shots) + 1))
    clip = tuple(1 + len(shots) + number for number in range(frames))
    asked: list[tuple[str, list[Part], tuple[tuple[int, ...], ...]]] = [
        ("text", question_prompt(config, [], "What color is the star?"), ()),
        ("one picture", caption_prompt(config, blank), ((0,),)),
        ("several pictures", caption_prompt(config, blank, [(blank, shot) for shot in shots]), several),
        ("clip", caption_prompt(config, blank), (clip,)),
    ]
    return [
        _Asked(name, build_prompt(parts, tokenizer), visuals)
        for name, parts, visuals in asked if len(visuals) <= config.max_visuals
    ]


def _pictures(count: int) -> np.ndarray:
    """Random grids of colours, uint8 [P, SIDE, SIDE, 3]: patches of one colour, with noise."""
    generator = np.random.default_rng(SEED)
    patches = generator.integers(0, 192, (count, SIDE // 6, SIDE // 6, 3), dtype=np.uint8)
    noise = generator.integers(0, 64, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return patches.repeat(6, axis=1).repeat(6, axis=2) + noise


def _sampled(arrays: list[np.ndarray], positions: np.ndarray) -> np.ndarray:
    """Values float32 [arrays, n] at positions of each flattened array."""
    return np.array([array.reshape(-1)[positions] for array in arrays], np.float32).reshape(len(arrays), len(positions))


# Tolerances: how far another backend or device may be from the reference, relative to a tensor's scale.

# Half precision is judged by how much it makes PyTorch itself deviate; other kernels round in other places. Quantized
# weights are the same numbers in the reference and on the device, so rounding is again the only difference
# (tests/export/quantization/test_quantized_half_precision.py measures it with every operator's result rounded).
TIMES_ROUNDING = 4.0
LEAST_UNITS = 8.0  # of rounding, where that cost is next to nothing
UNITS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
# Where activations are rounded to 8 bits, a difference in the last bit of a float32 becomes one in the last of the 8.
# Batches, numbers of threads and instruction sets all make such differences.
QUANTIZED_ACTIVATIONS = 0.05


def accepted_deviation(
    exact: float, compute: str, rounding: Mapping[str, float] | None, quantized_activations: bool
) -> dict[str, float]:
    """The tolerance of each graph. ``exact`` is that of float32; ``rounding`` is what half precision costs PyTorch in
    each graph, None for graphs that compute in float32; with ``quantized_activations`` the graphs round them to 8
    bits."""
    if rounding is None:
        return dict.fromkeys(GRAPHS, max(exact, QUANTIZED_ACTIVATIONS) if quantized_activations else exact)
    unit = UNITS[compute]
    return {name: max(LEAST_UNITS * unit, TIMES_ROUNDING * rounding[name]) for name in GRAPHS}
