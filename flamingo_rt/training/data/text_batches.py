"""Batches of stage 2: documents joined and packed to rows of one length, without padding.

A row is a function of (seed, step, its place in the batch) alone: each starts at its own position of the dataset's
order, and takes documents from there until it is full. What does not fit of the last one is cut off; the order is
another one in each epoch, so that a tail is read in another. A document longer than a row is entered at a random place,
so that all of a long text is seen in time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import DataError, FlamingoError
from flamingo_rt.model.flamingo import IGNORED_LABEL
from flamingo_rt.training.data.repeated_segments import repeated_segment
from flamingo_rt.training.data.sample_order import SampleOrder
from flamingo_rt.training.data.samples import DamagedSample, Said, Sample, SampleSource
from flamingo_rt.training.data.usable_samples import NothingToLearn, SampleReader, places_of_part
from flamingo_rt.training.options import DataOptions
from flamingo_rt.training.stage import Drawn

WINDOW = 16  # characters for each token of a row that are read of a long text: four times as many as English needs
LONGEST_WORD = 64  # characters that are passed over to enter a text between two words
MEASURED = 64  # documents from which the usual length is found


class TextBatch(NamedTuple):
    """input_ids and labels int64 [R, context]; labels are aligned with input_ids, `IGNORED_LABEL` where none is wanted.
    ``repeated`` bool [R]: whether a row is a random segment again and again instead of text."""

    input_ids: Tensor
    labels: Tensor
    repeated: Tensor

    def to(self, device: torch.device) -> TextBatch:
        """The same batch on a device."""
        return TextBatch(*(tensor.to(device) for tensor in self))


class Piece(NamedTuple):
    """Tokens of a document, or of a part of it, with their labels."""

    ids: list[int]
    labels: list[int]


class TextBatches:
    """``options.batch`` rows of ``context`` tokens a step: ``<bos>`` document ``<eos>``, and so on. A part of a
    document has neither the token of a beginning nor of an end that it lacks.

    Loss is taken on all tokens but those of texts that are not `Said.learnt`, such as questions.
    Attention is not kept within a document: what stands before ``<bos>`` teaches a model to leave it alone. The share
    ``repeats`` of all rows, evenly spread, is made by `repeated_segment`. Special tokens that a text spells are
    encoded as text.
    """

    def __init__(
        self, source: SampleSource, options: DataOptions, tokenizer: Tokenizer, tokens: TokensConfig, *, context: int,
        seed: int, number: int = 0, repeats: float = 0.0,
    ) -> None:
        """``number`` is the dataset's, so that two of one source differ. Raises `DataError` for a dataset without
        documents, and for a tokenizer that lacks a special token."""
        self._source, self._options = source, options
        self._context, self._repeats, self._seed, self._number = context, repeats, seed, number
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._bos, self._eos = (self._special(text) for text in (tokens.bos, tokens.eos))
        special = set(tokenizer.get_added_tokens_decoder())
        self._random_ids = np.array(sorted(set(tokenizer.get_vocab().values()) - special))
        if repeats and len(self._random_ids) < 2:
            raise DataError("the tokenizer has no tokens but special ones: repeats needs others")
        if not len(source):
            raise DataError(f"{options.label} holds no documents: is it another folder or file?")
        self._order = SampleOrder(len(source), seed, number)
        self._stride = max(1, math.ceil(context / self._usual_length()))

    def draw(self, step: int, part: int, parts: int) -> Drawn:
        """See `Batches.draw`."""
        reader = SampleReader(self._source, self._order, self._options.label)
        try:
            places = places_of_part(self._options, part, parts)
            rows = [self._row(reader, step * self._options.batch + place) for place in places]
        except FlamingoError as error:
            return Drawn(None, tuple(reader.damaged), reader.read, tuple(reader.names), error)
        batch = TextBatch(
            torch.tensor([ids for ids, _, _ in rows]), torch.tensor([labels for _, labels, _ in rows]),
            torch.tensor([repeated for _, _, repeated in rows]),
        )
        return Drawn(batch, tuple(reader.damaged), reader.read, tuple(reader.names))

    def fingerprint(self) -> dict[str, Any]:
        """See `Batches.fingerprint`."""
        return {"data": self._source.fingerprint(), "files": self._source.files, "batch": self._options.batch,
                "context": self._context, "documents in a row": self._stride, "repeats": self._repeats}

    def _row(self, reader: SampleReader, position: int) -> tuple[list[int], list[int], bool]:
        """Token ids and labels of the row at ``position``, counted over all steps, and whether it is no text."""
        before = math.floor(position * self._repeats)  # rows of repeated segments
        if math.floor((position + 1) * self._repeats) > before:
            rng = np.random.default_rng([self._seed, self._number, position])
            return *repeated_segment(rng, self._random_ids, self._context), True
        ids: list[int] = []
        labels: list[int] = []
        place = (position - before) * self._stride
        while len(ids) < self._context:
            _, piece = reader.take(place, self._piece)
            ids += piece.ids
            labels += piece.labels
            place += 1
        return ids[: self._context], labels[: self._context], False

    def _piece(self, sample: Sample, rng: np.random.Generator) -> Piece:
        """A whole document, or of a longer one a row's worth from a random place. Raises `NothingToLearn`."""
        lines = document_lines(sample)
        text, window = "".join(line for line, _ in lines), WINDOW * self._context
        begin = _place(rng, len(text), window)
        if begin:
            begin += _to_next_word(text[begin : begin + LONGEST_WORD])
        encoded = self._encode(text[begin : begin + window])
        tokens, learnt = encoded.ids, _learnt(encoded, lines, begin)
        if not tokens:
            raise NothingToLearn(sample.name, "it holds no text")
        if self._bos is not None and not begin:
            tokens, learnt = [self._bos, *tokens], [True, *learnt]
        if self._eos is not None and begin + window >= len(text):
            tokens, learnt = [*tokens, self._eos], [*learnt, True]
        start = _place(rng, len(tokens), self._context)
        ids, wanted = tokens[start : start + self._context], learnt[start : start + self._context]
        labels = [token if known else IGNORED_LABEL for token, known in zip(ids, wanted, strict=True)]
        return Piece(ids, [IGNORED_LABEL, *labels[1:]])  # nothing before its first token tells what it is

    def _encode(self, text: str) -> Encoding:
        self._tokenizer.encode_special_tokens = True  # not kept by a copy in another process
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _special(self, text: str) -> int | None:
        number = self._tokenizer.token_to_id(text) if text else None
        if text and number is None:
            raise DataError(f"the tokenizer has no token {text!r}, which begins or ends a document")
        return number

    def _usual_length(self) -> float:
        """The mean number of tokens that a document brings to a row."""
        lengths, count = [], min(MEASURED, len(self._source))
        for number in range(count):
            try:
                text = document_text(self._source.sample(number * len(self._source) // count))
            except DamagedSample:  # counted when it is drawn
                continue
            if text:
                lengths.append(min(self._context, 2 + len(self._encode(text[: WINDOW * self._context]).ids)))
        return sum(lengths) / len(lengths) if lengths else self._context


def document_text(sample: Sample) -> str:
    """The texts of a sample, one on each line; those of a picture's caption or a page are text too."""
    return "".join(text for text, _ in document_lines(sample))


def document_lines(sample: Sample) -> list[tuple[str, bool]]:
    """The texts of which `document_text` consists, and whether each is learnt; the end of a line belongs to the text
    before it."""
    said = [segment for segment in sample.segments if isinstance(segment, Said) and segment.text.strip()]
    ends = ["" if following.same_line else "\n" for following in said[1:]] + [""]
    return [(segment.text + end, segment.learnt) for segment, end in zip(said, ends, strict=False)]


def _learnt(encoded: Encoding, lines: Sequence[tuple[str, bool]], begin: int) -> list[bool]:
    """Whether each token is learnt of a document from character ``begin`` on: as the text is in which it ends."""
    if all(learnt for _, learnt in lines):
        return [True] * len(encoded.ids)
    ends = np.cumsum([len(text) for text, _ in lines]) - begin
    last = np.array([stop for _, stop in encoded.offsets], np.int64) - 1  # of each token's characters
    return [lines[number][1] for number in np.searchsorted(ends, last, side="right").clip(0, len(lines) - 1)]


def _place(rng: np.random.Generator, length: int, window: int) -> int:
    """The beginning of a window in a longer text: anywhere, and at the very beginning or end as often as within a
    window from there. 0 where all of it fits."""
    return 0 if length <= window else int(np.clip(rng.integers(-window, length), 0, length - window))


def _to_next_word(text: str) -> int:
    """Characters up to the first white space, 0 where there is none."""
    return next((index for index, character in enumerate(text) if character.isspace()), 0)
