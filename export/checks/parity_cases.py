"""Random prompts on which exported graphs are compared with PyTorch, and PyTorch's results for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flamingo_rt.contract import layer_parts, media_name, present_name
from flamingo_rt.model.cross_attention import one_after_the_other
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.language_model import Attend, ScoreBias, attend_without_cache

PICTURES = 6  # random, encoded once; the prompts' pictures and clips are made from them


@dataclass(frozen=True)
class Case:
    """A prompt: each row's number of tokens and the places of its visuals, and the sizes of the ``pieces`` that
    continue all rows."""

    name: str
    lengths: tuple[int, ...]
    visuals: tuple[tuple[int, ...], ...]
    frames: int = 1
    pieces: tuple[int, ...] = (1, 1, 1)

    @property
    def tokens(self) -> int:
        """Number of tokens of the longest row, with its pieces."""
        return max(self.lengths) + sum(self.pieces)

    @property
    def visual_count(self) -> int:
        """Number of visuals to encode: at least one, since a graph cannot take none."""
        return max(1, sum(map(len, self.visuals)))


CASES = (
    Case("no picture", (7,), ((),)),
    Case("one picture", (9,), ((1,),)),
    Case("text, then one picture", (11,), ((6,),)),
    Case("several pictures", (23,), ((0, 5, 9, 15, 16),)),
    Case("clips", (12,), ((1, 7),), frames=3),
    Case("clips with more frames than trained", (6,), ((1,),), frames=12),
    Case("ragged batch", (5, 13, 8, 1), ((1,), (2, 6, 7), (), (0,))),
    Case("continued by several tokens", (10,), ((1, 4),), pieces=(6, 1, 4)),
)


@dataclass(frozen=True)
class Expected:
    """PyTorch's results for a case.

    ``features`` [M, F, S, Dv] of its visuals; ``media``: keys and values [M, Hx, L, d] by name; ``input_ids`` and
    ``media_index`` [B, tokens]; for each row the ``logits`` [T, vocab] of its tokens and pieces, without padding, and
    its ``caches`` [1, Hk, T, d] by name.
    """

    case: Case
    features: Tensor
    media: dict[str, Tensor]
    input_ids: Tensor
    media_index: Tensor
    logits: list[Tensor]
    caches: list[dict[str, Tensor]]

    def by_row(self, name: str) -> Tensor:
        """Arrange the media tensor ``name`` by row: [B, Hx, V * L, d], at least one slot, zeros in unused ones."""
        counts = [len(places) for places in self.case.visuals]
        rows = self.media[name][: sum(counts)].split(counts)
        stacked = pad_sequence(list(rows), batch_first=True)
        stacked = stacked if any(counts) else stacked.new_zeros(len(counts), 1, *stacked.shape[2:])
        return one_after_the_other(stacked)


@dataclass(frozen=True)
class Reference:
    """Pictures [N, 3, H, W], their features [N, S, Dv], and every case."""

    pixel_values: Tensor
    features: Tensor
    cases: list[Expected]


class _Recorder:
    """The reference attention, recording each layer's keys and values, which a cache must hold."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor,
        bias: ScoreBias | None, bias_query: Tensor,
    ) -> Tensor:
        for part, tensor in (("key", key), ("value", value)):
            self.seen[present_name(layer, part)] = tensor.transpose(1, 2)
        return attend_without_cache(layer, query, key, value, positions, bias, bias_query)


STEPS = len(CASES) + 2  # calls of `on_step`: for the pictures, each case's media, all texts


@torch.no_grad()
def compute_reference(model: Flamingo, on_step: Callable[[int], None] = lambda count: None) -> Reference:
    """Run the stateless model over all cases. All texts go in one pass, so that a streamed model reads its weights
    once. ``on_step`` is called `STEPS` times with 1."""
    generator = torch.Generator().manual_seed(0)
    side = model.config.vision.image_size
    pixels = torch.randn(PICTURES, 3, side, side, generator=generator)
    features = model.vision(pixels.to(model.language.embedding.weight.dtype))
    on_step(1)
    cases = []
    for case in CASES:
        cases.append(_with_media(model, case, features, generator))
        on_step(1)
    answer(model, cases)
    on_step(1)
    return Reference(pixels, features, cases)


