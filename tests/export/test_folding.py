"""Convolutions that standardise their weights become plain ones that compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_model import small_config, small_flamingo
from torch import Tensor, nn

from flamingo_rt.config import NFNetConfig, ViTConfig
from flamingo_rt.export.folding import fold_standardisation, folded_tensors
from flamingo_rt.model.nfnet import NFNet, StandardisedConv2d
from flamingo_rt.model.vit import ViT
from flamingo_rt.weights.lazy import LazyTensor

# Strides, groups, a transition and a block without one.
CONFIG = NFNetConfig(image_size=32, stem_widths=(8, 16), stem_strides=(2, 1), widths=(16, 32), depths=(2, 1),
                     strides=(1, 2), group_width=4, output_width=12)


def lazy(tensors: dict[str, Tensor], prefix: str = "") -> dict[str, LazyTensor]:
    return {
        f"{prefix}{name}": LazyTensor(tuple(tensor.shape), tensor.dtype, Path("weights"), tensor.detach().clone)
        for name, tensor in tensors.items()
    }


@pytest.fixture
def network() -> NFNet:
    torch.manual_seed(0)
    network = NFNet(CONFIG).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return network


def folded(network: NFNet, tensors: dict[str, LazyTensor]) -> nn.Module:
    """A folded network with these weights, which fit it exactly."""
    plain = fold_standardisation(NFNet(CONFIG)).eval()
    plain.load_state_dict({name.removeprefix("vision."): tensor.read() for name, tensor in tensors.items()})
    return plain


def test_a_folded_network_computes_the_same(network: NFNet) -> None:
    plain = folded(network, folded_tensors(lazy(network.state_dict(), "vision.")))
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = network(pixels), plain(pixels)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max().clamp(min=1.0)
    assert any(isinstance(module, StandardisedConv2d) for module in network.modules())
    assert not any(isinstance(module, StandardisedConv2d) for module in plain.modules())


def test_gains_are_gone_and_everything_but_the_convolutions_is_the_same_tensor(network: NFNet) -> None:
    before = lazy(small_flamingo().state_dict())
    after = folded_tensors(before)
    gains = {name for name in before if name.endswith(".gain")}
    weights = {f"{name.removesuffix('.gain')}.weight" for name in gains}
    assert len(gains) > 8
    assert set(after) == set(before) - gains
    assert [name for name in after if after[name] is not before[name]] == [name for name in before if name in weights]
    assert all(after[name].shape == before[name].shape for name in weights)


def test_a_gain_that_belongs_to_no_convolution_stays() -> None:
    """Gains of another part of the model, and a block's own gain, beside which there is no weight."""
    tensors = lazy({"language.norm.gain": torch.ones(3), "language.norm.weight": torch.ones(3),
                    "vision.blocks.0.skip_gain": torch.ones(()), "vision.blocks.0.weight": torch.ones(3, 1, 1, 1)})
    assert folded_tensors(tensors) == tensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_stored_in_half_precision_are_not_rounded_again(network: NFNet, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    tensors = folded_tensors(lazy(state, "vision."))
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    weights = [name for name in tensors if f"{name.removesuffix('.weight')}.gain".removeprefix("vision.") in state]
    assert {tensors[name].dtype for name in weights} == {tensors[name].read().dtype for name in weights}
    assert {tensors[name].dtype for name in weights} == {torch.float32}
    plain = folded(network, tensors)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(plain(pixels), network(pixels), rtol=1e-5, atol=1e-6)


def test_nothing_is_read_by_folding() -> None:
    def read() -> Tensor:
        raise AssertionError("read")

    names = {"vision.stem.0.weight": (4, 3, 3, 3), "vision.stem.0.gain": (4, 1, 1, 1)}
    folded = folded_tensors({name: LazyTensor(size, torch.float32, Path("w"), read) for name, size in names.items()})
    assert {name: tensor.shape for name, tensor in folded.items()} == {"vision.stem.0.weight": (4, 3, 3, 3)}
    with pytest.raises(AssertionError, match="read"):
        folded["vision.stem.0.weight"].read()


def test_a_vision_transformer_is_left_as_it_is() -> None:
    config = ViTConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2, ff_width=32)
    encoder = ViT(config)
    modules = list(encoder.modules())
    assert list(fold_standardisation(encoder).modules()) == modules
    tensors = lazy(encoder.state_dict(), "vision.")
    assert folded_tensors(tensors) == tensors


def test_plain_convolutions_keep_every_setting_of_the_others() -> None:
    standardised = [m for m in NFNet(small_config().vision).modules() if isinstance(m, nn.Conv2d)]
    plain = [m for m in fold_standardisation(NFNet(small_config().vision)).modules() if isinstance(m, nn.Conv2d)]
    assert len(standardised) == len(plain)
    for before, after in zip(standardised, plain, strict=True):
        for setting in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            assert getattr(before, setting) == getattr(after, setting)
        assert after.bias is not None
