"""Real prompts as cases of the comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError
from flamingo_rt.export.cases import Case, Expected, Reference, encode_media
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.processing.prompt import Part, Prompt, build_prompt
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.processing.visuals import visual_pixels

STEPWISE = 3  # tokens at the end of each prompt that are decoded one by one
PICTURES_AT_ONCE = 8  # what the encoder works on: some hundred megabytes of activations in a large model


@torch.no_grad()
def encode_prompts(
    model: Flamingo, tokenizer: TextTokenizer, prompts: Sequence[Sequence[Part]],
    on_step: Callable[[int], None] = lambda count: None,
) -> Reference:
    """Prompts of pictures and texts as cases, with their media as ``model`` computes them; their logits are still to be
    computed (`flamingo_rt.export.cases.answer`). ``on_step`` is called with 1 for each and once more.

    Raises `DataError` for a prompt longer than the context and a picture that cannot be read.
    """
    config = model.config
    built = [_built(parts, tokenizer, config) for parts in prompts]
    pixels = [np.concatenate([visual_pixels(visual, config) for visual in p.visuals]) for p in built if p.visuals]
    if not pixels:
        raise DataError("no calibration prompt has a picture: give some that have")
    pixel_values = torch.from_numpy(np.concatenate(pixels))
    features = torch.cat([model.vision(part) for part in pixel_values.split(PICTURES_AT_ONCE)])
    on_step(1)
    cases, first = [], 0
    for number, prompt in enumerate(built, 1):
        count = len(prompt.visuals)
        shown = features[first : first + count] if count else features[:1]  # a graph cannot take none
        first += count
        places = tuple(int(place) for place in np.flatnonzero(prompt.input_ids == tokenizer.image_id))
        steps = min(STEPWISE, len(prompt) - 1)
        case = Case(f"prompt {number}", (len(prompt) - steps,), (places,), pieces=(1,) * steps)
        ids, phi = (torch.from_numpy(array)[None] for array in (prompt.input_ids, prompt.media_index))
        cases.append(Expected(case, shown[:, None], encode_media(model, shown[:, None]), ids, phi, [], []))
        on_step(1)
    return Reference(pixel_values, features, cases)


def _built(parts: Sequence[Part], tokenizer: TextTokenizer, config: FlamingoConfig) -> Prompt:
    prompt = build_prompt(list(parts), tokenizer)
    if len(prompt) > config.language.context:
        raise DataError(
            f"a calibration prompt has {len(prompt)} tokens, the context is {config.language.context}: shorten it"
        )
    return prompt
