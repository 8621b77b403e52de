"""The PyTorch model in half precision, with what is rounded on the way decided by kind of layer.

PyTorch's CPU kernels compute a norm or a softmax of half precision in float32 inside. A runtime need not: here a norm
and a softmax are written out, each operation and each partial sum rounded, unless their kind is kept in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flamingo_rt.checkpoints import StoredModel
from flamingo_rt.contract import VISION_ENCODER, graph_specs
from flamingo_rt.export.checks.half_precision import in_half
from flamingo_rt.export.folding import fold_standardisation, folded_tensors
from flamingo_rt.export.relative_positions import precompute_relative_bias, relative_key_tensors
from flamingo_rt.model import nfnet, vit
from flamingo_rt.model.cross_attention import GatedCrossAttention
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.language_model import DecoderLayer, LanguageModel, SelfAttention
from flamingo_rt.model.resampler import ResamplerLayer
from flamingo_rt.model.torch_backend import TorchBackend

NORMS, RESIDUALS, GATES, HEAD = "norms", "residual sums", "tanh gates", "head's product"
# The softmax of the attention within a module of this type.
SOFTMAX: dict[type[nn.Module], str] = {
    SelfAttention: "softmax, self-attention", GatedCrossAttention: "softmax, cross-attention",
    ResamplerLayer: "softmax, resampler", vit.Block: "softmax, vision encoder",
}
KINDS = (NORMS, *SOFTMAX.values(), RESIDUALS, GATES, HEAD)
RESIDUAL = (DecoderLayer, GatedCrossAttention, ResamplerLayer, vit.Block, nfnet.Block)


def model_in(stored: StoredModel, dtype: torch.dtype) -> Flamingo:
    """The model in memory, computing in ``dtype``, with the weights that a graph in this type holds."""
    folded = replace(stored, tensors=relative_key_tensors(stored.config.language, folded_tensors(stored.tensors)))
    held = in_half(folded, dtype) if dtype != torch.float32 else folded
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = Flamingo(stored.config)
        fold_standardisation(model.vision)
        precompute_relative_bias(model.language)
    finally:
        torch.set_default_dtype(before)
    model.load_state_dict({name: tensor.read() for name, tensor in held.tensors.items()})
    return model.eval().requires_grad_(False)


class Rounding(TorchFunctionMode):
    """Within, ``model``, which computes in ``dtype``, has the kinds of layers in ``kept`` computed in float32."""

    def __init__(self, model: Flamingo, dtype: torch.dtype, kept: Collection[str]) -> None:
        super().__init__()
        self.dtype, self.kept = dtype, frozenset(kept)
        self._within: list[nn.Module] = []
        for module in model.modules():
            module.register_forward_pre_hook(lambda module, inputs: self._within.append(module))
            module.register_forward_hook(lambda module, inputs, output: self._leave())

    def _leave(self) -> None:
        self._within.pop()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        within = self._within[-1] if self._within else None
        if func in (F.layer_norm, F.rms_norm, torch.rms_norm, torch.layer_norm):
            return self._norm(within, args[0])
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func in (F.linear, F.conv2d, torch.conv2d):
            return self._product(func, within, args, kwargs)
        if isinstance(within, GatedCrossAttention) and func in (Tensor.tanh, Tensor.mul, Tensor.__mul__):
            wide = GATES in self.kept
            return func(*(self._wide(x) if wide else x for x in args), **kwargs)
        if isinstance(within, RESIDUAL) and func in (Tensor.add, Tensor.__add__, torch.add):
            result = func(*map(self._wide, args))
            return result if RESIDUALS in self.kept else result.to(self.dtype)
        return func(*args, **kwargs)

    def _wide(self, x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) and x.dtype == self.dtype else x

    def _product(self, func: Any, within: nn.Module | None, args: tuple, kwargs: dict) -> Tensor:
        x, weight, *rest = args
        if HEAD in self.kept and self._is_head(within):
            return func(x.float(), weight.float(), *map(self._wide, rest), **kwargs)
        return func(x.to(weight.dtype), weight, *rest, **kwargs)

    def _is_head(self, within: nn.Module | None) -> bool:
        """Tied, it is a product in the language model itself; else its own layer."""
        around = self._within[-2] if len(self._within) > 1 else None  # layers are called by themselves too
        return isinstance(within, LanguageModel) or (
            isinstance(within, nn.Linear) and isinstance(around, LanguageModel)
        )

    def _norm(self, module: nn.Module, x: Tensor) -> Tensor:
        exact = NORMS in self.kept
        x = x.float() if exact else x.to(self.dtype)
        weight, bias = (getattr(module, part, None) for part in ("weight", "bias"))
        if isinstance(module, nn.LayerNorm):
            x = x - mean(x)
        eps = torch.tensor(module.eps, dtype=x.dtype)
        result = x * torch.rsqrt(mean(x * x) + eps)
        result = result * weight.to(x.dtype)
        return (result if bias is None else result + bias.to(x.dtype)).to(self.dtype)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False,
        enable_gqa: bool = False,
    ) -> Tensor:
        kind = next(SOFTMAX[type(module)] for module in reversed(self._within) if type(module) in SOFTMAX)
        if enable_gqa:
            groups = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        found = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
        found = found.float() if kind in self.kept else found
        if is_causal:
            attn_mask = torch.full(found.shape[-2:], torch.finfo(self.dtype).min / 2).triu(1)
        if attn_mask is not None:
            found = found + attn_mask.to(found.dtype)
        weights = torch.exp(found - found.amax(-1, keepdim=True))
        return (weights / total(weights)).to(self.dtype) @ value


def total(x: Tensor) -> Tensor:
    """The sum along the last axis, kept as 1: pairs, then pairs of pairs, each sum rounded to the type of ``x``."""
    while x.shape[-1] > 1:
        x = F.pad(x, (0, x.shape[-1] % 2))
        x = x[..., ::2] + x[..., 1::2]
    return x


def mean(x: Tensor) -> Tensor:
    """`total`, of parts that cannot become too large together."""
    return total(x * (1 / x.shape[-1]))


class RoundedBackend(TorchBackend):
    """`TorchBackend` whose buffers are of the model's type; ``within`` is entered for each call."""

    def __init__(self, model: Flamingo, dtype: torch.dtype, within: Callable[[], Any]) -> None:
        super().__init__(model)
        self.specs = graph_specs(model.config, str(dtype).removeprefix("torch."))
        self._dtype, self._within = dtype, within

    def _computed(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if graph == VISION_ENCODER:
            inputs = {name: tensor.to(self._dtype) for name, tensor in inputs.items()}
        with self._within():
            return super()._computed(graph, inputs)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Of vectors along the last axis, in float64."""
    one, other = one.double(), other.double()
    return (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1)).clamp(min=math.ulp(0.0))
