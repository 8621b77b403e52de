"""The reference outputs of a bundle: prompts, and samples of what its graphs gave for them when it was exported.

They are an uncompressed ``.npz`` of some hundred kilobytes, whatever the model's size: large arrays are kept at a fixed
sample of positions. Everything that a check needs is in the file, and nothing of it is made by rules that a later
version could change: token ids, pictures as coarse grids of colours, the sampled positions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import FEATURES, RESAMPLER, VISION_ENCODER, graph_specs
from flamingo_rt.errors import DataError
from flamingo_rt.json_files import parse_json
from flamingo_rt.printable import printable
from flamingo_rt.runtime.array_archive import DAMAGE, ArrayArchive

ABOUT, PICTURES = "about", "pictures"
# Limits on what is read: the file may come from a stranger.
MOST_ABOUT_BYTES, MOST_PROMPTS, MOST_PICTURES, MOST_SIDE = 100_000, 16, 64, 64
MOST_ANSWER, MOST_SAMPLED, MOST_FRAMES, LONGEST_NAME = 64, 4096, 64, 60  # frames: of all visuals of a prompt
MOST_TOKENS = 2048  # of a prompt
LIKELIEST = 8  # tokens whose logits are recorded at each position, before a sample of the others


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class ReferencePrompt:
    """A prompt and its greedy answer. ``input_ids`` and ``media_index`` int64 [T]; ``visuals``: for each picture or
    clip, which `ReferenceOutputs.pictures` its frames are.

    ``answer`` int64 [A] are the likeliest tokens one after the other, whatever ends an answer, and ``logprobs`` float32
    [A] their log-probabilities. ``logits`` float32 [A, L] are the logits before each of them, at the token ids
    ``logits_at`` int64 [A, L]: the likeliest ones first, then a sample of the vocabulary.
    """

    name: str
    input_ids: np.ndarray
    media_index: np.ndarray
    visuals: tuple[tuple[int, ...], ...]
    answer: np.ndarray
    logprobs: np.ndarray
    logits: np.ndarray
    logits_at: np.ndarray

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and its answer: what a cache must hold."""
        return len(self.input_ids) + len(self.answer)

    def margin(self, position: int, token: int) -> float:
        """Difference of the largest logit at a position of the answer and the logit of ``token``; for a token that was
        not recorded, that of the least likely of the `LIKELIEST`, which it is below."""
        at = np.flatnonzero(self.logits_at[position] == token)
        other = at[0] if len(at) else min(LIKELIEST, self.logits.shape[1]) - 1
        return float(self.logits[position, 0] - self.logits[position, other])


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class ReferenceOutputs:
    """``pictures`` uint8 [P, S, S, 3] are grids of colours. ``features`` float32 [P, n] are the vision encoder's
    outputs for each, at the positions ``features_at`` int64 [n] of the flattened array; ``media`` float32 [V, K, m] the
    resampler's K outputs for each visual of all prompts in order, at ``media_at`` int64 [m]."""

    prompts: tuple[ReferencePrompt, ...]
    pictures: np.ndarray
    features: np.ndarray
    features_at: np.ndarray
    media: np.ndarray
    media_at: np.ndarray

    def pixel_values(self, picture: int, size: int) -> np.ndarray:
        """The input of the vision encoder for one picture, float32 [1, 3, size, size]: from -2 to 2, in steps that
        half precision holds too."""
        return grid_pixels(self.pictures[picture], size)


def grid_pixels(grid: np.ndarray, size: int) -> np.ndarray:
    """A grid of colours uint8 [S, S, 3] as pixel values float32 [1, 3, size, size]."""
    nearest = np.arange(size) * len(grid) // size
    levels = grid[nearest][:, nearest].transpose(2, 0, 1)
    return np.ascontiguousarray(levels[None].astype(np.float32) / 64 - 2)


def spread_positions(size: int, count: int) -> np.ndarray:
    """``count`` positions of an array of ``size`` numbers, or all of them, int64 in ascending order: spread evenly, but
    at no regular distance."""
    if count >= size:
        return np.arange(size)
    golden = (math.sqrt(5) - 1) / 2
    return np.unique((np.arange(count) * golden % 1 * size).astype(np.int64))


def write_reference(path: Path, reference: ReferenceOutputs) -> None:
    """Write the file that `read_reference` reads."""
    prompts = reference.prompts
    about = {
        "prompts": [{"name": prompt.name, "visuals": prompt.visuals} for prompt in prompts],
        "pictures": len(reference.pictures), "side": reference.pictures.shape[1],
        "answer": len(prompts[0].answer), "logits": prompts[0].logits.shape[1],
    }
    arrays = {
        ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8), PICTURES: reference.pictures,
        "features_at": reference.features_at, "features": reference.features,
        "media_at": reference.media_at, "media": reference.media,
    }
    for index, prompt in enumerate(prompts):
        arrays |= {f"{index}.{name}": getattr(prompt, name) for name in _PROMPT_ARRAYS}
    contiguous: dict[str, Any] = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    np.savez(path, **contiguous)


# Type and dimensions of a prompt's arrays: T tokens, A of the answer, L sampled logits.
_PROMPT_ARRAYS = {
    "input_ids": ("int64", "T"), "media_index": ("int64", "T"), "answer": ("int64", "A"), "logprobs": ("float32", "A"),
    "logits": ("float32", "AL"), "logits_at": ("int64", "AL"),
}


