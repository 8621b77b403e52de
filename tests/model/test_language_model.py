"""Every family of language models against an explicit per-head, per-token reference; caches against no cache."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from flamingo_rt.config import LanguageConfig
from flamingo_rt.model.language_model import LanguageModel
from flamingo_rt.model.positions import alibi_slopes
from flamingo_rt.model.torch_backend import BufferAttend

Weights = dict[str, np.ndarray]


def norm(x: np.ndarray, w: Weights, name: str, config: LanguageConfig) -> np.ndarray:
    centred = x - x.mean() if config.norm == "layernorm" else x
    return centred / math.sqrt((centred**2).mean() + config.norm_eps) * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)


def linear(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0)


def paper_slopes(heads: int) -> list[float]:
    """ALiBi's slopes (arXiv 2108.12409, appendix A): for n no power of two, those of the power below, then every other
    one of the power above."""
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / below) for head in range(below)]
    return slopes + [2 ** (-8 * (2 * head + 1) / (2 * below)) for head in range(heads - below)]


def rotated(x: np.ndarray, position: int, config: LanguageConfig) -> np.ndarray:
    """One head's vector: element i and i + half are a complex number, turned by position · base^(-2i / width)."""
    width, result = int(config.head_width * config.rotary_fraction), x.copy()
    for i in range(width // 2):
        number = complex(x[i], x[i + width // 2])
        number *= cmath.exp(1j * position * config.rotary_base ** (-2 * i / width))
        result[i], result[i + width // 2] = number.real, number.imag
    return result


def sinusoid(distance: int, width: int) -> np.ndarray:
    angles = [distance / 10000 ** (2 * i / width) for i in range(width // 2)]
    return np.array([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])


def slow_attention(normed: list[np.ndarray], w: Weights, config: LanguageConfig) -> list[np.ndarray]:
    size, group = config.head_width, config.heads // config.kv_heads
    queries, keys, values = ([linear(x, w, part) for x in normed] for part in ("query", "key", "value"))
    if config.query_key_norm:
        queries = [norm(x, w, "query_norm", config) for x in queries]
        keys = [norm(x, w, "key_norm", config) for x in keys]
    results = []
    for t in range(len(normed)):
        heads = []
        for h in range(config.heads):
            own, shared = slice(h * size, (h + 1) * size), slice(h // group * size, (h // group + 1) * size)
            scores = []
            for s in range(t + 1):
                query, key = queries[t][own], keys[s][shared]
                if config.positions == "rotary":
                    query, key = rotated(query, t, config), rotated(key, s, config)
                score = query @ key
                if config.positions == "relative":  # the four terms of arXiv 1901.02860, §3.3
                    place = (w["bias.projection.weight"] @ sinusoid(t - s, config.width))[own]
                    score += query @ place + w["content_bias"][h] @ key + w["bias.bias"][h] @ place
                score /= math.sqrt(size)
                if config.positions == "alibi":
                    score -= paper_slopes(config.heads)[h] * (t - s)
                scores.append(score)
            weights = np.exp(scores) / np.exp(scores).sum()
            heads.append(sum(weight * values[s][shared] for s, weight in enumerate(weights)))
        results.append(linear(np.concatenate(heads), w, "output"))
    return results


def slow_ff(x: np.ndarray, w: Weights, config: LanguageConfig) -> np.ndarray:
    up = linear(x, w, "ff.up")
    if config.activation == "swiglu":
        gate = linear(x, w, "ff.gate")
        up = up * gate / (1 + np.exp(-gate))
    elif config.activation == "relu":
        up = np.maximum(up, 0)
    else:
        up = up * (1 + np.vectorize(math.erf)(up / math.sqrt(2))) / 2
    return linear(up, w, "ff.down")


def slow_logits(ids: list[int], w: Weights, config: LanguageConfig) -> np.ndarray:
    hidden = [w["embedding.weight"][token] for token in ids]
    if config.positions == "learnt":
        hidden = [x + w["position_table.weight"][t + config.position_offset] for t, x in enumerate(hidden)]
    for index in range(config.layers):
        prefix = f"layers.{index}."
        layer = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
        inner = {name.removeprefix("attention."): value for name, value in layer.items()}
        attended = slow_attention([norm(x, layer, "attention_norm", config) for x in hidden], inner, config)
        after = [x + y for x, y in zip(hidden, attended, strict=True)]
        source = hidden if config.parallel_residual else after
        hidden = [y + slow_ff(norm(x, layer, "ff_norm", config), layer, config)
                  for x, y in zip(source, after, strict=True)]
    head = "embedding" if config.tied_head else "head"
    return np.stack([linear(norm(x, w, "norm", config), w, head) for x in hidden])


def token_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 37, shape, generator=torch.Generator().manual_seed(seed))


def places(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand_as(ids)


def empty_cache(config: LanguageConfig, rows: int, capacity: int) -> list[torch.Tensor]:
    """Buffers full of values that would show if they were read."""
    shape = (rows, config.kv_heads, capacity, config.head_width)
    return [torch.full(shape, 9.0) for _ in range(2 * config.layers)]


def cached(model: LanguageModel, ids: torch.Tensor, past: list[torch.Tensor], lengths: list[int]) -> torch.Tensor:
    """Logits of new tokens ids [B, T] behind ``lengths`` cached ones."""
    start = torch.tensor(lengths)
    return model(ids, start[:, None] + places(ids), BufferAttend(past, start))


@torch.no_grad()
def test_logits_equal_the_slow_reference(family, randomise, arrays):
    model = randomise(LanguageModel(family)).double()
    ids = token_ids(2, 7)
    expected = np.stack([slow_logits(row.tolist(), arrays(model), family) for row in ids])
    # The model computes angles and slopes in float32.
    np.testing.assert_allclose(model(ids, places(ids)).numpy(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_relative_and_alibi_positions_equal_the_reference_with_grouped_queries(randomise, arrays, family):
    config = replace(family, kv_heads=family.heads // 2)
    model = randomise(LanguageModel(config)).double()
    ids = token_ids(1, 6)
    expected = slow_logits(ids[0].tolist(), arrays(model), config)
    np.testing.assert_allclose(model(ids, places(ids))[0].numpy(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_later_token_does_not_change_earlier_logits(family, randomise):
    model = randomise(LanguageModel(family))
    ids = token_ids(1, 8)
    changed = ids.clone()
    changed[0, 5] = (ids[0, 5] + 1) % 37
    before, after = model(ids, places(ids)), model(changed, places(ids))
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=1e-6)
    assert ((after[:, 5:] - before[:, 5:]).abs().amax(-1) > 1e-3).all()


@torch.no_grad()
def test_the_order_of_tokens_matters(family, randomise):
    """Use one layer: its attention alone gives the last token the same result for any order of those before it."""
    model = randomise(LanguageModel(replace(family, layers=1)))
    ids = torch.tensor([[3, 11, 20, 5]])
    swapped = torch.tensor([[20, 11, 3, 5]])
    difference = model(ids, places(ids))[0, -1] - model(swapped, places(ids))[0, -1]
    assert difference.abs().max() > 1e-3


@torch.no_grad()
def test_logits_index_picks_the_same_rows(family, randomise):
    model = randomise(LanguageModel(family))
    ids, wanted = token_ids(2, 6), torch.tensor([[5, 0, 2], [1, 1, 4]])
    every = model(ids, places(ids))
    picked = model(ids, places(ids), logits_index=wanted)
    expected = torch.stack([every[row, wanted[row]] for row in range(2)])
    torch.testing.assert_close(picked, expected, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [(8,), (3, 1, 4), (1,) * 8, (5, 3)])
def test_a_cache_filled_in_pieces_gives_the_same_logits(family, randomise, pieces):
    model = randomise(LanguageModel(family))
    ids, past, done, logits = token_ids(2, 8), empty_cache(family, 2, 12), 0, []
    for size in pieces:
        logits.append(cached(model, ids[:, done : done + size], past, [done, done]))
        done += size
    torch.testing.assert_close(torch.cat(logits, dim=1), model(ids, places(ids)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_of_different_length_share_a_batch(family, randomise):
    model = randomise(LanguageModel(family))
    lengths, ids = (6, 2), token_ids(2, 9)
    past = empty_cache(family, 2, 12)
    cached(model, ids[:, :6], past, [0, 0])  # row 1 has two tokens, the rest is padding
    new = torch.stack([ids[row, length : length + 3] for row, length in enumerate(lengths)])
    logits = cached(model, new, past, list(lengths))
    for row, length in enumerate(lengths):
        whole = ids[row : row + 1, : length + 3]
        expected = model(whole, places(whole))[0, length:]
        torch.testing.assert_close(logits[row], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_new_keys_are_written_at_each_rows_length_and_nowhere_else(family, randomise):
    model = randomise(LanguageModel(family))
    past = empty_cache(family, 2, 6)
    cached(model, token_ids(2, 2), past, [3, 0])
    for buffer in past:
        untouched = (buffer == 9.0).all(dim=(1, 3))
        assert untouched.tolist() == [[True, True, True, False, False, True], [False, False, True, True, True, True]]


@pytest.mark.parametrize("heads", [1, 2, 4, 6, 12, 16, 20, 40])
def test_alibi_slopes_follow_the_paper(heads):
    assert alibi_slopes(heads, 8.0).tolist() == pytest.approx(paper_slopes(heads), rel=1e-6)
