"""Error-aware rounding: it loses less than rounding to the nearest, for the inputs as they come."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_model import small_config, small_flamingo
from torch import Tensor, nn

from flamingo_rt.errors import DataError
from flamingo_rt.export.quantization import gptq
from flamingo_rt.export.quantization.gptq import DAMPING, LayerRounding
from flamingo_rt.export.quantization.packed_matrices import QuantizedMatrix, round_to_nearest
from flamingo_rt.export.quantization.quantization_options import Blocks
from flamingo_rt.model.flamingo import Flamingo

ROWS, WIDTH = 24, 64
SEEDS = pytest.mark.parametrize("seed", range(5))


def round_with_errors(matrix: np.ndarray, hessian: np.ndarray, blocks: Blocks) -> QuantizedMatrix:
    return gptq.round_with_errors(torch.from_numpy(matrix), torch.from_numpy(hessian), blocks)


def correlated(seed: int, count: int = 200, width: int = WIDTH) -> np.ndarray:
    """Inputs [count, width] that vary along a few directions mostly, as a network's do."""
    generator = np.random.default_rng(seed)
    directions = generator.standard_normal((width // 8, width))
    inputs = generator.standard_normal((count, width // 8)) @ directions
    return (inputs + 0.1 * generator.standard_normal((count, width))).astype(np.float32)


def weights(seed: int, rows: int = ROWS, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(1000 + seed).standard_normal((rows, width)).astype(np.float32)


def output_error(matrix: np.ndarray, rounded: QuantizedMatrix, inputs: np.ndarray) -> float:
    """Relative error of the products with ``inputs``."""
    expected = inputs @ matrix.T
    return float(np.linalg.norm(inputs @ rounded.dequantized().T - expected) / np.linalg.norm(expected))


# One matrix


@SEEDS
@pytest.mark.parametrize("block", [16, 32, 64])
def test_correlated_inputs_lose_less_than_by_the_nearest(seed: int, block: int) -> None:
    """Compare on inputs that the rounding has not seen, too."""
    matrix, inputs = weights(seed), correlated(seed, 400)
    seen, unseen = inputs[:200], inputs[200:]
    aware = round_with_errors(matrix, seen.T @ seen, Blocks(4, block))
    nearest = round_to_nearest(matrix, Blocks(4, block))
    for some in (seen, unseen):
        assert output_error(matrix, aware, some) < 0.7 * output_error(matrix, nearest, some)


def test_rounding_equals_the_papers_loop_over_single_numbers() -> None:
    """Algorithm 1 without blocks of columns: each column's error goes to all columns behind it at once."""
    matrix, inputs = weights(3, 5, 32).astype(np.float64), correlated(3, width=32)
    hessian = (inputs.T @ inputs).astype(np.float64)
    rounded = round_with_errors(matrix.astype(np.float32), hessian.astype(np.float32), Blocks(4, 16))
    hessian += DAMPING * np.mean(np.diag(hessian)) * np.eye(32)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    expected = np.empty_like(matrix)
    for row in range(5):
        rest, scale = matrix[row].copy(), 0.0
        for column in range(32):
            if column % 16 == 0:
                block = rest[column : column + 16]
                scale = -block[np.abs(block).argmax()] / 8
            expected[row, column] = np.clip(np.rint(rest[column] / scale), -8, 7) * scale
            error = (rest[column] - expected[row, column]) / upper[column, column]
            rest[column + 1 :] -= error * upper[column, column + 1 :]
    np.testing.assert_allclose(rounded.dequantized(), expected, rtol=1e-4, atol=1e-5)


def test_rounding_leaves_its_arguments_unchanged() -> None:
    matrix, inputs = weights(0), correlated(0)
    hessian = inputs.T @ inputs
    before = matrix.copy(), hessian.copy()
    round_with_errors(matrix, hessian, Blocks(4, 16))
    np.testing.assert_array_equal(matrix, before[0])
    np.testing.assert_array_equal(hessian, before[1])


def test_an_input_that_is_always_zero_does_no_harm() -> None:
    matrix, inputs = weights(0), correlated(0)
    inputs[:, 5] = 0
    rounded = round_with_errors(matrix, inputs.T @ inputs, Blocks(4, 16))
    assert np.isfinite(rounded.dequantized()).all()
    assert output_error(matrix, rounded, inputs) < 0.1


def test_a_block_without_a_number_below_zero_is_rounded_as_well_as_others() -> None:
    """Every number is positive in a norm's gain, and in a block of few numbers now and then."""
    matrix, inputs = np.abs(weights(0)), correlated(0)
    aware = round_with_errors(matrix, inputs.T @ inputs, Blocks(4, 16))
    nearest = round_to_nearest(matrix, Blocks(4, 16))
    assert output_error(matrix, aware, inputs) < output_error(matrix, nearest, inputs)


# The layers of a model

BLOCKS = Blocks(4, 16)
IDS = torch.randint(300, (3, 11), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([11, 7, 4])
TOKENS = torch.arange(11) < LENGTHS[:, None]


def named(*parts: str):
    """Blocks for the matrices of the language model whose name has one of ``parts``."""
    return lambda name: BLOCKS if name.startswith("language.") and any(part in name for part in parts) else None


def run(model: Flamingo, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model.decode(ids, torch.arange(ids.shape[1]).expand_as(ids), torch.zeros_like(ids), None, None)


def inputs_of(model: Flamingo, name: str, ids: Tensor = IDS) -> Tensor:
    """Inputs of a layer, [rows, T, width]."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    run(model, ids)
    handle.remove()
    return seen[0]


def matrices(model: Flamingo) -> dict[str, Tensor]:
    return {f"{name}.weight": module.weight.detach().clone() for name, module in model.named_modules()
            if isinstance(module, nn.Linear)}


def test_the_chosen_layers_compute_with_their_rounded_weights_and_others_stay() -> None:
    model = small_flamingo()
    before, told = matrices(model), []
    rounding = LayerRounding(model, named(".ff."), TOKENS, told.append)
    run(model)
    chosen = {name for name in before if name.startswith("language.") and ".ff." in name}
    assert set(rounding.rounded) == chosen
    assert len(chosen) == 6
    assert told == [1] * rounding.layers == [1] * 6
    for name, matrix in matrices(model).items():
        if name in chosen:
            np.testing.assert_array_equal(matrix.numpy(), rounding.rounded[name].dequantized())
            assert not torch.equal(matrix, before[name])
        else:
            assert torch.equal(matrix, before[name]), name


def test_each_layer_is_rounded_for_what_the_rounded_ones_before_it_give() -> None:
    model = small_flamingo()
    before = matrices(model)
    rounding = LayerRounding(model, named(".ff.", "attention."), TOKENS)
    run(model)
    replayed, layers = small_flamingo(), list(rounding.rounded)
    assert layers[0].startswith("language.layers.0.")
    assert layers[-1].startswith("language.layers.2.")
    for name in layers:  # in the order in which they compute
        seen = inputs_of(replayed, name.removesuffix(".weight"))[TOKENS].numpy()
        expected = round_with_errors(before[name].numpy(), seen.T @ seen, BLOCKS)
        np.testing.assert_array_equal(rounding.rounded[name].packed, expected.packed, err_msg=name)
        np.testing.assert_allclose(rounding.rounded[name].scales, expected.scales, rtol=1e-6)
        with torch.no_grad():
            replayed.get_parameter(name).copy_(torch.from_numpy(expected.dequantized()))


def test_a_later_layer_is_rounded_otherwise_where_an_earlier_one_was_rounded() -> None:
    results = []
    for parts in (("layers.2.ff.down",), (".ff.", "attention.")):
        model = small_flamingo()
        rounding = LayerRounding(model, named(*parts), TOKENS)
        run(model)
        results.append(rounding.rounded["language.layers.2.ff.down.weight"].packed)
    assert not np.array_equal(*results)


def test_padding_does_not_influence_the_rounding() -> None:
    other = torch.where(TOKENS, IDS, (IDS + 17) % 300)
    results = []
    for ids in (IDS, other):
        model = small_flamingo()
        rounding = LayerRounding(model, named(".ff.", "attention."), TOKENS)
        run(model, ids)
        results.append(rounding.rounded)
    assert set(results[0]) == set(results[1])
    for name, rounded in results[0].items():
        np.testing.assert_array_equal(rounded.packed, results[1][name].packed, err_msg=name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_layer_that_is_given_no_numbers_to_round_for_is_named(value: float) -> None:
    """1e30 is a number, but its square is none in float32."""
    model = small_flamingo()
    LayerRounding(model, named(".ff."), TOKENS)
    with torch.no_grad():
        model.language.layers[1].ff_norm.weight[0] = value
    with pytest.raises(DataError, match=r"cannot round language\.layers\.1\.ff\.up\.weight: its inputs on the"):
        run(model)


def test_a_weight_without_numbers_is_named() -> None:
    model = small_flamingo()
    LayerRounding(model, named(".ff."), TOKENS)
    with torch.no_grad():
        model.language.layers[1].ff.up.weight[2, 3] = torch.nan
    with pytest.raises(DataError, match=r"cannot round language\.layers\.1\.ff\.up\.weight: its weight has numbers"):
        run(model)


def test_queries_keys_and_values_are_rounded_for_the_same_inputs() -> None:
    model = small_flamingo()
    seen = inputs_of(model, "language.layers.0.attention.value")[TOKENS].numpy()
    before = matrices(model)
    rounding = LayerRounding(model, named("layers.0.attention."), TOKENS)
    run(model)
    for part in ("query", "key", "value"):
        name = f"language.layers.0.attention.{part}.weight"
        expected = round_with_errors(before[name].numpy(), seen.T @ seen, BLOCKS)
        np.testing.assert_array_equal(rounding.rounded[name].packed, expected.packed)


def test_a_model_rounded_for_its_prompts_answers_them_better_than_by_the_nearest() -> None:
    ids, tokens = IDS.repeat(4, 1), TOKENS.repeat(4, 1)
    ids = (ids + 7 * torch.arange(len(ids))[:, None]) % 300
    expected = run(small_flamingo(), ids)[tokens]
    aware, nearest = small_flamingo(), small_flamingo()
    LayerRounding(aware, named(".ff.", "attention."), tokens)
    found = run(aware, ids)[tokens]
    with torch.no_grad():
        for name, matrix in matrices(nearest).items():
            if named(".ff.", "attention.")(name):
                rounded = round_to_nearest(matrix.numpy(), BLOCKS).dequantized()
                nearest.get_parameter(name).copy_(torch.from_numpy(rounded))
    assert (found - expected).norm() < 0.8 * (run(nearest, ids)[tokens] - expected).norm()


def test_the_small_model_has_a_layer_for_each_kind_of_matrix() -> None:
    names = matrices(Flamingo(small_config()))
    assert {name.rpartition(".layers.0.")[2] for name in names if name.startswith("language.layers.0.")} == {
        "attention.query.weight", "attention.key.weight", "attention.value.weight", "attention.output.weight",
        "ff.up.weight", "ff.down.weight",
    }
