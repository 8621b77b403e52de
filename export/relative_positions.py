"""Transformer-XL's relative positions, projected when exporting: W r(distance) is the same for every token.

The results, the relative keys, are weights of the graph, cut into chunks along the distance. A step multiplies only
with the chunks that its context reaches, so that it reads about as many of them as it reads cached tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from flamingo_rt.config import LanguageConfig
from flamingo_rt.contract import RELATIVE_KEYS
from flamingo_rt.model.language_model import SelfAttention
from flamingo_rt.model.positions import RelativeBias, by_position, sinusoids
from flamingo_rt.weights.lazy import LazyTensor

# A chunk that is reached is read whole, so that large ones cost time in a short context; and each costs an operator.
SMALLEST_CHUNK, MOST_CHUNKS = 256, 8


def chunk_sizes(context: int) -> tuple[int, int]:
    """Number of chunks, and distances in each; together they cover ``context`` distances or a few more."""
    count = min(MOST_CHUNKS, math.ceil(context / SMALLEST_CHUNK))
    return count, math.ceil(context / count)


class RelativeKeyChunk(nn.Module):
    """Relative keys of N distances: query [H, M, d] -> scores [H, M, N]."""

    def __init__(self, heads: int, head_width: int, distances: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, head_width, distances))

    def forward(self, query: Tensor) -> Tensor:
        """Multiply with all keys of the chunk."""
        return query @ self.weight


class PrecomputedRelativeBias(nn.Module):
    """`RelativeBias` over precomputed, scaled relative keys, for at most ``config.context`` keys."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        count, self.chunk = chunk_sizes(config.context)
        self.bias = nn.Parameter(torch.zeros(config.heads, config.head_width))
        self.relative_keys = nn.ModuleList(
            RelativeKeyChunk(config.heads, config.head_width, self.chunk) for _ in range(count)
        )

    def forward(self, query: Tensor, positions: Tensor, keys: int) -> Tensor:
        """query [B, T, H, d], positions [B, T] -> [B, H, T, keys]."""
        rows, tokens, heads = query.shape[:3]
        # One product over all rows: a chunk is read once, whatever the batch size.
        together = (query + self.bias).permute(2, 0, 1, 3).reshape(heads, rows * tokens, -1)
        by_distance = self.scores(together, keys).reshape(heads, rows, tokens, -1).transpose(0, 1)
        return by_position(by_distance, positions, keys)

    def scores(self, query: Tensor, keys: int) -> Tensor:
        """query [H, M, d] -> [H, M, keys rounded up to whole chunks]."""
        reached = math.ceil(keys / self.chunk)
        return torch.cat([chunk(query) for chunk in self.relative_keys[:reached]], dim=-1)


class FixedLengthRelativeBias(PrecomputedRelativeBias):
    """`PrecomputedRelativeBias` for graphs whose number of keys is the cache's capacity: always reads all chunks."""

    def scores(self, query: Tensor, keys: int) -> Tensor:
        """query [H, M, d] -> [H, M, all distances]."""
        return torch.cat([chunk(query) for chunk in self.relative_keys], dim=-1)


class DynamicLengthRelativeBias(PrecomputedRelativeBias):
    """`PrecomputedRelativeBias` for graphs that get the number of keys at run time: a chunk beyond them is multiplied
    with zero rows, and not read. (ONNX Runtime's Slice would copy the part of a table that it takes.)"""

    def scores(self, query: Tensor, keys: int) -> Tensor:
        """query [H, M, d] -> [H, M, keys rounded up to whole chunks]. With more keys than distances the graph fails."""
        chunks = list(self.relative_keys)
        heads, rows, width = query.shape
        reached = (keys + self.chunk - 1) // self.chunk
        uses = (torch.arange(len(chunks)) * self.chunk < keys).to(torch.int64)  # 1 for a chunk that is reached, or 0
        copies = query[None].expand(reached, heads, rows, width)
        parts = torch.onnx.ops.symbolic_multi_out(
            "Split", (copies, uses), attrs={"axis": 0}, dtypes=[query.dtype] * len(chunks),
            shapes=[(size, heads, rows, width) for size in _as_sizes(uses)],
        )
        weights = [chunk.get_parameter("weight") for chunk in chunks]
        products = [_product(part, weight) for part, weight in zip(parts, weights, strict=True)]
        joined = torch.onnx.ops.symbolic(
            "Concat", products, attrs={"axis": 0}, dtype=query.dtype, shape=(reached, heads, rows, self.chunk)
        )
        return joined.permute(1, 2, 0, 3).reshape(heads, rows, reached * self.chunk)


def _as_sizes(uses: Tensor) -> list[int]:
    """Elements as dimensions of an exported graph. Each gets a symbol of its own: with a common one, the runtime would
    assume tensors of equal size and share their memory."""
    sizes = uses.tolist()
    for size in sizes:
        torch._check(size >= 0)
    return sizes


def _product(query: Tensor, weight: Tensor) -> Tensor:
    """[1 or 0, H, M, d] and [H, d, N] -> [1 or 0, H, M, N]."""
    return torch.onnx.ops.symbolic(
        "MatMul", (query, weight), dtype=query.dtype, shape=(*query.shape[:-1], weight.shape[-1])
    )


def precompute_relative_bias(
    model: nn.Module, form: type[PrecomputedRelativeBias] = PrecomputedRelativeBias
) -> None:
    """Replace every `RelativeBias` of ``model`` by a module of the type ``form``, in place."""
    for module in list(model.modules()):
        if isinstance(module, SelfAttention) and isinstance(module.bias, RelativeBias):
            module.bias = form(module.config)


def relative_key_tensors(config: LanguageConfig, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Tensors of the model that `precompute_relative_bias` makes: projections replaced by float32 relative keys, which
    are computed when they are read."""
    replaced = dict(tensors)
    if config.positions != "relative":
        return replaced
    count, size = chunk_sizes(config.context)
    for name in tensors:
        owner, found, _ = name.rpartition(".attention.bias.projection.weight")
        if found and owner.startswith("language.layers."):
            projection = replaced.pop(name)
            for chunk in range(count):
                replaced[f"{owner}.attention.bias.{RELATIVE_KEYS}.{chunk}.weight"] = replace(
                    projection, shape=(config.heads, config.head_width, size), dtype=torch.float32,
                    read=partial(_projected, config, projection, chunk * size, (chunk + 1) * size),
                )
    return replaced


def _projected(config: LanguageConfig, projection: LazyTensor, first: int, end: int) -> Tensor:
    """Project and scale the distances from ``first`` up to ``end``: float32 [H, d, end - first]."""
    by_distance = projection.read().float() @ sinusoids(first, end, config.width).T
    return by_distance.mul_(config.head_width**-0.5).unflatten(0, (config.heads, config.head_width))
