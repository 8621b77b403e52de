"""Sample answers of stage 3, which show while a run goes on what the model says so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from tokenizers import Tokenizer
from torch import Tensor

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.model.flamingo import IGNORED_LABEL
from flamingo_rt.training.data.document_batches import FlamingoBatch

ROWS, MOST_TOKENS = 3, 24
# The logits [R, T, vocab] of a batch and its latents [M, L, D], which spare the encoder when they are given again.
Reader = Callable[[FlamingoBatch, Tensor | None], tuple[Tensor, Tensor | None]]


def row_of(batch: FlamingoBatch, row: int) -> FlamingoBatch:
    """One document of a batch, with the visuals that it shows and no others."""
    count = max(1, int(batch.media_index[row].max()))
    shown, renumbered = batch.rows[row : row + 1, :count].unique(return_inverse=True)
    places = {place: number for number, place in enumerate(shown.tolist())}
    missing = [(number, place) for number, place in enumerate(batch.missing.tolist()) if place in places]
    return FlamingoBatch(
        input_ids=batch.input_ids[row : row + 1], media_index=batch.media_index[row : row + 1],
        labels=batch.labels[row : row + 1], rows=renumbered,
        pixel_values=batch.pixel_values[[number for number, _ in missing]],
        cached=None if batch.cached is None else batch.cached[shown],
        missing=torch.tensor([places[place] for _, place in missing], dtype=torch.int64, device=batch.missing.device),
        keys=tuple(batch.keys[place] for place in places),
    )


def sample_answers(batch: FlamingoBatch, read: Reader, tokenizer: Tokenizer, config: FlamingoConfig) -> Iterator[str]:
    """Yield ``prompt -> answer (right: …)`` for the first rows of a batch: greedy answers at a row's first label.

    The visuals of a row are encoded once. A row's prompt and answer stay within the model's context. The number of
    calls of ``read`` depends on the batch alone, so that ranks which share the parameters make the same ones.
    """
    labelled = batch.labels != IGNORED_LABEL
    for row in labelled.any(1).nonzero().flatten()[:ROWS].tolist():
        start = int(labelled[row].nonzero()[0])
        stop = start + int((~labelled[row, start:]).nonzero()[0]) if not labelled[row, start:].all() else None
        one, latents = row_of(batch, row), None
        ids, index = one.input_ids[:, :start], one.media_index[:, :start]
        for _ in range(min(MOST_TOKENS, config.language.context - start)):
            logits, latents = read(one._replace(input_ids=ids, media_index=index), latents)
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
            index = torch.cat([index, index[:, -1:]], 1)
        parts = ids[0, :start], ids[0, start:], batch.input_ids[row, start:stop]
        prompt, answer, right = (_text(part, tokenizer, config) for part in parts)
        yield f"{prompt} -> {answer} (right: {right})"


def _text(ids: Tensor, tokenizer: Tokenizer, config: FlamingoConfig) -> str:
    """Tokens as text: without those that only mark places, up to the first end of a chunk or of the text."""
    tokens = config.tokens
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    for token in (tokens.bos, tokens.pad, tokens.image):
        text = text.replace(token, "") if token else text
    for token in (tokens.end_of_chunk, tokens.eos):
        text = text.split(token)[0] if token and text.split(token)[0].strip() else text.replace(token, "")
    return " ".join(text.split())
