"""The number of tokens that training makes of a sample, to see what does not fit before a run starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from flamingo_rt.checkpoints import TOKENIZER, open_checkpoint
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.importing.openflamingo_tokenizer import load_tokenizer
from flamingo_rt.tokenizer_file import parse_tokenizer
from flamingo_rt.training.data.documents import DocumentWriter, check_images
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
        """Raises `DataError` for a tokenizer that is not the model's, and `UsageError` as `DocumentBatches` does."""
        if kind == "pages":
            check_images(options, config)
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


MakeLength = Callable[[SampleKind], TokenLength]


def token_length(options: DataOptions, tokenizer: Path | None, model: Path | None) -> MakeLength | None:
    """A measure of samples by a tokenizer.json or its folder, or as the model of a checkpoint is trained on them; None
    without either. Raises `UsageError` for both, and `DataError` when files cannot be read."""
    if tokenizer is not None and model is not None:
        raise UsageError("a tokenizer and a model both say how texts become tokens: give one of them")
    if tokenizer is not None:
        length = TextLength(load_tokenizer(tokenizer), options)
        return lambda kind: length
    return _length_by_checkpoint(model, options) if model is not None else None


def _length_by_checkpoint(path: Path, options: DataOptions) -> MakeLength:
    stored = open_checkpoint(path)
    read = parse_tokenizer(stored.tokenizer.encode(), path / TOKENIZER, stored.config.language.vocab_size)

    def make(kind: SampleKind) -> TokenLength:
        return TextLength(read, options) if kind == "text" else DocumentLength(stored.config, read, options, kind)

    return make
