"""The PyTorch model for weights that do not fit into memory: a layer reads its weights when it computes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flamingo_rt.checkpoints import read_for
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.export.folding import fold_standardisation
from flamingo_rt.export.relative_positions import RelativeKeyChunk, precompute_relative_bias
from flamingo_rt.model.flamingo import Flamingo, on_meta_device
from flamingo_rt.weights.lazy import LazyTensor


def streamed_model(
    config: FlamingoConfig, tensors: Mapping[str, LazyTensor], dtype: torch.dtype = torch.float32
) -> Flamingo:
    """Build a `Flamingo` that computes in ``dtype`` and holds the weights of one layer at a time.

    ``tensors`` are those of a model with plain convolutions and precomputed relative keys, see `folded_tensors` and
    `relative_key_tensors`. Linear layers and relative keys, nearly all of a model, are streamed; the rest (embedding,
    norms, convolutions) is read now.
    """
    with on_meta_device():
        model = Flamingo(config)
        fold_standardisation(model.vision)
        precompute_relative_bias(model.language)
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, RelativeKeyChunk))
    }
    streamed = {f"{name}.{part}" for name, module in layers.items() for part, _ in module.named_parameters()}
    rest = {name: read_for(tensor, dtype) for name, tensor in tensors.items() if name not in streamed}
    model.load_state_dict(rest, assign=True, strict=False)
    for name, module in layers.items():
        _stream(module, {part: tensors[f"{name}.{part}"].to(dtype) for part, _ in module.named_parameters()})
    return model.eval().requires_grad_(False)


def _stream(module: nn.Module, tensors: Mapping[str, LazyTensor]) -> None:
    """Let a module read its parameters before it computes, and drop them afterwards."""
    empty = dict(module.named_parameters())

    def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for name, tensor in tensors.items():
            setattr(module, name, nn.Parameter(tensor.read(), requires_grad=False))

    def forget(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for name, parameter in empty.items():
            setattr(module, name, parameter)

    module.register_forward_pre_hook(read)
    module.register_forward_hook(forget)
