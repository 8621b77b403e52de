"""Texts of a dataset, from which a tokenizer is learnt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from flamingo_rt.training.data.samples import DamagedSample, SampleSource
from flamingo_rt.training.data.text_batches import document_text

MOST_TEXTS = 20_000
TOKENIZER_SCENES = 3000  # drawn ones; their words are few
MOST_CHARACTERS = 20_000_000  # of the texts of one source: a minute of learning, and far more than merges need


def source_texts(source: SampleSource, most: int = MOST_TEXTS) -> Iterator[str]:
    """Texts of up to ``most`` samples, evenly taken, `MOST_CHARACTERS` of this source in all; damaged samples are left
    out: they are counted when batches are drawn."""
    count = min(len(source), most)
    for number in range(count):
        with suppress(DamagedSample):
            yield document_text(source.sample(number * len(source) // count))[: MOST_CHARACTERS // count]
