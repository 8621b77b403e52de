"""FLOPs of a step, as arithmetic by hand gives them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from small_model import small_config, small_flamingo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flamingo_rt.config import LanguageConfig
from flamingo_rt.model.language_model import LanguageModel
from flamingo_rt.model.nfnet import NFNet
from flamingo_rt.training import flops
from flamingo_rt.training.flops import CountedFlops, StepFlops, matrix_rate, shapes, utilisation
from flamingo_rt.training.new_tokens import train_new_tokens

ROWS, TOKENS = 2, 12
CONFIG = small_config()
LANGUAGE = CONFIG.language
IDS = torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS)


def step_of(forward) -> int:
    """FLOPs of a forward pass and its backward pass."""
    with CountedFlops() as count:
        forward().sum().backward()
    return count.total


def matrices(config: LanguageConfig) -> int:
    """FLOPs forward of the linear layers of language layers, by hand."""
    inner, inner_kv = config.heads * config.head_width, config.kv_heads * config.head_width
    layer = config.width * (inner + 2 * inner_kv) + inner * config.width + 2 * config.width * config.ff_width
    return 2 * ROWS * TOKENS * layer * config.layers


def attention(config: LanguageConfig) -> int:
    """FLOPs forward of scores and of the values' mean, by hand."""
    return config.layers * 2 * 2 * ROWS * config.heads * TOKENS * TOKENS * config.head_width


def head(config: LanguageConfig) -> int:
    """FLOPs forward of the logits, by hand."""
    return 2 * ROWS * TOKENS * config.width * config.vocab_size


@pytest.mark.parametrize("activation", ["swiglu", "gelu", "squared_relu"])
def test_counting_changes_no_bit_of_a_gradient(activation) -> None:
    gradients = []
    for counted in (False, True):
        model = small_flamingo(replace(CONFIG, language=replace(LANGUAGE, activation=activation)))
        pixels = torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with CountedFlops() if counted else nullcontext():
            model(IDS, torch.ones_like(IDS), pixels, torch.tensor([[0], [1]]), IDS)[1].backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


# Language models


def test_a_model_that_is_trained_whole_costs_three_forward_passes() -> None:
    model = LanguageModel(LANGUAGE)
    forward = matrices(LANGUAGE) + attention(LANGUAGE) + head(LANGUAGE)
    with CountedFlops() as count, torch.no_grad():
        model(IDS, IDS % TOKENS)
    assert count.total == forward
    assert step_of(lambda: model(IDS, IDS % TOKENS)) == 3 * forward


def test_a_frozen_language_model_costs_no_gradients_of_its_matrices() -> None:
    model = small_flamingo(replace(CONFIG, language=replace(LANGUAGE, tied_head=True)))
    model.requires_grad_(False)
    train_new_tokens(model, (3, 4))
    new_columns = 2 * ROWS * TOKENS * LANGUAGE.width * 2
    expected = 2 * matrices(LANGUAGE) + 3 * attention(LANGUAGE) + 2 * head(LANGUAGE) + 3 * new_columns
    assert step_of(lambda: model.language(IDS, IDS % TOKENS)) == expected


def test_nothing_passes_below_the_lowest_trained_parameter() -> None:
    model = small_flamingo().requires_grad_(False)
    model.language.layers[2].ff.down.requires_grad_(True)
    down = 2 * ROWS * TOKENS * LANGUAGE.ff_width * LANGUAGE.width
    forward = matrices(LANGUAGE) + attention(LANGUAGE) + head(LANGUAGE)
    # Backward: through the head, and the gradient of the weight, of which no input needs one.
    assert step_of(lambda: model.language(IDS, IDS % TOKENS)) == forward + head(LANGUAGE) + down


def test_relative_positions_count_as_the_products_that_they_are() -> None:
    config = replace(LANGUAGE, positions="relative")
    model = LanguageModel(config)
    inner = config.heads * config.head_width
    distances = 2 * TOKENS * config.width * inner + 2 * ROWS * config.heads * TOKENS * TOKENS * config.head_width
    forward = matrices(config) + attention(config) + head(config) + config.layers * distances
    with CountedFlops() as count, torch.no_grad():
        model(IDS, IDS % TOKENS)
    assert count.total == forward


@pytest.mark.parametrize(("trained", "products"), [((0, 1, 2), 4), ((0,), 2), ((1,), 2), ((2,), 1), ((0, 2), 3)])
def test_attention_passes_back_what_is_asked_for(trained: tuple[int, ...], products: int) -> None:
    parts = [torch.randn(2, 4, 10, 8, requires_grad=number in trained) for number in range(3)]
    product = 2 * 2 * 4 * 10 * 10 * 8
    assert step_of(lambda: F.scaled_dot_product_attention(*parts)) == (2 + products) * product


# Vision encoders


