"""Batches of stage 3: documents of pairs, clips or pages, padded to one length, with what their pictures show.

A batch is a function of (seed, step) alone. Document i of step s takes the samples that stand at its place of
`SampleOrder`, so every sample has one place in an epoch; a part of a batch is a run of its documents. Where a document
has room for fewer pairs than ``chunks`` asks for, those that do not fit are left out until the next epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import FlamingoError, UsageError
from flamingo_rt.model.flamingo import IGNORED_LABEL
from flamingo_rt.training.data.augmentation import Augmentation
from flamingo_rt.training.data.class_tasks import ClassTasks
from flamingo_rt.training.data.documents import Document, DocumentWriter, Pair, check_images
from flamingo_rt.training.data.drawn_source import DrawnSource
from flamingo_rt.training.data.given_features import read_features
from flamingo_rt.training.data.sample_order import SampleOrder
from flamingo_rt.training.data.samples import Sample, SampleSource, Visual
from flamingo_rt.training.data.usable_samples import SampleReader, places_of_part
from flamingo_rt.training.data.visual_pixels import visual_pixels
from flamingo_rt.training.feature_cache import content_key
from flamingo_rt.training.options import OF_CLASS_TASKS, DataOptions
from flamingo_rt.training.stage import Drawn

NOT_CUT = ("source", "name", "kind", "weight", "questions")  # options that do not change what is in a batch


class FlamingoBatch(NamedTuple):
    """A part of a batch of R documents that show M visuals, N of which must be encoded.

    ``input_ids``, ``media_index``, ``labels`` int64 [R, T]; ``rows`` int64 [R, V]: which of the M visuals a document
    shows, 0 where it shows fewer. ``pixel_values`` float32 [N, F, 3, S, S] of the visuals ``missing`` int64 [N];
    ``cached`` float16 [M, F, S, Dv]: features of the others, zeros for the missing ones, or None where nothing was in
    the cache. ``keys``: of each of the M visuals the hash of its content, or "".
    """

    input_ids: Tensor
    media_index: Tensor
    labels: Tensor
    rows: Tensor
    pixel_values: Tensor
    cached: Tensor | None
    missing: Tensor
    keys: tuple[str, ...]

    def to(self, device: torch.device) -> FlamingoBatch:
        """The batch with its tensors on ``device``."""
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in self._asdict().items()
                                 if isinstance(value, Tensor)}
        return self._replace(**moved)


class FeatureReader(Protocol):
    """A cache of what the frozen encoder gave (`feature_cache.py`)."""

    def read(self, key: str, frames: int) -> np.ndarray | None:
        """Features float16 [frames, S, Dv], or None."""
        ...


class Shown(NamedTuple):
    """One visual: its key, and its features float16 [F, S, Dv] or pixel values float32 [F, 3, S, S]."""

    key: str
    features: np.ndarray | None
    pixels: np.ndarray | None


class DocumentBatches:
    """`Batches` of one dataset, which is the one with ``number`` in the mixture."""

    def __init__(
        self, source: SampleSource, options: DataOptions, config: FlamingoConfig, tokenizer: Tokenizer, seed: int,
        number: int, cache: FeatureReader | None = None,
    ) -> None:
        """Raises `UsageError` for a source of texts, for more chunks in a document than there are samples, for more
        chunks or images than the model takes pictures, and what `DocumentWriter` raises."""
        if source.kind == "text":
            raise UsageError(f"data {options.source!r} holds texts without pictures: train language takes them")
        if source.kind == "pages":
            check_images(options, config)
        self._chunks = options.chunks if source.kind != "pages" else (1,)
        most = max(self._chunks)
        if most > len(source) or most > config.max_visuals:
            raise UsageError(f"data {options.source!r}: chunks asks for {most} pairs in a document, of {len(source)} "
                             f"samples, and the model takes {config.max_visuals} pictures: lower chunks")
        self.source, self.options, self.config = source, options, config
        self._writer = DocumentWriter(config, tokenizer, options)
        self._order = SampleOrder(len(source), seed, number)
        self._cache = None if options.augment else cache  # changed pixels are other ones each time
        self._frames = options.frames if source.kind == "videos" else 1

    def draw(self, step: int, part: int, parts: int) -> Drawn:
        """See `Batches.draw`."""
        reader = SampleReader(self.source, self._order, self.options.label)
        try:
            places = places_of_part(self.options, part, parts)
            first, chunks = self._positions(step)
            batch = self._collate([self._document(range(first + place * chunks, first + (place + 1) * chunks), reader)
                                   for place in places])
        except FlamingoError as error:
            return Drawn(None, tuple(reader.damaged), reader.read, tuple(reader.names), error)
        return Drawn(batch, tuple(reader.damaged), reader.read, tuple(reader.names))

    def fingerprint(self) -> dict[str, Any]:
        """See `Batches.fingerprint`: changes with the source and with each option that changes a batch."""
        unread = NOT_CUT if isinstance(self.source, ClassTasks) else (*NOT_CUT, *OF_CLASS_TASKS)
        cut = {entry.name: getattr(self.options, entry.name) for entry in fields(self.options)
               if entry.name not in unread}
        return {"data": self.source.fingerprint(), "files": self.source.files, **cut}

    def _positions(self, step: int) -> tuple[int, int]:
        """The position of the first sample of a step, and how many samples a document of it takes. Steps come in
        rounds, each of which has every number of ``options.chunks`` once, in an order at random: so a position is known
        without going through all steps before."""
        turn, within = divmod(step, len(self._chunks))
        order = np.random.default_rng([self._order.seed, self._order.dataset, turn]).permutation(len(self._chunks))
        before = turn * sum(self._chunks) + sum(self._chunks[number] for number in order[:within])
        return self.options.batch * before, self._chunks[order[within]]

    def _document(self, positions: range, reader: SampleReader) -> tuple[Document, list[Shown]]:
        """The document of the samples at these positions, or of the first ones that fit into it."""
        if self.source.kind == "pages":
            return reader.take(positions[0], self._page)[1]
        pairs: list[Pair] = []
        shown: list[Shown] = []
        taken: set[int] = set()
        for position in positions:
            index, (pair, seen) = reader.take(position, partial(self._pair, pairs), taken)
            if seen is None:
                reader.names.pop()  # read, but not used
                break
            pairs.append(pair)
            shown.append(seen)
            taken.add(index)
        return self._writer.document(pairs), shown

    def _pair(self, before: Sequence[Pair], sample: Sample, rng: np.random.Generator) -> tuple[Pair, Shown | None]:
        """A pair with what its visual shows, or None where it does not fit into the document of those before it."""
        pair = self._writer.pair(sample, rng)
        return pair, self._shown(pair.visual, sample, rng) if self._writer.fits([*before, pair]) else None

    def _page(self, sample: Sample, rng: np.random.Generator) -> tuple[Document, list[Shown]]:
        document = self._writer.page(sample, rng)
        return document, [self._shown(visual, sample, rng) for visual in document.visuals]

    def _shown(self, visual: Visual, sample: Sample, rng: np.random.Generator) -> Shown:
        key, change = "", None
        if visual.kind == "features":
            vision = self.config.vision
            return Shown(key, read_features(visual, sample.name, (vision.feature_count, vision.width)), None)
        if self._cache is not None:
            key = content_key(visual, self.options.frames, self.options.fps)
            features = self._cache.read(key, self._frames)
            if features is not None:
                return Shown(key, features, None)
        if self.options.augment:
            change = Augmentation.drawn(rng)
        # A picture of many tasks that is damaged is one damaged picture: not their names, but their folder's.
        name = self.options.label if isinstance(self.source, DrawnSource) else sample.name
        pixels = visual_pixels(visual, name, self.options, self.config.preprocessing,
                               self.config.vision.image_size, change)
        return Shown(key, None, pixels)

    def _collate(self, documents: Sequence[tuple[Document, list[Shown]]]) -> FlamingoBatch:
        length = max(len(document.input_ids) for document, _ in documents)
        shape = len(documents), length
        input_ids = np.full(shape, self._writer.pad, np.int64)
        media_index, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED_LABEL, np.int64)
        rows = np.zeros((len(documents), max(len(shown) for _, shown in documents)), np.int64)
        visuals: list[Shown] = []
        for row, (document, shown) in enumerate(documents):
            end = len(document.input_ids)
            input_ids[row, :end], media_index[row, :end] = document.input_ids, document.media_index
            labels[row, :end] = document.labels
            rows[row, : len(shown)] = range(len(visuals), len(visuals) + len(shown))
            visuals += shown
        missing = [place for place, visual in enumerate(visuals) if visual.pixels is not None]
        return FlamingoBatch(
            torch.from_numpy(input_ids), torch.from_numpy(media_index), torch.from_numpy(labels),
            torch.from_numpy(rows), self._pixels(visuals), self._cached(visuals),
            torch.tensor(missing, dtype=torch.int64), tuple(visual.key for visual in visuals),
        )

    def _pixels(self, visuals: Sequence[Shown]) -> Tensor:
        size = self.config.vision.image_size
        found = [visual.pixels for visual in visuals if visual.pixels is not None]
        return torch.from_numpy(np.stack(found) if found else np.zeros((0, self._frames, 3, size, size), np.float32))

    def _cached(self, visuals: Sequence[Shown]) -> Tensor | None:
        found = [visual.features for visual in visuals if visual.features is not None]
        if not found:
            return None
        empty = np.zeros_like(found[0])
        return torch.from_numpy(np.stack([empty if visual.features is None else visual.features for visual in visuals]))
