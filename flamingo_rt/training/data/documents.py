"""From samples to what the language model reads: token ids, which picture each token sees, and where loss is taken.

A pair is ``<image>prompt answer<|endofchunk|>``; one or more of them, between ``<bos>`` and ``<eos>``, are a document,
and loss is taken on answers and what ends them. Of a page a window of tokens is a document, with ``<|endofchunk|>``
before every picture but its first and at its end, and loss is taken on all that sees a picture (§A.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.model.flamingo import IGNORED_LABEL
from flamingo_rt.printable import printable
from flamingo_rt.training.data.samples import DamagedSample, Said, Sample, Visual
from flamingo_rt.training.data.usable_samples import NothingToLearn
from flamingo_rt.training.options import DataOptions


class Document(NamedTuple):
    """One row of a batch: input_ids, media_index, labels int64 [T], and the visuals that media_index counts from 1."""

    input_ids: np.ndarray
    media_index: np.ndarray
    labels: np.ndarray
    visuals: tuple[Visual, ...]


class Pair(NamedTuple):
    """A visual, with the token ids of what is asked of it, from ``<image>`` on, and of the answer to its end."""

    visual: Visual
    prompt: list[int]
    answer: list[int]


class DocumentWriter:
    """Writes documents of at most ``options.tokens`` tokens, or the model's context, if that is shorter."""

    def __init__(self, config: FlamingoConfig, tokenizer: Tokenizer, options: DataOptions) -> None:
        """Raises `DataError` for a tokenizer that is not the model's: one that lacks a special token or has ids that
        the model does not know; `UsageError` for a prompt that holds a special token."""
        self._tokenizer, self._options = tokenizer, options
        self._prompts, self._tokens = config.prompts, config.tokens
        self.most = min(options.tokens, config.language.context)
        largest = max(tokenizer.get_vocab().values(), default=0)
        if largest >= config.language.vocab_size:
            raise DataError(f"the tokenizer has the token id {largest}, the model knows {config.language.vocab_size}: "
                            "train with the model's own tokenizer")
        self._image, self._end = self._id(config.tokens.image), self._id(config.tokens.end_of_chunk)
        self._first = [self._id(config.tokens.bos)] if config.tokens.bos else []
        self._last = [self._id(config.tokens.eos)] if config.tokens.eos else []
        self.pad = self._id(config.tokens.pad) if config.tokens.pad else 0
        for token in self._held():
            if options.prompt is not None and token in options.prompt:
                raise UsageError(f"data {options.source!r}: prompt holds {token}: leave it out, it is put around texts")

    def pair(self, sample: Sample, rng: np.random.Generator) -> Pair:
        """A captioned visual, or a question about one.

        Raises `NothingToLearn` when it does not fit into a document of its own, and `DamagedSample` for a text that
        holds a special token.
        """
        pair = self._pair(sample, leading_space=bool(rng.random() < self._options.leading_space))
        if not self.fits([pair]):
            raise NothingToLearn(sample.name, f"has {len(pair.prompt) + len(pair.answer)} tokens, and a document at "
                                              f"most {self.most}")
        return pair

    def length(self, sample: Sample, is_page: bool) -> int:
        """Tokens of a document that holds the whole sample, a page or a pair, even if that is more than ``most``.

        Raises `DamagedSample` as `page` and `pair` do.
        """
        if is_page:
            return len(self._first) + len(self._page_tokens(sample)[0])
        pair = self._pair(sample, leading_space=False)
        return len(self._first) + len(pair.prompt) + len(pair.answer) + len(self._last)

    def text_length(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def fits(self, pairs: Sequence[Pair]) -> bool:
        """Whether these pairs fit into one document."""
        tokens = sum(len(pair.prompt) + len(pair.answer) for pair in pairs)
        return len(self._first) + tokens + len(self._last) <= self.most

    def document(self, pairs: Sequence[Pair]) -> Document:
        """The document that holds these pairs."""
        ids, media_index, labels = list(self._first), [0] * len(self._first), [IGNORED_LABEL] * len(self._first)
        for number, pair in enumerate(pairs, start=1):
            ids += pair.prompt + pair.answer
            media_index += [number] * (len(pair.prompt) + len(pair.answer))
            labels += [IGNORED_LABEL] * len(pair.prompt) + pair.answer
        ids += self._last
        media_index += [len(pairs)] * len(self._last)
        labels += self._last
        return Document(np.array(ids, np.int64), np.array(media_index, np.int64), np.array(labels, np.int64),
                        tuple(pair.visual for pair in pairs))

    def page(self, sample: Sample, rng: np.random.Generator) -> Document:
        """A window of a page: ``<bos>`` and a run of its tokens, at random among the runs in which a text sees a
        picture, cut before a picture too many (``options.images``).

        With a probability of ``options.next_image`` all texts of the page see the picture that follows, behind the last
        one the last; else the picture before them. Raises `NothingToLearn` when no text sees a picture, and
        `DamagedSample` for a text that holds a special token.
        """
        ids, learnt = self._page_tokens(sample)
        visuals = [segment for segment in sample.segments if isinstance(segment, Visual)]
        if not visuals:
            raise NothingToLearn(sample.name, "has no picture")
        following = bool(rng.random() < self._options.next_image)
        is_image = ids == self._image
        is_text = learnt & ~np.isin(ids, [self._image, self._end, *self._last])
        room = self.most - len(self._first)
        starts, stops = _useful_windows(is_image, is_text, room, self._options.images, following)
        if not len(starts):
            raise NothingToLearn(sample.name, f"in no window of {room} tokens with {self._options.images} pictures a "
                                              "text sees a picture")
        chosen = rng.integers(len(starts))
        start, stop = int(starts[chosen]), int(stops[chosen])
        window, image = ids[start:stop], is_image[start:stop]
        counted = np.cumsum(image)
        pictures = int(counted[-1])
        media_index = np.where(image, counted, np.minimum(counted + 1, pictures)) if following else counted
        labels = np.where(learnt[start:stop] & ~image & (media_index > 0), window, IGNORED_LABEL)
        first = int(is_image[:start].sum())
        front = np.array(self._first, np.int64)
        return Document(
            np.concatenate([front, window]), np.concatenate([np.zeros_like(front), media_index]),
            np.concatenate([np.full_like(front, IGNORED_LABEL), labels]), tuple(visuals[first : first + pictures]),
        )

    def _pair(self, sample: Sample, leading_space: bool) -> Pair:
        visual, *texts = sample.segments
        if not isinstance(visual, Visual) or not texts or not all(isinstance(text, Said) for text in texts):
            raise DamagedSample(sample.name, "is no picture or clip with a text")
        asked, answer = (text.text.strip() for text in (texts[0], texts[-1]) if isinstance(text, Said))
        prompt = self._prompts.caption if self._options.prompt is None else self._options.prompt
        if len(texts) > 1:
            prompt = self._prompts.ask(asked)
        between = self._prompts.answer_separator if prompt else ""
        if leading_space and not between[-1:].isspace():
            between += " "
        beginning, rest = self._tokens.image + prompt, between + answer + self._tokens.end_of_chunk
        before = self._encoded(beginning, sample.name, images=1)
        whole = self._encoded(beginning + rest, sample.name, images=1, ends=1)
        # At inference the prompt is tokenized alone, and the answer follows. Some tokenizers join the two.
        joined = whole[: len(before)] == before
        return Pair(visual, before, whole[len(before) :] if joined else self._encoded(rest, sample.name, ends=1))

    def _page_tokens(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """The token ids int64 [T] of a whole page, without ``<bos>``, and whether each is learnt, bool [T]."""
        ids: list[int] = []
        learnt: list[bool] = []
        for text, images, ends, wanted in self._pieces(sample):
            piece = self._encoded(text, sample.name, images=images, ends=ends)
            ids += piece
            learnt += [wanted] * len(piece)
        ids += self._last
        learnt += [True] * len(self._last)
        return np.array(ids, np.int64), np.array(learnt, bool)

    def _pieces(self, sample: Sample) -> Iterator[tuple[str, int, int, bool]]:
        """(text, images in it, ends of chunks in it, whether it is learnt) of a page: texts that the tokenizer reads
        one by one, each with what stands before it."""
        before, images, seen, wanted = "", 0, False, True
        for segment in sample.segments:
            if isinstance(segment, Visual):
                if seen:  # what ends a chunk is learnt where its last text is
                    yield before + self._tokens.end_of_chunk, images, 1, wanted
                    before, images = "", 0
                before, images, seen = before + self._tokens.image, images + 1, True
            else:
                yield before + segment.text, images, 0, segment.learnt
                before, images, wanted = "", 0, segment.learnt
        yield before + self._tokens.end_of_chunk, images, 1, True

    def _encoded(self, text: str, name: str, images: int = 0, ends: int = 0) -> list[int]:
        """Token ids of a text that holds the image token so often, and the one that ends chunks."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if ids.count(self._image) != images or ids.count(self._end) != ends or not self._outer.isdisjoint(ids):
            raise DamagedSample(name, f"a text holds one of {printable(', '.join(self._held()))}, which are put around "
                                      "texts: leave it out")
        return ids

    def _held(self) -> list[str]:
        """The special tokens that a document holds, which are in no text."""
        tokens = self._tokens
        return [token for token in (tokens.image, tokens.end_of_chunk, tokens.bos, tokens.eos) if token]

    @property
    def _outer(self) -> set[int]:
        return {*self._first, *self._last} - {self._image, self._end}

    def _id(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise DataError(f"the tokenizer has no token {token!r}: train with the model's own tokenizer")
        return int(number)


def check_images(options: DataOptions, config: FlamingoConfig) -> None:
    """Raise `UsageError` when windows of pages may show more pictures than the model takes."""
    if options.images > config.max_visuals:
        raise UsageError(f"data {options.source!r}: images allows {options.images} pictures in a window of a page, and "
                         f"the model takes {config.max_visuals}: lower images")


def _useful_windows(
    is_image: np.ndarray, is_text: np.ndarray, room: int, most_images: int, following: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The beginnings and ends of the windows in which a text sees a picture, int64 [N] each: ``room`` tokens, or fewer
    where the picture behind the first ``most_images`` comes earlier. Both masks are bool [T], over the page."""
    length = len(is_image)
    starts = np.arange(max(length - room, 0) + 1)
    images, texts = np.flatnonzero(is_image), np.flatnonzero(is_text)
    number = np.searchsorted(images, starts)  # of the first picture from there on
    places = np.append(images, length)
    stops = np.minimum(np.minimum(starts + room, length), places[np.minimum(number + most_images, len(images))])
    last_text = np.insert(texts, 0, -1)[np.searchsorted(texts, stops)]
    useful = (places[number] < stops) & (last_text >= starts) if following else places[number] < last_text
    return starts[useful], stops[useful]
