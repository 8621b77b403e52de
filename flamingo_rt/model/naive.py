"""Generation without any cache: the whole prompt again for every token. Slow and obvious, the oracle of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from flamingo_rt.model.flamingo import Flamingo


@torch.no_grad()
def generate_naively(
    model: Flamingo,
    input_ids: list[int],
    media_index: list[int],
    visuals: list[Tensor],
    max_new_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
) -> list[int]:
    """Greedy tokens for one prompt, without the stop token.

    ``input_ids`` and ``media_index`` are the prompt's (§3.1.3); ``visuals`` are pixel values [F, 3, H, W], one for
    each picture or clip. New tokens refer to the prompt's last visual.
    """
    ids, indices = list(input_ids), list(media_index)
    produced: list[int] = []
    for _ in range(max_new_tokens):
        keys = values = None
        if visuals:
            encoded = [model.cross_attention.keys_values(model.encode(visual[None])) for visual in visuals]
            keys = [torch.cat(layer, dim=2) for layer in zip(*(keys for keys, _ in encoded), strict=True)]
            values = [torch.cat(layer, dim=2) for layer in zip(*(values for _, values in encoded), strict=True)]
        logits = model.decode(
            torch.tensor([ids]), torch.arange(len(ids))[None], torch.tensor([indices]), keys, values
        )
        token = int(logits[0, -1].argmax())
        if token in stop_ids:
            break
        produced.append(token)
        ids.append(token)
        indices.append(indices[-1])
    return produced
