"""A dataset read whole before it is trained on: what it holds, and what is wrong with it."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable
from flamingo_rt.progress import Progress, silent
from flamingo_rt.training.data.contact_sheet import ENTRIES, SheetEntry, thumbnail
from flamingo_rt.training.data.samples import DamagedSample, EmptyText, Said, Sample, SampleKind, SampleSource, Visual
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.data.text_batches import document_text
from flamingo_rt.training.data.token_lengths import MakeLength, TokenLength
from flamingo_rt.training.data.usable_samples import NothingToLearn
from flamingo_rt.training.data.visual_pixels import visual_frames
from flamingo_rt.training.feature_cache import content_key
from flamingo_rt.training.options import DataOptions

NAMED = 20  # groups of equal samples that a report names
SHOWN_TEXT = 200  # characters of the most common text


class Problem(NamedTuple):
    """A sample that is not trained on: where it is, and why."""

    name: str
    reason: str


class Spread(NamedTuple):
    """The distribution of a number over all usable samples."""

    least: int
    median: int
    most_of_95: int
    most: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread:
        """The spread of numbers; all 0 where there are none."""
        if not len(values):
            return cls(0, 0, 0, 0)
        return cls(*map(int, np.percentile(values, (0, 50, 95, 100), method="nearest")))


@dataclass(frozen=True)
class Visuals:
    """Pictures or clips: how many, bytes of their files, how many are different, (width, height) of the smallest, the
    median and the largest by area, and how many a sample has."""

    count: int
    file_bytes: int
    different: int
    sizes: tuple[tuple[int, int], ...]
    in_a_sample: Spread


class Texts(NamedTuple):
    """Texts of samples: characters, tokens if they were counted, the most that a document may have, how many have more,
    how many texts are different, the most common one, and how many samples have it."""

    characters: Spread
    tokens: Spread | None
    limit: int | None
    too_long: int | None
    different: int
    commonest: str
    commonest_count: int


@dataclass(frozen=True)
class DataReport:
    """Findings of `check_source`. Everything but ``samples``, ``damaged``, ``empty_texts`` and ``nothing_to_learn`` is
    about usable samples. ``repeated``: how many samples are equal to an earlier one, in all that they show and say;
    ``repeats``: the names of equal ones, of the first `NAMED`. ``empty_texts`` are among the damaged."""

    kind: SampleKind
    samples: int
    damaged: tuple[Problem, ...]
    empty_texts: int
    nothing_to_learn: tuple[Problem, ...]
    visuals: Visuals
    texts: Texts
    repeated: int
    repeats: tuple[tuple[str, ...], ...]
    classes: Mapping[str, int]

    @property
    def damaged_share(self) -> float:
        """The share of samples that are damaged."""
        return len(self.damaged) / self.samples


def check_source(
    options: DataOptions, make_length: MakeLength | None = None, progress: Progress = silent,
    sheet: list[SheetEntry] | None = None,
) -> DataReport:
    """Read and decode every sample of a source. ``make_length`` gives what counts tokens in samples of the kind that
    the source has; up to `ENTRIES` samples, evenly taken, are added to ``sheet``.

    Raises `DataError` for a source that cannot be opened.
    """
    source = open_source(options)
    checked = _Checked(options, make_length(source.kind) if make_length is not None else None)
    count = len(source)
    shown = {number * count // ENTRIES for number in range(ENTRIES)} if count > ENTRIES else set(range(count))
    with progress(f"{count:,} samples of {source.kind}", count) as advance:
        for index in range(count):
            entry = checked.add(source, index, sheet is not None and index in shown)
            if entry is not None and sheet is not None:
                sheet.append(entry)
            advance(1)
    return checked.report(source)


class _Checked:
    """Facts about the samples so far: a few numbers of each, no sample itself."""

    def __init__(self, options: DataOptions, length: TokenLength | None) -> None:
        self._options, self._length = options, length
        self._damaged: list[Problem] = []
        self._nothing: list[Problem] = []
        self._empty = 0
        self._bytes = 0
        self._indices, self._characters, self._tokens, self._counts = array("q"), array("q"), array("q"), array("q")
        self._widths, self._heights = array("q"), array("q")
        self._visual_hashes, self._text_hashes, self._sample_hashes = array("Q"), array("Q"), array("Q")
        self._classes: Counter[str] = Counter()

    def add(self, source: SampleSource, index: int, with_entry: bool) -> SheetEntry | None:
        """Read a sample; gives its entry of the contact sheet if it is asked for and the sample usable."""
        try:
            sample = source.sample(index)
            tokens = self._length(sample) if self._length is not None else None
            _check_something_to_learn(sample, source.kind)
            visuals = [segment for segment in sample.segments if isinstance(segment, Visual)]
            frames = [self._frames(visual, sample, with_entry) for visual in visuals]
            hashes = [_short_hash(content_key(visual, 1, 1.0).encode()) for visual in visuals]
        except DamagedSample as error:
            self._damaged.append(Problem(error.name, printable(error.reason)))
            self._empty += isinstance(error, EmptyText)
            return None
        except NothingToLearn as error:
            self._nothing.append(Problem(error.name, error.reason))
            return None
        text = document_text(sample)
        self._indices.append(index)
        self._counts.append(len(visuals))
        self._characters.append(len(text))
        self._text_hashes.append(_short_hash(text.encode()))
        self._sample_hashes.append(_short_hash(text.encode() + np.array(hashes, np.uint64).tobytes()))
        if tokens is not None:
            self._tokens.append(tokens)
        for visual, seen, key in zip(visuals, frames, hashes, strict=True):
            self._bytes += _byte_count(visual)
            self._widths.append(seen[0].width)
            self._heights.append(seen[0].height)
            self._visual_hashes.append(key)
        if sample.label is not None:
            self._classes[sample.label] += 1
        if not with_entry:
            return None
        pictures = [one.picture for seen in frames for one in seen if one.picture is not None]
        return SheetEntry(sample.name, _marked_text(sample), tuple(pictures))

    def report(self, source: SampleSource) -> DataReport:
        """Sum up what was found in a source."""
        repeated, repeats = self._repeats(source)
        return DataReport(
            source.kind, len(source), tuple(self._damaged), self._empty, tuple(self._nothing), self._visuals(),
            self._texts(source), repeated, repeats, dict(sorted(self._classes.items())),
        )

    def _frames(self, visual: Visual, sample: Sample, keep: bool) -> list[_Frame]:
        def seen(picture: PIL.Image.Image) -> _Frame:
            return _Frame(picture.width, picture.height, thumbnail(picture) if keep else None)

        return visual_frames(visual, sample.name, self._options, seen)

    def _visuals(self) -> Visuals:
        widths, heights = np.array(self._widths, np.int64), np.array(self._heights, np.int64)
        order = np.argsort(widths * heights, kind="stable")
        places = (0, len(order) // 2, len(order) - 1) if len(order) else ()
        sizes = tuple((int(widths[order[place]]), int(heights[order[place]])) for place in places)
        return Visuals(len(widths), self._bytes, len(np.unique(np.array(self._visual_hashes, np.uint64))), sizes,
                       Spread.of(self._counts))

    def _texts(self, source: SampleSource) -> Texts:
        limit = self._length.limit if self._length is not None else None
        tokens = Spread.of(self._tokens) if limit is not None else None
        too_long = int((np.array(self._tokens, np.int64) > limit).sum()) if limit is not None else None
        hashes = np.array(self._text_hashes, np.uint64)
        found, firsts, counts = np.unique(hashes, return_index=True, return_counts=True)
        commonest, count = "", 0
        if len(found):
            # The earliest of those that are equally common: it does not depend on hashes.
            best = min(np.flatnonzero(counts == counts.max()), key=lambda number: int(firsts[number]))
            count = int(counts[best])
            commonest = document_text(self._again(source, int(firsts[best])))[:SHOWN_TEXT]
        return Texts(Spread.of(self._characters), tokens, limit, too_long, len(found), commonest, count)

    def _repeats(self, source: SampleSource) -> tuple[int, tuple[tuple[str, ...], ...]]:
        hashes = np.array(self._sample_hashes, np.uint64)
        found, firsts, inverse, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
        several = sorted(np.flatnonzero(counts > 1), key=lambda number: int(firsts[number]))[:NAMED]
        groups = tuple(
            tuple(self._again(source, int(place)).name for place in np.flatnonzero(inverse == number)[:NAMED])
            for number in several
        )
        return len(hashes) - len(found), groups

    def _again(self, source: SampleSource, place: int) -> Sample:
        """The usable sample number ``place``, read once more."""
        try:
            return source.sample(self._indices[place])
        except DamagedSample as error:
            raise DataError(f"{printable(str(error))}; it has changed while the data was checked: run again") from error


class _Frame(NamedTuple):
    width: int
    height: int
    picture: PIL.Image.Image | None


def _check_something_to_learn(sample: Sample, kind: SampleKind) -> None:
    if kind != "pages":
        return
    for part, what in ((Visual, "picture"), (Said, "text")):
        if not any(isinstance(segment, part) for segment in sample.segments):
            raise NothingToLearn(sample.name, f"has no {what}")


def _marked_text(sample: Sample) -> str:
    """The texts of a sample in their order, with numbers in brackets for several pictures."""
    parts: list[str] = []
    number = 0
    several = sum(isinstance(segment, Visual) for segment in sample.segments) > 1
    for segment in sample.segments:
        if isinstance(segment, Said):
            parts.append(segment.text)
        elif several:
            number += 1
            parts.append(f"[{number}]")
    return "\n".join(parts) if not several else " ".join(parts)


def _byte_count(visual: Visual) -> int:
    if isinstance(visual.content, Path):
        return visual.content.stat().st_size
    return visual.content.nbytes if isinstance(visual.content, np.ndarray) else len(visual.content)


def _short_hash(content: bytes) -> int:
    """64 bits: two of 10 million different contents are taken for equal with a probability of 3 in a million."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
