"""The number of tokens that training makes of a sample, to see what does not fit before a run starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.training.data.documents import DocumentWriter
from flamingo_rt.training.data.samples import Sample, SampleKind
from flamingo_rt.training.data.text_batches import document_text
from flamingo_rt.training.data.usable_samples import NothingToLearn
from flamingo_rt.training.options import DataOptions


class TokenLength(Protocol):
    """Measures samples of one dataset; a length above ``limit`` does not fit into a document."""

    limit: int

    def __call__(self, sample: Sample) -> int:
        """Tokens of the whole sample. Raises `DamagedSample` and `NothingToLearn`."""
        ...


class TextLength:
    """Tokens of a sample's texts alone, as far as a tokenizer tells without a model."""

    def __init__(self, tokenizer: Tokenizer, options: DataOptions) -> None:
        self._tokenizer, self.limit = tokenizer, options.tokens

    def __call__(self, sample: Sample) -> int:
        """See `TokenLength`."""
        return len(self._tokenizer.encode(document_text(sample), add_special_tokens=False).ids)


class DocumentLength:
    """Tokens of the document that a model is trained on: with prompts and special tokens; for pairs, clips and
    pages."""

    def __init__(self, config: FlamingoConfig, tokenizer: Tokenizer, options: DataOptions, kind: SampleKind) -> None:
        """Raises `DataError` for a tokenizer that is not the model's."""
        directions = {0.0 if options.next_image < 1 else 1.0, 1.0 if options.next_image > 0 else 0.0}
        self._writers = [DocumentWriter(config, tokenizer, replace(options, next_image=share))
                         for share in sorted(directions)]
        self._is_page, self.limit = kind == "pages", self._writers[0].most

    def __call__(self, sample: Sample) -> int:
        """See `TokenLength`. A pair that is too long is no `NothingToLearn` here: its length says so."""
        length = self._writers[0].length(sample, self._is_page)
        if self._is_page:
            self._check_windows(sample)
        return length

    def _check_windows(self, sample: Sample) -> None:
        """Raise `NothingToLearn` unless a text of the page sees a picture, in one of the directions that are drawn."""
        for number, writer in enumerate(self._writers, start=1):
            try:
                writer.page(sample, np.random.default_rng(0))
                return
            except NothingToLearn:
                if number == len(self._writers):
                    raise