def convolutions(network: NFNet, size: int) -> list[int]:
    """FLOPs forward of each convolution on two pictures, by hand: sizes follow from the strides."""
    costs, side = [], size
    for layer in network.stem:
        side = -(-side // layer.stride[0])
        costs.append(2 * 2 * side**2 * layer.out_channels * layer.in_channels * 9)
    for block in network.blocks:
        before, side = side, -(-side // block.stride)
        inner = block.conv0.out_channels
        costs.append(2 * 2 * before**2 * block.conv0.in_channels * inner)
        costs += [2 * 2 * side**2 * inner * CONFIG.vision.group_width * 9] * 2  # grouped
        costs.append(2 * 2 * side**2 * inner * block.conv3.out_channels)
        costs.append(2 * 2 * side**2 * block.shortcut.in_channels * block.shortcut.out_channels)
    costs.append(2 * 2 * side**2 * network.final.in_channels * network.final.out_channels)
    return costs


def test_convolutions_count_by_their_groups_forward_and_backward() -> None:
    model = small_flamingo().vision
    pixels = torch.randn(2, 3, 32, 32)
    each = convolutions(model, 32)
    gates = sum(2 * 2 * 2 * block.excite.down.in_features * block.excite.down.out_features for block in model.blocks)
    with CountedFlops() as count, torch.no_grad():
        model(pixels)
    assert count.total == sum(each) + gates
    assert step_of(lambda: model(pixels)) == 3 * (sum(each) + gates) - each[0]  # pixels have no gradient
    model.requires_grad_(False)
    model.final.weight.requires_grad_(True)
    assert step_of(lambda: model(pixels)) == sum(each) + gates + each[-1]


def test_inference_mode_counts_the_same() -> None:
    model, pixels = small_flamingo(), torch.randn(1, 1, 3, 32, 32)
    totals = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), CountedFlops() as count:
            model.encode(pixels)
        totals.append(count.total)
    assert totals[0] == totals[1] > 0


# Whole steps


def test_recomputed_activations_count_once() -> None:
    model = LanguageModel(LANGUAGE)
    plain = step_of(lambda: model(IDS, IDS % TOKENS))
    for layer in model.layers:
        forward = layer.forward
        layer.forward = lambda *inputs, forward=forward: checkpoint(forward, *inputs, use_reentrant=False)
    assert step_of(lambda: model(IDS, IDS % TOKENS)) == plain


class Batch(NamedTuple):
    input_ids: Tensor
    cached: Tensor | None
    keys: tuple[str, ...]


def test_a_part_is_counted_once_for_each_of_its_shapes() -> None:
    layer, counts = nn.Linear(4, 4), StepFlops()

    def part(name: str, rows: int) -> None:
        with counts.part((name, shapes(Batch(torch.zeros(rows, 4), None, ("a",))))):
            layer(torch.zeros(rows, 4)).sum().backward()

    product = 2 * 4 * 4 * 2  # of a row, forward and the weight's gradient
    for name, rows in (("a", 2), ("a", 2), ("a", 3), ("b", 2)):
        part(name, rows)
    assert counts.take() == (2 + 2 + 3 + 2) * product
    part("a", 3)
    assert counts.take() == 3 * product
    assert counts.take() == 0


def test_an_error_within_a_part_is_not_counted_and_passes_on() -> None:
    counts = StepFlops()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), counts.part("a"):
        torch.zeros(2, 2) @ torch.zeros(2, 2) @ torch.zeros(3, 3)
    with counts.part("a"):
        torch.zeros(3, 3) @ torch.zeros(3, 3)
    assert counts.take() == 2 * 3**3


def test_compiled_code_is_counted_and_still_compiled_afterwards() -> None:
    counts, compiled = StepFlops(), []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    product = torch.compile(lambda x: x @ x, backend=backend)
    for seen in (0, 1):
        with counts.part("a"):
            product(torch.ones(4, 4))
        assert (counts.take(), len(compiled)) == (2 * 4**3, seen)


def test_shapes_tell_batches_apart_that_cost_different_amounts() -> None:
    ids, features = torch.zeros(2, 5), torch.zeros(1, 3)
    batches = [Batch(ids, None, ()), Batch(ids, features, ()), Batch(ids[:1], None, ()), Batch(ids[:, :4], None, ())]
    assert len({shapes(batch) for batch in batches}) == 4
    assert shapes(Batch(ids, None, ("a",))) == shapes(Batch(ids + 1, None, ("b",)))


def test_cached_features_cost_nothing() -> None:
    model, pixels = small_flamingo(), torch.randn(1, 1, 3, 32, 32)
    model.freeze()
    rows, index = torch.zeros(ROWS, 1, dtype=torch.int64), torch.ones(ROWS, TOKENS, dtype=torch.int64)
    with torch.no_grad():
        features = model.vision(pixels.flatten(0, 1))

    def logits(features: Tensor) -> Tensor:
        return model.read(IDS, index, model.resampler(features.unflatten(0, (1, 1))), rows)[0]

    with torch.no_grad(), CountedFlops() as encoder:
        model.vision(pixels.flatten(0, 1))
    with_encoder = step_of(lambda: logits(model.vision(pixels.flatten(0, 1))))
    assert encoder.total > 0
    assert with_encoder == step_of(lambda: logits(features)) + encoder.total


# The machine's rate


def test_the_share_of_the_rate_is_what_was_reached_of_it() -> None:
    assert utilisation(6e9, 2.0, 10e9) == 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_rate_is_measured_on_products_of_the_type_that_is_asked_for(monkeypatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(flops, "CPU_SIZE", 16)
    flops.matrix_rate.cache_clear()
    seen = []

    def rate(product, operations: int) -> float:
        with CountedFlops() as count:
            product()
        seen.append((count.total, operations))
        return 5.0

    monkeypatch.setattr(flops, "product_rate", rate)
    multiplied = []
    monkeypatch.setattr(torch, "mm", lambda first, second, out, mm=torch.mm: (
        multiplied.append({first.dtype, second.dtype, out.dtype}), mm(first, second, out=out)))
    assert matrix_rate(torch.device("cpu"), dtype) == 5.0
    flops.matrix_rate.cache_clear()
    assert seen == [(2 * 16**3, 2 * 16**3)]
    assert multiplied == [{dtype}]
