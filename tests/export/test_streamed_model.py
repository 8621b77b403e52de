"""The model that reads its weights as it computes: it computes the same and keeps nothing."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_model import small_config, small_flamingo
from torch import Tensor, nn

from flamingo_rt.checkpoints import StoredModel
from flamingo_rt.config import FlamingoConfig, ViTConfig
from flamingo_rt.export.folding import folded_tensors
from flamingo_rt.export.streamed_model import streamed_model
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.weights.lazy import LazyTensor

# Both kinds of vision encoder; a head of its own, with a bias, and a tied one.
VIT = ViTConfig(image_size=32, patch_size=16, width=24, layers=2, heads=2, ff_width=48)
CONFIGS = {
    "nfnet": small_config(),
    "vit": replace(small_config(), vision=VIT),
    "tied": replace(small_config(), vision=VIT, language=replace(small_config().language, tied_head=True)),
    "biases": replace(small_config(), vision=VIT, language=replace(
        small_config().language, attention_bias=True, attention_output_bias=True, ff_bias=True, head_bias=True
    )),
}


class Source:
    """The tensors of a model, which records what is read and what of it is alive."""

    def __init__(self, model: Flamingo) -> None:
        self.reads: list[str] = []
        self.alive: set[str] = set()
        self.most = 0
        self.tensors = {
            name: LazyTensor(tuple(t.shape), t.dtype, Path("weights"), self.reader(name, t.detach()))
            for name, t in model.state_dict().items()
        }

    def reader(self, name: str, values: Tensor):
        def read() -> Tensor:
            self.reads.append(name)
            result = values.clone()
            self.alive.add(name)
            weakref.finalize(result.untyped_storage(), self.alive.discard, name)
            self.most = max(self.most, len(self.alive))
            return result

        return read


def linears(config: FlamingoConfig) -> set[str]:
    """Names of the tensors of every `nn.Linear`."""
    modules = Flamingo(config).named_modules()
    return {f"{name}.{part}" for name, module in modules if isinstance(module, nn.Linear)
            for part, _ in module.named_parameters()}


@torch.no_grad()
def answer(model: Flamingo) -> tuple[Tensor, Tensor]:
    """Latents of two clips, and logits of two texts about them."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(2, 3, 3, 32, 32, generator=generator)
    ids = torch.randint(300, (2, 7), generator=generator)
    index = torch.tensor([[0, 1, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1, 1]])
    latents = model.encode(pixels)
    logits, _ = model.read(ids, index, latents, torch.tensor([[0, 1], [1, 0]]))
    return latents, logits


def close(found: Tensor, expected: Tensor) -> None:
    """Assert equality up to rounding, which depends on where in memory a weight lies and on plain convolutions."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_streamed_model_computes_what_the_model_in_memory_computes(kind: str) -> None:
    config = CONFIGS[kind]
    source = Source(small_flamingo(config))
    expected = answer(StoredModel(config, "", source.tensors).load())
    found = answer(streamed_model(config, folded_tensors(source.tensors)))
    for one, other in zip(found, expected, strict=True):
        assert other.std() > 0.1
        close(one, other)


def test_half_precision_is_computed_with_in_float32() -> None:
    config = CONFIGS["vit"]
    half = StoredModel(config, "", Source(small_flamingo(config)).tensors).stored_as(torch.bfloat16)
    for one, other in zip(answer(streamed_model(config, half.tensors)), answer(half.load()), strict=True):
        assert one.dtype == torch.float32
        close(one, other)


def test_linear_layers_are_not_read_before_they_compute_and_then_once() -> None:
    config = CONFIGS["biases"]
    source = Source(small_flamingo(config))
    model = streamed_model(config, source.tensors)
    assert set(source.reads) == set(source.tensors) - linears(config)
    source.reads.clear()
    answer(model)
    assert sorted(source.reads) == sorted(linears(config))
    answer(model)
    assert sorted(source.reads) == sorted(2 * list(linears(config)))


def test_one_linear_layer_is_in_memory_at_a_time() -> None:
    config = CONFIGS["biases"]
    source = Source(small_flamingo(config))
    model = streamed_model(config, source.tensors)
    kept = set(source.alive)
    assert kept == set(source.tensors) - linears(config)
    source.most = 0
    answer(model)
    gc.collect()
    assert source.alive == kept
    assert source.most == len(kept) + 2  # one weight and its bias


def test_linear_layers_are_empty_after_a_pass() -> None:
    config = CONFIGS["vit"]
    model = streamed_model(config, Source(small_flamingo(config)).tensors)
    answer(model)
    for name, parameter in model.named_parameters():
        assert parameter.is_meta == (name in linears(config)), name


def test_a_streamed_model_cannot_be_trained() -> None:
    config = CONFIGS["vit"]
    model = streamed_model(config, Source(small_flamingo(config)).tensors)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
