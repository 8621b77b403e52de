"""Trained rows beside a frozen table: they compute and learn what rows of the table would."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_model import small_config, small_flamingo

from flamingo_rt.errors import UsageError
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.training.merging import merged_tensors
from flamingo_rt.training.new_tokens import train_new_tokens

IDS = (7, 3, 299)
HEADS = pytest.mark.parametrize("head", ["tied", "untied", "untied with bias"])


def config_with(head: str):
    config = small_config()
    return replace(config, language=replace(
        config.language, tied_head=head == "tied", head_bias=head == "untied with bias"))


def prompt(vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens among which each of `IDS` occurs more than once, and labels."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(vocab, (2, 12), generator=generator)
    input_ids[:, 2:8] = torch.tensor([7, 3, 299, 3, 7, 7])
    return input_ids, input_ids.clone()


def loss_of(model: Flamingo) -> torch.Tensor:
    input_ids, labels = prompt(model.config.language.vocab_size)
    loss = model(input_ids, torch.zeros_like(input_ids), labels=labels)[1]
    assert loss is not None
    return loss


def frozen_with_new_tokens(head: str) -> Flamingo:
    model = small_flamingo(config_with(head)).double()
    model.freeze()
    train_new_tokens(model, IDS)
    return model


@HEADS
def test_rows_have_the_gradients_that_they_had_in_the_table(head: str) -> None:
    whole, model = small_flamingo(config_with(head)).double(), frozen_with_new_tokens(head)
    losses = [loss_of(each) for each in (whole, model)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0.0)
    for loss in losses:
        loss.backward()
    found = {name: p.grad for name, p in model.language.named_parameters() if p.requires_grad}
    assert set(found) == {"embedding.new_rows"} | ({"head.new_rows"} if head != "tied" else set())
    for name, gradient in found.items():
        table = whole.language.get_parameter(name.replace("new_rows", "weight")).grad
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, table[list(IDS)], rtol=1e-9, atol=1e-12)


@HEADS
def test_only_the_rows_change_and_they_are_written_into_the_table(head: str) -> None:
    model, before = frozen_with_new_tokens(head), small_flamingo(config_with(head)).double().state_dict()
    for _ in range(2):
        loss_of(model).backward()
        for parameter in model.language.parameters():
            if parameter.requires_grad:
                parameter.data -= 0.1 * parameter.grad
    assert model.language.embedding.weight.grad is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if name in before)
    merged = merged_tensors(model)
    assert list(merged) == list(before)
    others = [token for token in range(300) if token not in IDS]
    for name, tensor in merged.items():
        table = name == "language.embedding.weight" or name == "language.head.weight"
        assert torch.equal(tensor, before[name]) != table
        assert not table or torch.equal(tensor[others], before[name][others])
    plain = Flamingo(model.config).double().eval()
    plain.load_state_dict(merged)
    torch.testing.assert_close(loss_of(plain), loss_of(model), rtol=1e-12, atol=0.0)


def only_output(head: str, cross_from: int = 0) -> Flamingo:
    config = config_with(head)
    config = replace(config, cross_attention=replace(config.cross_attention, interval=1, first=cross_from))
    model = small_flamingo(config).double()
    model.freeze()
    train_new_tokens(model, IDS, only_output=True)
    return model


@HEADS
def test_rows_of_the_output_alone_have_the_gradients_of_its_path(head: str) -> None:
    """By hand: the logits are the last hidden states, which are constants, times the head's rows."""
    model = only_output(head)
    hidden: list[torch.Tensor] = []
    model.language.norm.register_forward_hook(lambda module, given, output: hidden.append(output.detach()))
    for parameter in model.cross_attention.parameters():
        parameter.requires_grad_(False)
    loss = loss_of(model)
    loss.backward()
    plain = small_flamingo(model.config).double().language
    table = (plain.embedding if plain.head is None else plain.head).weight.detach().clone().requires_grad_()
    bias = None if plain.head is None else plain.head.bias
    logits = F.linear(hidden[0], table, bias)
    labels = prompt(model.config.language.vocab_size)[1]
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0.0)
    expected.backward()
    found = {name: p.grad for name, p in model.language.named_parameters() if p.requires_grad}
    assert list(found) == ["embedding.new_rows" if head == "tied" else "head.new_rows"]
    torch.testing.assert_close(*found.values(), table.grad[list(IDS)], rtol=1e-9, atol=1e-12)


