"""A lowering: the form in which a runtime executes attention best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from flamingo_rt.contract import FLOAT_DTYPES
from flamingo_rt.export.relative_positions import TabledBias
from flamingo_rt.model.language_model import Attend, ScoreBias
from flamingo_rt.model.layers import Attention


class CachedAttend(Attend, Protocol):
    """Self-attention over a cache; after the forward pass ``present`` holds each layer's new cache, key then value."""

    present: list[Tensor]


class CachedAttention:
    """What every `CachedAttend` starts from. past: per layer key and value; cache_length int64 [B]."""

    def __init__(self, past: Sequence[Tensor], cache_length: Tensor) -> None:
        self.past, self.cache_length = past, cache_length
        self.present: list[Tensor] = []


class PaddedHeads:
    """`CachedAttend` over a cache whose heads are wider than the model's: ``attend`` gets queries, keys and values with
    zeros behind each head, which add nothing to a score and give zeros, and are cut off again. It divides by the root
    of the width that it sees, so the queries are multiplied by what that is too much."""

    def __init__(self, attend: CachedAttend, head_width: int, cached_width: int) -> None:
        self.attend, self.head_width, self.cached_width = attend, head_width, cached_width
        self.present = attend.present

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor,
        bias: ScoreBias | None, bias_query: Tensor,
    ) -> Tensor:
        query = query * (self.cached_width / self.head_width) ** 0.5
        query, key, value = (F.pad(x, (0, self.cached_width - self.head_width)) for x in (query, key, value))
        out = self.attend(layer, query, key, value, positions, bias, bias_query)
        return out[..., : self.head_width]


# From (past, cache_length [B]) to the self-attention of one forward pass.
CachedAttendFactory = Callable[[Sequence[Tensor], Tensor], CachedAttend]


@dataclass(frozen=True)
class Lowering:
    """The form in which a runtime executes attention best, and the opset of its graphs. ``attend`` is the cached
    self-attention, ``attention`` makes what takes the place of an `Attention` module, ``relative_bias`` is the form of
    relative positions, ``computes`` are the types that its graphs can compute in. Where the exporter knows a later
    opset only, ``traced_opset`` is that one, and ``finish`` makes of a traced graph one of ``opset``."""

    name: str
    opset: int
    attend: CachedAttendFactory
    attention: Callable[[Attention], nn.Module]
    relative_bias: type[TabledBias]
    computes: tuple[str, ...] = FLOAT_DTYPES
    traced_opset: int | None = None
    finish: Callable[[Any], None] = lambda model: None
