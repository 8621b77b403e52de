"""Low-rank updates: nothing at the start, and the same merged or beside the matrix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_model import small_config, small_flamingo

from flamingo_rt.errors import UsageError
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.training.lora import MATRICES, LowRankLinear, add_lora
from flamingo_rt.training.merging import merged_tensors
from flamingo_rt.training.new_tokens import train_new_tokens

TOKENS = torch.arange(24).reshape(2, 12)


def logits_of(model: Flamingo) -> torch.Tensor:
    return model(TOKENS, torch.zeros_like(TOKENS))[0]


def frozen(**changes) -> Flamingo:
    config = small_config()
    model = small_flamingo(replace(config, language=replace(config.language, **changes))).double()
    model.freeze()
    return model


def trained(model: Flamingo) -> Flamingo:
    """The model after two steps on everything in its language part that is not frozen."""
    for _ in range(2):
        logits_of(model).logsumexp(-1).mean().backward()
        for parameter in model.language.parameters():
            if parameter.grad is not None:
                parameter.data -= 0.1 * parameter.grad
                parameter.grad = None
    return model


def test_updates_start_as_nothing() -> None:
    model = frozen()
    before = logits_of(model)
    add_lora(model.language, 3)
    assert torch.equal(logits_of(model), before)
    layers = [module for module in model.modules() if isinstance(module, LowRankLinear)]
    assert len(layers) == 3 * 6  # gelu has no gate
    assert all(layer.low_rank_a.std() > 0 for layer in layers)


def test_a_merged_model_computes_what_the_updates_do() -> None:
    model = frozen(activation="swiglu", attention_bias=True)
    before, start = logits_of(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_lora(model.language, 3)
    trained(model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in start.items())
    merged = merged_tensors(model)
    assert list(merged) == list(start)
    changed = {name for name in start if not torch.equal(merged[name], start[name])}
    assert changed == {
        name for name in start if name.startswith("language.layers.") and name.split(".")[-2] in MATRICES
        and name.endswith("weight")
    }
    plain = Flamingo(model.config).double().eval()
    plain.load_state_dict(merged)
    moved = (logits_of(model) - before).abs().max()
    assert moved > 0.1
    torch.testing.assert_close(logits_of(plain), logits_of(model), rtol=1e-10, atol=1e-10)


def test_the_update_is_the_product_of_the_two_scaled() -> None:
    model = frozen()
    add_lora(model.language, 4, matrices=("query",), alpha=8.0)
    layer = trained(model).language.layers[0].attention.query
    merged = merged_tensors(model)["language.layers.0.attention.query.weight"]
    torch.testing.assert_close(merged, layer.weight + 2.0 * (layer.low_rank_b @ layer.low_rank_a))
    assert {name.split(".")[-2] for name, p in model.language.named_parameters() if p.requires_grad} == {"query"}


def test_the_frozen_matrices_have_no_gradient() -> None:
    model = frozen()
    add_lora(model.language, 2)
    logits_of(model).sum().backward()
    for name, parameter in model.language.named_parameters():
        assert (parameter.grad is not None) == ("low_rank" in name), name


def test_a_seed_gives_the_same_updates_whatever_was_drawn_before() -> None:
    drawn = []
    for seed, before in ((1, 0), (1, 5), (2, 0)):
        model = frozen()
        torch.rand(before)
        add_lora(model.language, 2, seed=seed)
        drawn.append(model.language.layers[1].ff.up.low_rank_a)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_updates_of_half_precision_matrices_are_float32_and_merge_into_float32() -> None:
    model = frozen().to(torch.bfloat16)
    add_lora(model.language, 2)
    layer = model.language.layers[0].attention.query
    assert layer.low_rank_a.dtype == layer.low_rank_b.dtype == torch.float32
    with torch.no_grad():
        layer.low_rank_b.fill_(1e-5)  # bfloat16 has two to three digits
    assert logits_of(model).dtype == torch.bfloat16
    merged = merged_tensors(model)["language.layers.0.attention.query.weight"]
    assert merged.dtype == torch.float32
    assert (merged != layer.weight.float()).any()


def test_updates_and_new_tokens_are_merged_together() -> None:
    model = frozen()
    train_new_tokens(model, (1, 2))
    add_lora(model.language, 2)
    trained(model)
    plain = Flamingo(model.config).double().eval()
    plain.load_state_dict(merged_tensors(model))
    torch.testing.assert_close(logits_of(plain), logits_of(model), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("rank", "matrices", "message"), [
    (0, MATRICES, "is 0; it must be 1 or more"),
    (16, MATRICES, "rank 16 is no low rank for key, 16 × 32: give one below 16"),
    (2, ("querry",), "'querry'; known: query, key"),
    (2, ("gate",), "no linear layer called gate"),
])
def test_what_cannot_be_added_is_refused(rank: int, matrices: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        add_lora(frozen().language, rank, matrices=matrices)
