"""Batches of drawn scenes: each picture is encoded once and serves several texts.

A batch is a function of (seed, step) alone, so a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from tokenizers import Tokenizer
from torch import Tensor

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError, FlamingoError, UsageError
from flamingo_rt.model.flamingo import IGNORED_LABEL
from flamingo_rt.processing.preprocess import pixel_values
from flamingo_rt.training import scenes
from flamingo_rt.training.data.document_batches import FlamingoBatch
from flamingo_rt.training.stage import Drawn

SIZE = 96  # the pictures have the area of a square of so many pixels
EncodedRow = tuple[list[int], list[int], list[int]]  # token ids, media_index, labels


class Chunk(NamedTuple):
    """A picture's index in the batch, with a prompt and its answer; only the answer contributes to the loss."""

    picture: int
    prompt: str
    answer: str


@dataclass(frozen=True)
class SceneBatches:
    """``pictures`` scenes a batch, each with its caption and ``questions`` questions, a share ``by_place`` of which ask
    for places first (`Question.by_place`).

    A row holds one chunk in half of the batches and 2, 3 or 4 in the others (few-shot prompts); the number of chunks
    in a batch stays about the same, and so does its cost. A row that is longer than the model's context loses its last
    chunks. ``number`` is that of the dataset in the mixture: each draws scenes of its own.
    """

    config: FlamingoConfig
    tokenizer: Tokenizer
    seed: int
    pictures: int = 32
    questions: int = 2
    by_place: float = 0.0
    number: int = 0

    def draw(self, step: int, part: int, parts: int) -> Drawn:
        """See `Batches.draw`: part ``part`` holds its share of the rows, and the pictures that they show."""
        try:
            whole = self.batch(step)
        except FlamingoError as error:
            return Drawn(None, error=error)
        count = len(whole.rows)
        if count < parts:
            return Drawn(None, error=UsageError(
                f"{count} rows of drawn scenes cannot be divided into {parts} parts: take a larger batch"
            ))
        rows = slice(part * count // parts, (part + 1) * count // parts)
        shown, renumbered = whole.rows[rows].unique(return_inverse=True)
        batch = whole if parts == 1 else FlamingoBatch(
            input_ids=whole.input_ids[rows], media_index=whole.media_index[rows], labels=whole.labels[rows],
            rows=renumbered, pixel_values=whole.pixel_values[shown], cached=None,
            missing=torch.arange(len(shown)), keys=tuple(whole.keys[index] for index in shown.tolist()),
        )
        names = tuple(f"scene {step * self.pictures + index}" for index in shown.tolist())
        return Drawn(batch, read=len(shown), names=names)

    def fingerprint(self) -> dict[str, Any]:
        """See `Batches.fingerprint`."""
        return {"data": f"drawn scenes, seed {self._own_seed}", "batch": self.pictures, "questions": self.questions,
                "by_place": self.by_place}

    @property
    def _own_seed(self) -> int:
        """The seed of this dataset's scenes: the run's for the first dataset, made from it for others."""
        if self.number == 0:
            return self.seed
        return int(np.random.SeedSequence([self.seed, self.number]).generate_state(1, np.uint64)[0])

    def batch(self, step: int) -> FlamingoBatch:
        """The batch of one training step. Raises `DataError` for a text that does not fit into the model's context."""
        seed = self._own_seed
        rng = np.random.default_rng([seed, step])
        samples = [
            scenes.sample(seed, step * self.pictures + index, "train", SIZE, "varied")
            for index in range(self.pictures)
        ]
        chunks = [chunk for index, sample in enumerate(samples) for chunk in self._chunks(index, sample, rng)]
        rng.shuffle(chunks)
        per_row = min(int(rng.choice([1, 1, 1, 2, 3, 4])), len(chunks))
        whole = len(chunks) // per_row * per_row
        documents = [chunks[start : start + per_row] for start in range(0, whole, per_row)]
        size, preprocessing = self.config.vision.image_size, self.config.preprocessing
        pixels = np.stack([pixel_values(PIL.Image.fromarray(s.image), preprocessing, size) for s in samples])
        return self._collate(documents, torch.from_numpy(pixels)[:, None])

    def _chunks(self, index: int, sample: scenes.Sample, rng: np.random.Generator) -> Iterator[Chunk]:
        prompts = self.config.prompts
        yield Chunk(index, prompts.caption, prompts.answer_separator + sample.caption)
        for question in scenes.questions(sample.scene, rng, self.questions):
            # Without a share nothing is drawn for it: recipes without it keep their scenes.
            asked = question.by_place() if self.by_place and rng.random() < self.by_place else question
            yield Chunk(index, prompts.ask(asked.text), prompts.answer_separator + asked.answer)

    def _collate(self, documents: list[list[Chunk]], pixels: Tensor) -> FlamingoBatch:
        fitting = [self._fitting(document) for document in documents]
        documents, encoded = [document for document, _ in fitting], [row for _, row in fitting]
        rows, length = len(documents), max(len(ids) for ids, _, _ in encoded)
        pad = self._token_id(self.config.tokens.pad)
        input_ids = torch.full((rows, length), pad)
        media_index = torch.zeros((rows, length), dtype=torch.int64)
        labels = torch.full((rows, length), IGNORED_LABEL)
        for row, (ids, indices, wanted) in enumerate(encoded):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            media_index[row, : len(ids)] = torch.tensor(indices)
            labels[row, : len(ids)] = torch.tensor(wanted)
        visuals = torch.zeros((rows, max(map(len, documents))), dtype=torch.int64)
        for row, document in enumerate(documents):
            visuals[row, : len(document)] = torch.tensor([chunk.picture for chunk in document])
        return FlamingoBatch(
            input_ids, media_index, labels, visuals, pixels, None, torch.arange(len(pixels)), ("",) * len(pixels),
        )

    def _fitting(self, document: list[Chunk]) -> tuple[list[Chunk], EncodedRow]:
        """The chunks of a row, or the first ones that fit into the context, and what `_encode` makes of them."""
        context, encoded = self.config.language.context, self._encode(document)
        while len(encoded[0]) > context and len(document) > 1:
            document = document[:-1]
            encoded = self._encode(document)
        if len(encoded[0]) > context:
            raise DataError(f"a text about a drawn scene takes {len(encoded[0])} tokens, and the model's context is "
                            f"{context}: take a model with a longer context, or a tokenizer learnt from such texts")
        return document, encoded

    def _encode(self, document: list[Chunk]) -> EncodedRow:
        """Token ids, media_index and labels of one row: <BOS>, <image>prompt answer<EOC> of each chunk, <EOS>; §A.2.
        A language model that begins texts with no token of its own has no <BOS>."""
        tokens = self.config.tokens
        ids = [self._token_id(tokens.bos)] if tokens.bos else []
        media_index, labels = [0] * len(ids), [IGNORED_LABEL] * len(ids)
        for number, chunk in enumerate(document, start=1):
            prompt = self.tokenizer.encode(tokens.image + chunk.prompt).ids
            answer = self.tokenizer.encode(chunk.answer + tokens.end_of_chunk).ids
            ids += prompt + answer
            media_index += [number] * (len(prompt) + len(answer))
            labels += [IGNORED_LABEL] * len(prompt) + answer
        end = self._token_id(tokens.eos)
        return [*ids, end], [*media_index, media_index[-1]], [*labels, end]

    def _token_id(self, token: str) -> int:
        """The id of a special token. Raises `DataError` for one that the tokenizer does not have."""
        number = self.tokenizer.token_to_id(token)
        if number is None:
            raise DataError(f"the tokenizer has no token {token!r}: train with the tokenizer of the configuration")
        return number
