"""Relative positions without their projection: what a layer makes of a distance is the same for every token.

So it is computed when exporting. A graph holds it in spans of distances, and multiplies only with those that its
context reaches: a token reads as much of them as of the cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from flamingo_rt.config import LanguageConfig
from flamingo_rt.contract import DISTANCES
from flamingo_rt.model.language_model import SelfAttention
from flamingo_rt.model.positions import RelativeBias, by_position, sinusoids
from flamingo_rt.weights.lazy import LazyTensor

# A span that is reached is read whole, and each costs an operator. With 16 heads of 128 on two cores, spans of 128, 256
# and 512 took about the same at 1500 tokens; at 64, those of 512 took several times as long.
SHORTEST, MOST = 256, 8


def span_sizes(context: int) -> tuple[int, int]:
    """How many spans of how many distances, which are at least ``context`` together."""
    count = min(MOST, math.ceil(context / SHORTEST))
    return count, math.ceil(context / count)


class DistanceSpan(nn.Module):
    """Scores for the N distances of a span: query [H, M, d] -> [H, M, N]."""

    def __init__(self, heads: int, head_width: int, distances: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, head_width, distances))

    def forward(self, query: Tensor) -> Tensor:
        return query @ self.weight


class TabledBias(nn.Module):
    """`RelativeBias` with every distance projected, and scaled; for at most ``config.context`` keys."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        count, self.span = span_sizes(config.context)
        self.bias = nn.Parameter(torch.zeros(config.heads, config.head_width))
        spans = (DistanceSpan(config.heads, config.head_width, self.span) for _ in range(count))
        setattr(self, DISTANCES, nn.ModuleList(spans))

    def forward(self, query: Tensor, positions: Tensor, keys: int) -> Tensor:
        """query [B, T, H, d], positions [B, T] -> [B, H, T, keys]."""
        rows, tokens, heads = query.shape[:3]
        # All rows at once: each span is read once, however many rows there are.
        together = (query + self.bias).permute(2, 0, 1, 3).reshape(heads, rows * tokens, -1)
        by_distance = self.scores(together, keys).reshape(heads, rows, tokens, -1).transpose(0, 1)
        return by_position(by_distance, positions, keys)

    def scores(self, query: Tensor, keys: int) -> Tensor:
        """query [H, M, d] -> [H, M, keys rounded up to whole spans]."""
        reached = math.ceil(keys / self.span)
        return torch.cat([span(query) for span in getattr(self, DISTANCES)[:reached]], dim=-1)


class WholeBias(TabledBias):
    """`TabledBias` as a graph whose number of keys is the cache's capacity: all spans are multiplied, always."""

    def scores(self, query: Tensor, keys: int) -> Tensor:
        """query [H, M, d] -> [H, M, all distances]."""
        return torch.cat([span(query) for span in getattr(self, DISTANCES)], dim=-1)


class SplitBias(TabledBias):
    """`TabledBias` as a graph, which learns the number of keys at run time: a span beyond them is multiplied with no
    rows at all, and nothing of it is read. (ONNX Runtime's Slice would copy what it takes of a table.)"""

    def scores(self, query: Tensor, keys: int) -> Tensor:
        """query [H, M, d] -> [H, M, keys rounded up to whole spans]. With more keys than distances the graph fails."""
        spans = getattr(self, DISTANCES)
        heads, rows, width = query.shape
        reached = (keys + self.span - 1) // self.span
        uses = (torch.arange(len(spans)) * self.span < keys).to(torch.int64)  # 1 for a span that is reached, or 0
        copies = query[None].expand(reached, heads, rows, width)
        parts = torch.onnx.ops.symbolic_multi_out(
            "Split", (copies, uses), attrs={"axis": 0}, dtypes=[query.dtype] * len(spans),
            shapes=[(size, heads, rows, width) for size in _as_sizes(uses)],
        )
        products = [_product(part, span.weight) for part, span in zip(parts, spans, strict=True)]
        joined = torch.onnx.ops.symbolic(
            "Concat", products, attrs={"axis": 0}, dtype=query.dtype, shape=(reached, heads, rows, self.span)
        )
        return joined.permute(1, 2, 0, 3).reshape(heads, rows, reached * self.span)


def _as_sizes(uses: Tensor) -> list[int]:
    """Elements as dimensions of an exported graph; each its own, or the runtime takes their tensors for equally large
    and lets one have the memory of another."""
    sizes = uses.tolist()
    for size in sizes:
        torch._check(size >= 0)
    return sizes


def _product(query: Tensor, weight: Tensor) -> Tensor:
    """[1 or 0, H, M, d] and [H, d, N] -> [1 or 0, H, M, N]."""
    return torch.onnx.ops.symbolic(
        "MatMul", (query, weight), dtype=query.dtype, shape=(*query.shape[:-1], weight.shape[-1])
    )


def tabulate_distances(model: nn.Module, form: type[TabledBias] = TabledBias) -> None:
    """Put ``form`` in the place of every `RelativeBias` of ``model``."""
    for module in list(model.modules()):
        if isinstance(module, SelfAttention) and isinstance(module.bias, RelativeBias):
            module.bias = form(module.config)


def tabled_tensors(config: LanguageConfig, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors of the model that `tabulate_distances` makes: float32 spans, and projections gone."""
    tabled = dict(tensors)
    if config.positions != "relative":
        return tabled
    count, size = span_sizes(config.context)
    for name in tensors:
        owner, found, _ = name.rpartition(".attention.bias.projection.weight")
        if found and owner.startswith("language.layers."):
            projection = tabled.pop(name)
            for span in range(count):
                tabled[f"{owner}.attention.bias.{DISTANCES}.{span}.weight"] = replace(
                    projection, shape=(config.heads, config.head_width, size), dtype=torch.float32,
                    read=partial(_projected, config, projection, span * size, (span + 1) * size),
                )
    return tabled


def _projected(config: LanguageConfig, projection: LazyTensor, first: int, end: int) -> Tensor:
    """What the projection makes of the distances from ``first`` up to ``end``, scaled: float32 [H, d, end - first]."""
    by_distance = projection.read().float() @ sinusoids(first, end, config.width).T
    return by_distance.mul_(config.head_width**-0.5).unflatten(0, (config.heads, config.head_width))
