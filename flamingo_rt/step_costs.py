"""Costs of decode steps of several tokens, in steps of one token, by which the length of a draft is chosen.

Speculative decoding verifies several guessed tokens in one step (`flamingo_rt.runtime.speculation`). A table decides
how many, not a clock: the same input is then computed in the same steps each time, and gives the same bits. ``export``
writes the table of a bundle's quantization into its manifest, so that its answers stay the same when later versions
have other tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

MOST = 1000.0  # a larger cost is an error

# Measured by `python -m benchmarks.decode_step_costs` for openflamingo-3b's widths on 2 cores of an AMD EPYC (Zen 4),
# with ONNX Runtime 1.32's CPU kernels, three times, beside other processes; the samples are in
# benchmarks/results/2026-11-27-amd-epyc-2-cores-openflamingo-3b-step-costs.json. Each is the middle one of the three;
# with 4 bits, where they differ by up to a half, the highest: the quieter the machine, the more a second token costs.
_UNQUANTIZED = {2: 1.13, 4: 1.29, 8: 1.51, 16: 1.84}
_INT8 = {2: 1.15, 4: 1.46, 8: 2.09, 16: 2.91}
_MIXED = {2: 1.41, 4: 2.36, 8: 3.55, 16: 5.54}
_INT4 = {2: 1.42, 4: 2.07, 8: 3.47, 16: 5.17}


@dataclass(frozen=True)
class StepCosts:
    """Costs of language model steps of one row, in steps of one token. ``ratios`` are (tokens of the step, cost) of the
    sizes that were measured, two tokens or more, in ascending order.

    Raises `ValueError` for an empty table, sizes that are not ascending integers from 2, and costs that are not numbers
    from 1 to `MOST`.
    """

    ratios: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.ratios]
        if not sizes or any(type(size) is not int for size in sizes):
            raise ValueError(f"step costs of {sizes!r} tokens: give costs of one or more sizes, integers")
        if any(size <= smaller for smaller, size in pairwise([1, *sizes])):
            raise ValueError(f"step costs of {sizes!r} tokens: give sizes from 2, each once, in ascending order")
        for size, cost in self.ratios:
            number = isinstance(cost, (int, float)) and not isinstance(cost, bool)
            if not (number and 1.0 <= cost <= MOST):
                raise ValueError(f"a step of {size} tokens costs {cost!r}: give a number from 1 to {MOST:g}")

    def cost(self, size: int) -> float:
        """The cost of a step of ``size`` tokens, in steps of one: linear between the sizes of the table, and beyond the
        largest as between the last two."""
        lines = list(pairwise(((1, 1.0), *self.ratios)))
        (smaller, low), (larger, high) = next((line for line in lines if size <= line[1][0]), lines[-1])
        return max(1.0, low + (high - low) * (size - smaller) / (larger - smaller))

    def to_json(self) -> dict[str, float]:
        """The manifest's form: costs by the number of tokens, as text."""
        return {str(size): cost for size, cost in self.ratios}

    @staticmethod
    def parse(data: Any) -> StepCosts | None:
        """Read the manifest's optional entry, `to_json`'s form; None where it has none. Raises `ValueError`."""
        if data is None:
            return None
        if not isinstance(data, Mapping):
            raise ValueError(f"step costs {data!r}: a mapping from numbers of tokens to costs is needed")
        for size in data:
            if not (isinstance(size, str) and size.isascii() and size.isdigit() and len(size) <= 4):
                raise ValueError(f"step costs of {size!r} tokens: give a number of up to 4 digits")
        return StepCosts(tuple(sorted(((int(size), cost) for size, cost in data.items()), key=lambda ratio: ratio[0])))

    @staticmethod
    def of(quantization: str | None) -> StepCosts:
        """The table for a model whose weights are quantized by that scheme, None for a model of floating-point weights
        of any type. Schemes without a table of their own (fp8, for GPUs alone) take that of None."""
        return StepCosts(tuple(_DEFAULTS.get(quantization, _UNQUANTIZED).items()))


_DEFAULTS: dict[str | None, dict[int, float]] = {"int8": _INT8, "mixed": _MIXED, "int4": _INT4}
