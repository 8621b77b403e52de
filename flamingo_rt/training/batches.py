"""Batches of drawn scenes: each picture is encoded once and serves several texts.

A batch is a function of (seed, step) alone, so a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from flamingo_rt.config import FlamingoConfig, PromptsConfig
from flamingo_rt.errors import DataError
from flamingo_rt.model.flamingo import IGNORED_LABEL
from flamingo_rt.processing.preprocess import pixel_values
from flamingo_rt.training import scenes
from flamingo_rt.training.scenes import digits


class Batch(NamedTuple):
    """Arguments of `Flamingo.forward`: input_ids, media_index, labels int64 [R, T]; rows int64 [R, V];
    pixel_values float32 [N, 1, 3, H, W]. ``caption_tokens`` float32 [N, vocab] is 1 for the tokens of a caption."""

    input_ids: Tensor
    media_index: Tensor
    pixel_values: Tensor
    rows: Tensor
    labels: Tensor
    caption_tokens: Tensor


class Chunk(NamedTuple):
    """A picture's index in the batch, with a prompt and its answer; only the answer contributes to the loss."""

    picture: int
    prompt: str
    answer: str


@dataclass(frozen=True)
class SceneBatches:
    """``pictures`` scenes a batch, each with its caption and ``questions`` questions.

    A row holds one chunk in half of the batches and 2, 3 or 4 in the others (few-shot prompts); the number of chunks
    in a batch stays about the same, and so does its cost.
    """

    config: FlamingoConfig
    tokenizer: Tokenizer
    seed: int
    pictures: int = 32
    questions: int = 2

    def batch(self, step: int) -> Batch:
        """The batch of one training step."""
        rng = np.random.default_rng([self.seed, step])
        samples = [
            scenes.sample(self.seed, step * self.pictures + index, "train") for index in range(self.pictures)
        ]
        chunks = [chunk for index, sample in enumerate(samples) for chunk in self._chunks(index, sample, rng)]
        rng.shuffle(chunks)
        per_row = min(int(rng.choice([1, 1, 1, 2, 3, 4])), len(chunks))
        whole = len(chunks) // per_row * per_row
        documents = [chunks[start : start + per_row] for start in range(0, whole, per_row)]
        size, preprocessing = self.config.vision.image_size, self.config.preprocessing
        pixels = np.stack([pixel_values(PIL.Image.fromarray(s.image), preprocessing, size) for s in samples])
        return self._collate(documents, torch.from_numpy(pixels)[:, None], self._caption_tokens(samples))

    def _chunks(self, index: int, sample: scenes.Sample, rng: np.random.Generator) -> Iterator[Chunk]:
        prompts = self.config.prompts
        yield Chunk(index, prompts.caption, prompts.answer_separator + sample.caption)
        for question in scenes.questions(sample.scene, rng, self.questions):
            yield Chunk(index, prompts.ask(question.text), prompts.answer_separator + question.answer)

    def _caption_tokens(self, samples: list[scenes.Sample]) -> Tensor:
        tokens = torch.zeros(len(samples), self.config.language.vocab_size)
        for row, sample in enumerate(samples):
            tokens[row, self.tokenizer.encode(self.config.prompts.answer_separator + sample.caption).ids] = 1.0
        return tokens

    def _collate(self, documents: list[list[Chunk]], pixels: Tensor, caption_tokens: Tensor) -> Batch:
        encoded = [self._encode(document) for document in documents]
        rows, length = len(documents), max(len(ids) for ids, _, _ in encoded)
        pad = self._token_id(self.config.tokens.pad)
        input_ids = torch.full((rows, length), pad)
        media_index = torch.zeros((rows, length), dtype=torch.int64)
        labels = torch.full((rows, length), IGNORED_LABEL)
        for row, (ids, indices, wanted) in enumerate(encoded):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            media_index[row, : len(ids)] = torch.tensor(indices)
            labels[row, : len(ids)] = torch.tensor(wanted)
        visuals = torch.tensor([[chunk.picture for chunk in document] for document in documents])
        return Batch(input_ids, media_index, pixels, visuals, labels, caption_tokens)

    def _encode(self, document: list[Chunk]) -> tuple[list[int], list[int], list[int]]:
        """Token ids, media_index and labels of one row: <BOS>, <image>prompt answer<EOC> of each chunk, <EOS>; §A.2."""
        tokens = self.config.tokens
        ids, media_index, labels = [self._token_id(tokens.bos)], [0], [IGNORED_LABEL]
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


class _Steps(IterableDataset):
    """The batches of steps ``start`` to ``stop``, for one worker."""

    def __init__(self, batches: SceneBatches, start: int, stop: int) -> None:
        self.batches, self.start, self.stop = batches, start, stop

    def __iter__(self) -> Iterator[Batch]:
        import cv2

        cv2.setNumThreads(0)  # a second thread pool beside the training step's costs more than it brings
        for step in range(self.start, self.stop):
            yield self.batches.batch(step)


def prefetched(batches: SceneBatches, start: int, stop: int) -> DataLoader:
    """Batches of steps ``start`` to ``stop`` in order, drawn by a second process while the model trains."""
    digits.digit_label(0)  # loaded here, for both: a second process reports a missing library with its whole traceback
    return DataLoader(_Steps(batches, start, stop), batch_size=None, num_workers=1, prefetch_factor=4)


def scene_texts(seed: int, count: int, prompts: PromptsConfig) -> Iterator[str]:
    """Captions and questions with their answers of ``count`` training scenes, for the tokenizer."""
    between = prompts.answer_separator
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        scene = scenes.sample_scene(rng, "train")
        yield f"{prompts.caption}{between}{scenes.caption(scene)}"
        for question in scenes.questions(scene, rng, 4):
            yield f"{prompts.ask(question.text)}{between}{question.answer}"