def read_reference(path: Path, config: FlamingoConfig) -> ReferenceOutputs:
    """Read the reference outputs of a model with this configuration.

    Raises `DataError` for a file that is damaged or does not fit the model.
    """
    try:
        with ArrayArchive(path) as file:
            return _read(file, config)
    except DAMAGE as error:
        reason = printable(str(error))[:200]
        raise DataError(f"{path} is damaged ({reason}): copy the bundle again, or export the model again") from error


def _read(file: ArrayArchive, config: FlamingoConfig) -> ReferenceOutputs:
    about = parse_json(file.vector(ABOUT, "uint8", MOST_ABOUT_BYTES).tobytes())
    stated = about["prompts"]
    if not isinstance(stated, list) or not 1 <= len(stated) <= MOST_PROMPTS:
        raise ValueError(f"1 to {MOST_PROMPTS} prompts were expected")
    pictures, side = _count(about, "pictures", 0, MOST_PICTURES), _count(about, "side", 1, MOST_SIDE)
    sizes = {"A": _count(about, "answer", 1, MOST_ANSWER), "L": _count(about, "logits", 2, MOST_SAMPLED)}
    prompts = tuple(_read_prompt(file, index, entry, sizes, pictures, config) for index, entry in enumerate(stated))
    specs = graph_specs(config)
    features, media = specs[VISION_ENCODER].output(FEATURES), specs[RESAMPLER].outputs
    features_at = _positions(file, "features_at", math.prod(features.resolve({"N": 1})))
    media_at = _positions(file, "media_at", math.prod(media[0].resolve({"M": 1})))
    visuals = sum(len(prompt.visuals) for prompt in prompts)
    return ReferenceOutputs(
        prompts, file.array(PICTURES, "uint8", (pictures, side, side, 3)),
        _finite(file, "features", (pictures, len(features_at))), features_at,
        _finite(file, "media", (visuals, len(media), len(media_at))), media_at,
    )


def _read_prompt(
    file: ArrayArchive, index: int, about: Mapping[str, Any], sizes: Mapping[str, int], pictures: int,
    config: FlamingoConfig,
) -> ReferencePrompt:
    name, visuals = about["name"], about["visuals"]
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        raise ValueError(f"a prompt is called {str(name)[:LONGEST_NAME]!r}")
    _check_visuals(name, visuals, pictures, config)
    longest = min(config.language.context - sizes["A"], MOST_TOKENS)
    ids = file.vector(f"{index}.input_ids", "int64", longest)
    arrays = {
        key: file.array(f"{index}.{key}", dtype, tuple({"T": len(ids), **sizes}[letter] for letter in shape))
        for key, (dtype, shape) in _PROMPT_ARRAYS.items()
    }
    for key, most in (
        ("input_ids", config.language.vocab_size - 1), ("answer", config.language.vocab_size - 1),
        ("logits_at", config.language.vocab_size - 1), ("media_index", len(visuals)),
    ):
        if arrays[key].min() < 0 or arrays[key].max() > most:
            raise ValueError(f"{key} of {name!r} is not within 0 and {most}")
    indices = arrays["media_index"]
    if indices[-1] != len(visuals) or not np.isin(np.diff(indices, prepend=0), (0, 1)).all():
        raise ValueError(f"media_index of {name!r} does not count its {len(visuals)} visuals one after the other")
    for key in ("logits", "logprobs"):
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"{key} of {name!r} holds values that are not numbers")
    return ReferencePrompt(name, visuals=tuple(tuple(frames) for frames in visuals), **arrays)


def _check_visuals(name: str, visuals: Any, pictures: int, config: FlamingoConfig) -> None:
    """Raise `ValueError` unless ``visuals`` are lists of frames, each the number of one of the ``pictures``."""
    if not isinstance(visuals, list) or len(visuals) > config.max_visuals:
        raise ValueError(f"at most {config.max_visuals} visuals were expected in {name!r}")
    most_frames = config.resampler.max_frames or MOST_FRAMES
    for frames in visuals:
        if not isinstance(frames, list) or not 1 <= len(frames) <= most_frames:
            raise ValueError(f"1 to {most_frames} frames were expected of each visual in {name!r}")
        if not all(type(frame) is int and 0 <= frame < pictures for frame in frames):
            raise ValueError(f"{name!r} has a frame that is none of {pictures} pictures")
    if sum(map(len, visuals)) > MOST_FRAMES:
        raise ValueError(f"at most {MOST_FRAMES} frames were expected in {name!r}")


def _count(about: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = about[name]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {str(value)[:60]}, {least} to {most} was expected")
    return value


def _positions(file: ArrayArchive, name: str, size: int) -> np.ndarray:
    """Positions in an array of ``size`` numbers."""
    found = file.vector(name, "int64", MOST_SAMPLED)
    if found.min() < 0 or found.max() >= size:
        raise ValueError(f"{name} is not within 0 and {size - 1}")
    return found


def _finite(file: ArrayArchive, name: str, shape: Sequence[int]) -> np.ndarray:
    array = file.array(name, "float32", tuple(shape))
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not numbers")
    return array
