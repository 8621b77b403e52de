"""Calibration prompts as cases of the comparison with PyTorch: tokenized, with their pictures encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.export.checks.parity_cases import Case, Expected, Reference, encode_media
from flamingo_rt.export.quantization.calibration import CalibrationPrompt
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.processing.preprocess import visual_pixels
from flamingo_rt.processing.prompt import Prompt, build_prompt
from flamingo_rt.processing.tokenizer import TextTokenizer

STEPWISE = 3  # last tokens of each prompt, decoded one by one
PICTURES_AT_ONCE = 8  # in the encoder: some hundred megabytes of activations in a large model


@torch.no_grad()
def encode_prompts(
    model: Flamingo, tokenizer: TextTokenizer, prompts: Sequence[CalibrationPrompt],
    on_step: Callable[[int], None] = lambda count: None,
) -> Reference:
    """Turn prompts into cases with the media that ``model`` computes for their pictures. Logits and caches are left
    empty, for `flamingo_rt.export.checks.parity_cases.answer`. ``on_step`` is called with 1 per prompt and once more.

    Raises `DataError` that names the prompt's place, for a prompt longer than the context, a picture that cannot be
    read, or a text that a prompt may not hold; and when no prompt has a picture.
    """
    built = []
    for prompt in prompts:
        built.append(_read(prompt, tokenizer, model.config))
        on_step(1)
    pixels = [array for _, arrays in built for array in arrays]
    if not pixels:
        raise DataError("no calibration prompt has a picture: give some that have one")
    pixel_values = torch.from_numpy(np.concatenate(pixels))
    features, media = _encoded(model, pixel_values)
    on_step(1)
    cases, first = [], 0
    for number, (read, arrays) in enumerate(built, 1):
        count = len(arrays)
        shown = slice(first, first + count) if count else slice(1)  # a graph needs at least one
        first += count
        places = tuple(int(place) for place in np.flatnonzero(read.input_ids == tokenizer.image_id))
        steps = min(STEPWISE, len(read) - 1)
        case = Case(f"prompt {number}", (len(read) - steps,), (places,), pieces=(1,) * steps)
        ids, media_index = (torch.from_numpy(array)[None] for array in (read.input_ids, read.media_index))
        own = {name: tensor[shown] for name, tensor in media.items()}
        cases.append(Expected(case, features[shown, None], own, ids, media_index, [], []))
    return Reference(pixel_values, features, cases)


def _encoded(model: Flamingo, pixel_values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Encode pictures [N, 3, H, W] into features [N, S, Dv] and media keys and values [N, Hx, L, d] by name, a few
    pictures at a time to bound the activations."""
    parts = []
    for some in pixel_values.split(PICTURES_AT_ONCE):
        features = model.vision(some)
        parts.append((features, encode_media(model, features[:, None])))
    features = torch.cat([part for part, _ in parts])
    return features, {name: torch.cat([media[name] for _, media in parts]) for name in parts[0][1]}


def _read(
    prompt: CalibrationPrompt, tokenizer: TextTokenizer, config: FlamingoConfig
) -> tuple[Prompt, list[np.ndarray]]:
    """Tokenize a prompt, and preprocess each of its pictures to pixels [1, 3, H, W]."""
    try:
        built = build_prompt(prompt.parts, tokenizer)
        if len(built) > config.language.context:
            raise DataError(
                f"the prompt has {len(built)} tokens, the context is {config.language.context}: shorten it"
            )
        return built, [visual_pixels(visual, config) for visual in built.visuals]
    except (DataError, UsageError) as error:
        raise DataError(f"{prompt.place}: {error}") from error