@HEADS
def test_below_the_first_cross_attention_nothing_needs_a_backward_pass(head: str) -> None:
    needs: dict[str, list[bool]] = {}
    for name, model in (("output", only_output(head, 2)), ("both", frozen_with_new_tokens(head))):
        needs[name] = []
        for layer in model.language.layers:
            layer.register_forward_hook(lambda module, given, output, to=needs[name]: to.append(output.requires_grad))
        assert loss_of(model).requires_grad
    assert needs == {"output": [False, False, True], "both": [True, True, True]}


@HEADS
def test_rows_of_the_output_alone_are_written_where_they_were_read(head: str) -> None:
    """With a tied head the embedding reads what the head has learnt; with one of its own it stays as it is."""
    model = only_output(head)
    before = small_flamingo(model.config).double().state_dict()
    loss_of(model).backward()
    for parameter in model.language.parameters():
        if parameter.requires_grad:
            parameter.data -= 0.1 * parameter.grad
    merged = merged_tensors(model)
    changed = (merged["language.embedding.weight"] != before["language.embedding.weight"]).any(1).nonzero().flatten()
    assert set(changed.tolist()) == (set(IDS) if head == "tied" else set())
    plain = Flamingo(model.config).double().eval()
    plain.load_state_dict(merged)
    torch.testing.assert_close(loss_of(plain), loss_of(model), rtol=1e-12, atol=0.0)


def test_a_table_in_half_precision_has_rows_in_float32() -> None:
    model = small_flamingo(config_with("tied")).to(torch.bfloat16)
    model.freeze()
    train_new_tokens(model, IDS)
    assert model.language.embedding.new_rows.dtype == torch.float32
    plain = small_flamingo(config_with("tied")).to(torch.bfloat16)
    assert torch.equal(loss_of(model), loss_of(plain))
    assert merged_tensors(model)["language.embedding.weight"].dtype == torch.bfloat16


def test_tensors_that_were_made_whole_are_merged_in_place_of_the_models_own() -> None:
    model = frozen_with_new_tokens("untied")
    merged = merged_tensors(model, {name: tensor + 1 for name, tensor in model.state_dict().items()})
    for name in ("language.embedding", "language.head"):
        table = model.get_parameter(f"{name}.weight") + 1
        assert torch.equal(merged[f"{name}.weight"][3], model.get_parameter(f"{name}.new_rows")[1] + 1)
        assert torch.equal(merged[f"{name}.weight"][4], table[4])


def test_the_table_is_not_copied() -> None:
    model = small_flamingo(config_with("untied"))
    tables = [model.language.embedding.weight, model.language.head.weight]
    train_new_tokens(model, IDS)
    assert model.language.embedding.weight is tables[0]
    assert model.language.head.weight is tables[1]


def test_without_new_tokens_nothing_of_the_tables_is_trained() -> None:
    model = small_flamingo(config_with("untied"))
    train_new_tokens(model, ())
    assert not any(p.requires_grad for p in (model.language.embedding.weight, model.language.head.weight))
    assert list(model.state_dict()) == list(small_flamingo(config_with("untied")).state_dict())


@pytest.mark.parametrize(("ids", "message"), [((300,), "300 is not from 0 to 299"), ((-1,), "-1 is not"),
                                              ((5, 5), r"\[5, 5\] hold one twice")])
def test_ids_of_no_token_are_refused(ids: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train_new_tokens(small_flamingo(), ids)