def _with_media(model: Flamingo, case: Case, pictures: Tensor, generator: torch.Generator) -> Expected:
    """Draw a case's texts and compute its media, without logits and caches yet."""
    shown = torch.arange(case.visual_count * case.frames) % PICTURES
    features = pictures[shown].unflatten(0, (case.visual_count, case.frames))
    media = encode_media(model, features)
    input_ids = torch.randint(model.config.language.vocab_size, (len(case.lengths), case.tokens), generator=generator)
    media_index = torch.zeros_like(input_ids)
    for row, places in enumerate(case.visuals):
        for place in places:
            media_index[row, place:] += 1
    return Expected(case, features, media, input_ids, media_index, [], [])


def encode_media(model: Flamingo, features: Tensor) -> dict[str, Tensor]:
    """features [M, F, S, Dv] -> keys and values [M, Hx, L, d] of every cross-attention layer, by name."""
    keys, values = model.cross_attention.keys_values(model.resampler(features))
    parts = {"key": keys, "value": values}
    return {media_name(layer, part): parts[part][layer] for layer, part in layer_parts(len(keys))}


def answer(model: Flamingo, cases: Sequence[Expected]) -> None:
    """Fill in the cases' logits and caches, from one pass over all rows."""
    recorder, batch = _Recorder(), TextBatch.of(cases)
    logits = batch.decode(model, recorder)
    for index, ((expected, _), length) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
        expected.logits.append(logits[index, :length])
        expected.caches.append({name: seen[index : index + 1, :, :length] for name, seen in recorder.seen.items()})


@dataclass(frozen=True)
class TextBatch:
    """Rows of all cases as one batch, padded at their end, which causal attention never sees; rows with fewer visuals
    have zeros in the other slots. ``rows`` holds the case and the row in it of each.

    ``input_ids`` and ``media_index`` [R, T], ``keys`` and ``values`` per cross-attention layer [R, Hx, V * L, d].
    """

    rows: list[tuple[Expected, int]]
    lengths: list[int]
    input_ids: Tensor
    media_index: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    @staticmethod
    def of(cases: Sequence[Expected]) -> TextBatch:
        """Pad and stack the rows of ``cases``."""
        rows = [(expected, row) for expected in cases for row in range(len(expected.case.lengths))]
        texts = [_unpadded(expected, row) for expected, row in rows]
        input_ids, media_index = (pad_sequence(list(part), batch_first=True) for part in zip(*texts, strict=True))
        keys, values = (
            [pad_sequence([expected.by_row(name)[row].transpose(0, 1) for expected, row in rows], batch_first=True)
             .transpose(1, 2) for name in cases[0].media if name.endswith(part)]
            for part in ("key", "value")
        )
        return TextBatch(rows, [len(ids) for ids, _ in texts], input_ids, media_index, keys, values)

    @property
    def tokens(self) -> Tensor:
        """Mask of the positions that are not padding: bool [R, T]."""
        return torch.arange(self.input_ids.shape[1]) < torch.tensor(self.lengths)[:, None]

    def decode(
        self, model: Flamingo, attend: Attend = attend_without_cache, logits_index: Tensor | None = None
    ) -> Tensor:
        """Compute logits [R, T, vocab], or [R, K, vocab] at ``logits_index`` [R, K]."""
        positions = torch.arange(self.input_ids.shape[1]).expand_as(self.input_ids)
        return model.decode(
            self.input_ids, positions, self.media_index, self.keys, self.values, attend, logits_index
        )


def _unpadded(expected: Expected, row: int) -> tuple[Tensor, Tensor]:
    """Token ids and media indices of a row, [T] each, its pieces' tokens directly after its prompt."""
    length, prompt = expected.case.lengths[row], max(expected.case.lengths)
    ids, media_index = (
        torch.cat([part[row, :length], part[row, prompt:]]) for part in (expected.input_ids, expected.media_index)
    )
    return ids, media_index
