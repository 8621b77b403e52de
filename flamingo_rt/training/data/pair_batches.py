"""Batches of stage 1: pictures and their texts, a function of (seed, step) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from flamingo_rt.config import PreprocessingConfig
from flamingo_rt.errors import FlamingoError, UsageError
from flamingo_rt.training.data.augmentation import Augmentation
from flamingo_rt.training.data.sample_order import SampleOrder
from flamingo_rt.training.data.samples import DamagedSample, Said, Sample, SampleSource, Visual
from flamingo_rt.training.data.usable_samples import SampleReader, places_of_part
from flamingo_rt.training.data.visual_pixels import visual_pixels
from flamingo_rt.training.options import DataOptions
from flamingo_rt.training.stage import Drawn


class PairBatch(NamedTuple):
    """A part of a batch of N pairs: pixel_values float32 [N, 3, S, S]; text_ids int64 [N, T]; mask bool [N, T], false
    for padding; text_keys int64 [N], equal for equal texts."""

    pixel_values: Tensor
    text_ids: Tensor
    mask: Tensor
    text_keys: Tensor

    def to(self, device: torch.device) -> PairBatch:
        """The same batch on a device."""
        return PairBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass(frozen=True)
class PairReader:
    """From a picture with its text to what the encoders take: pictures of ``image_size`` pixels, texts of at most
    ``text_tokens`` tokens; what is beyond is cut off."""

    tokenizer: Tokenizer
    preprocessing: PreprocessingConfig
    image_size: int
    text_tokens: int

    def pixels(self, sample: Sample, change: Augmentation | None = None) -> np.ndarray:
        """Pixel values float32 [3, S, S] of the sample's picture. Raises `DamagedSample`."""
        visual = sample.segments[0] if sample.segments else None
        if not isinstance(visual, Visual) or visual.kind != "image":
            raise DamagedSample(sample.name, "does not begin with a picture")
        return visual_pixels(visual, sample.name, _PICTURES, self.preprocessing, self.image_size, change)[0]

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens; none of a text that the tokenizer leaves out."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids[: self.text_tokens]

    def require_tokens(self, name: str, text: str) -> list[int]:
        """Token ids of the text of the sample ``name``. Raises `DamagedSample` where there are none: the mean of what
        the text encoder makes of nothing is no number."""
        ids = self.text_ids(text)
        if not ids:
            raise DamagedSample(name, f"the tokenizer makes no token of its text {text[:80]!r}")
        return ids

    def padded(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """``text_ids`` and ``mask`` of a `PairBatch`, as long as the longest of the texts."""
        ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
        mask = np.zeros(ids.shape, bool)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = text, True
        return torch.from_numpy(ids), torch.from_numpy(mask)


def _text_key(ids: Sequence[int]) -> int:
    """A hash of token ids, of 63 bits."""
    return int.from_bytes(hashlib.blake2b(repr(list(ids)).encode(), digest_size=8).digest(), "little") >> 1


_PICTURES = DataOptions("pictures")  # `visual_pixels` reads options of clips alone from it


def pair_text(sample: Sample) -> str:
    """The text about a pair's picture: its caption, or a question with its answer. Raises `DamagedSample`."""
    texts = [segment.text.strip() for segment in sample.segments if isinstance(segment, Said)]
    if not any(texts):
        raise DamagedSample(sample.name, "has no text")
    return " ".join(texts)


class _Pair(NamedTuple):
    """Pixel values float32 [3, S, S], token ids, and the key of the text."""

    pixels: np.ndarray
    ids: list[int]
    key: int


class PairBatches:
    """`Batches` of one dataset, which is the one with ``number`` in the mixture. Pair i of step s is the sample that
    stands at its place of `SampleOrder`; a part of a batch is a run of its pairs."""

    def __init__(
        self, source: SampleSource, options: DataOptions, reader: PairReader, seed: int, number: int = 0
    ) -> None:
        """Raises `UsageError` for a batch of more pairs than the source has: each is to be told from the others."""
        if options.batch > len(source):
            remedy = "lower its batch" if len(source) > 1 else "a batch is of 2 pairs or more: give it more"
            raise UsageError(f"{options.label} has {len(source)} pair{'s' * (len(source) != 1)}, fewer than a batch of "
                             f"{options.batch}: {remedy}")
        self._source, self._options, self._reader = source, options, reader
        self._order = SampleOrder(len(source), seed, number)

    def draw(self, step: int, part: int, parts: int) -> Drawn:
        """See `Batches.draw`."""
        samples = SampleReader(self._source, self._order, self._options.label)
        first = step * self._options.batch
        try:
            pairs = [
                samples.take(first + place, self._pair)[1] for place in places_of_part(self._options, part, parts)
            ]
        except FlamingoError as error:
            return Drawn(None, tuple(samples.damaged), samples.read, tuple(samples.names), error)
        pixels = torch.from_numpy(np.stack([pair.pixels for pair in pairs]))
        keys = torch.tensor([pair.key for pair in pairs])
        batch = PairBatch(pixels, *self._reader.padded([pair.ids for pair in pairs]), keys)
        return Drawn(batch, tuple(samples.damaged), samples.read, tuple(samples.names))

    def fingerprint(self) -> dict[str, Any]:
        """See `Batches.fingerprint`: changes with the source and with each option that changes a batch."""
        names = ("batch", "augment", "leading_space", "template")
        return {"data": self._source.fingerprint(), "files": self._source.files,
                "text_tokens": self._reader.text_tokens,
                **{name: getattr(self._options, name) for name in names}}

    def _pair(self, sample: Sample, rng: np.random.Generator) -> _Pair:
        """A pair, flipped and recoloured, and with a space before the text, where the options say so (§A.2)."""
        text = pair_text(sample)
        spaced = rng.random() < self._options.leading_space
        ids = self._reader.require_tokens(sample.name, text)
        key = _text_key(ids)  # that of the text alone: the space makes no other text of it
        if spaced:
            ids = self._reader.text_ids(" " + text)
        change = Augmentation.drawn(rng) if self._options.augment else None
        return _Pair(self._reader.pixels(sample, change), ids, key)
