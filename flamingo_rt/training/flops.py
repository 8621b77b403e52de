"""FLOPs of a training step, counted while it runs, and their share of what the machine's matrix products reach (MFU).

Counted are matrix products, convolutions and attention: forward through everything that is computed, backward where a
gradient passes. A layer that is frozen costs the gradient of its input but none of its weight, what lies below the
lowest trained parameter nothing, cached features nothing. Work that a step does twice to save memory counts once:
activations that are recomputed, scores that attention's backward pass forms again. Attention counts whole, masked or
not, as in PaLM (arXiv 2204.02311, appendix B).

torch's own `FlopCounterMode` is not enough: it counts no attention on a CPU, the weight gradient of a grouped
convolution as if it had no groups, and what is recomputed. Its formulas for matrix products are used.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from flamingo_rt.product_rate import product_rate

aten = torch.ops.aten
# Rows and columns of the matrices that are multiplied to measure a device: large enough that it is busy.
CPU_SIZE, GPU_SIZE = 1024, 8192


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> int:
    """Scores, and the values' mean: query [B, H, T, d], key [B, Hk, S, d], value [B, Hk, S, dv]."""
    batch, heads, tokens, width = query.shape
    return 2 * batch * heads * tokens * key.shape[2] * (width + value.shape[3])


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> int:
    """Gradients of value and weights, then of query and key, of those that are asked for; shapes as in `_attention`."""
    batch, heads, tokens, width = query.shape
    products = value.shape[3] * value.requires_grad + width * (query.requires_grad + key.requires_grad)
    if query.requires_grad or key.requires_grad:
        products += value.shape[3]  # of the weights
    return 2 * batch * heads * tokens * key.shape[2] * products


def _convolution(input: Tensor, weight: Tensor, *rest: Any, out_val: Tensor, **named: Any) -> int:
    """Each output is a product with its group's weights, [out, in / groups, kh, kw]."""
    return 2 * out_val.numel() * weight[0].numel()


def _convolution_backward(
    gradient: Tensor, input: Tensor, weight: Tensor, *rest: Any, out_val: Any, **named: Any
) -> int:
    """The gradient of the input, and that of the weight, each where it is asked for, take what the convolution took."""
    wanted: Sequence[bool] = named.get("output_mask", rest[-1] if rest else ())
    return 2 * gradient.numel() * weight[0].numel() * (wanted[0] + wanted[1])


FORMULAS: dict[Any, Callable[..., int]] = {
    **{operator: flop_registry[operator] for operator in (aten.mm, aten.addmm, aten.bmm, aten.baddbmm)},
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    **dict.fromkeys((
        aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_efficient_attention, aten._scaled_dot_product_cudnn_attention,
    ), _attention),
    **dict.fromkeys((
        aten._scaled_dot_product_flash_attention_for_cpu_backward, aten._scaled_dot_product_flash_attention_backward,
        aten._scaled_dot_product_efficient_attention_backward, aten._scaled_dot_product_cudnn_attention_backward,
    ), _attention_backward),
}


class CountedFlops(TorchDispatchMode):
    """Counts the FLOPs of what is computed within its ``with`` block, in ``total``."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and count it if it has a formula."""
        named = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket) if isinstance(func, torch._ops.OpOverload) else None
        # In inference mode operators come here before they are taken apart. Elsewhere none may be: the parts of
        # SiLU's backward pass round otherwise than the whole, and a run that counts would not be the one that does not.
        if formula is None and torch.is_inference_mode_enabled() and isinstance(func, torch._ops.OpOverload):
            with self:
                parts = func.decompose(*args, **named)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **named)
        if formula is not None and not _is_recomputed():
            self.total += formula(*args, **named, out_val=result)
        return result


def _is_recomputed() -> bool:
    """Whether a forward pass is running within a backward pass: only then does the latter record gradients."""
    return torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()


def shapes(batch: Any) -> Hashable:
    """The shapes of all tensors of a batch, which decide how much is computed: tuples, lists, named tuples of them."""
    if isinstance(batch, Tensor):
        return tuple(batch.shape)
    return tuple(map(shapes, batch)) if isinstance(batch, (tuple, list)) else None


class StepFlops:
    """FLOPs of steps, a part at a time. Counting slows a part down, so each is counted once for each ``key``, which has
    to say what decides how much is computed: the dataset, and the `shapes` of the batch. While a part is counted, code
    that `torch.compile` was asked to compile runs as it is written: operators in compiled code cannot be seen."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}
        self._step = 0

    @contextmanager
    def part(self, key: Hashable) -> Iterator[None]:
        """Add what is computed in this context, forward and backward, to the step."""
        if key in self._known:
            yield
        else:
            # Without the stance, code that is first met while counting would never be compiled.
            with torch.compiler.set_stance("force_eager"), CountedFlops() as counted:
                yield
            self._known[key] = counted.total
        self._step += self._known[key]

    def take(self) -> int:
        """FLOPs of all parts since the last call."""
        step, self._step = self._step, 0
        return step


@lru_cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of the fastest of ten products of square matrices, measured once in a process; on a GPU it takes
    400 MB in bfloat16."""
    size = GPU_SIZE if device.type == "cuda" else CPU_SIZE
    generator = torch.Generator(device).manual_seed(0)
    first, second = (torch.randn(size, size, generator=generator, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(first)

    def product() -> None:
        torch.mm(first, second, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return product_rate(product, 2 * size**3)


def utilisation(flops: float, seconds: float, rate: float) -> float:
    """Model FLOPs utilisation: the share of ``rate`` FLOPs per second that a step of ``seconds`` reached."""
    return flops / (seconds * rate)
