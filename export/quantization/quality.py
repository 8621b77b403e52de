"""Quantization's cost: the distance of the quantized graphs' outputs from PyTorch's.

No prompt was calibrated on. Every graph gets PyTorch's inputs, so that its figures show its own errors alone, and
prompts run as in use: prefill, then token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, LOGITS
from flamingo_rt.errors import ParityError
from flamingo_rt.export.quantization.quantization_options import SCHEMES_OF, Limits


@dataclass(frozen=True)
class GraphQuality:
    """Outputs of one graph (of the language model, its logits) against PyTorch's: the mean cosine over all vectors, the
    mean of the worst prompt, and the mean ratio of the norms."""

    cosine: float
    lowest_cosine: float
    norm_ratio: float


@dataclass(frozen=True)
class Quality:
    """Cost of quantizing a model. ``tokens`` positions were compared; at ``changed`` of them the greedy next token is
    another one."""

    graphs: dict[str, GraphQuality]
    tokens: int
    changed: int

    @property
    def changed_share(self) -> float:
        """Share of greedy tokens that changed, 0 to 1."""
        return self.changed / max(1, self.tokens)


@dataclass
class QualityMeter:
    """A `Metric` of `flamingo_rt.export.checks.parity.compare` that accumulates a `Quality`."""

    _cosines: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    _ratios: dict[str, list[np.ndarray]] = field(default_factory=dict)
    _tokens: int = 0
    _changed: int = 0

    def update(self, graph: str, tensor: str, case: str, found: np.ndarray, expected: Tensor) -> None:
        """Add one output [..., d], as vectors along its last axis. The language model's caches do not count."""
        if graph == LANGUAGE_MODEL:
            if tensor != LOGITS:
                return
            self._tokens += expected.shape[0]
            self._changed += int((found.argmax(-1) != expected.numpy().argmax(-1)).sum())
        one, other = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (found, expected.numpy()))
        norms = np.linalg.norm(one, axis=-1), np.linalg.norm(other, axis=-1)
        floor = np.finfo(np.float64).tiny
        cosines = (one * other).sum(-1) / np.maximum(norms[0] * norms[1], floor)
        self._cosines.setdefault(graph, {}).setdefault(case, []).append(cosines)
        self._ratios.setdefault(graph, []).append(norms[0] / np.maximum(norms[1], floor))

    def quality(self) -> Quality:
        """Compute the figures of all outputs so far."""
        graphs = {}
        for graph, cases in self._cosines.items():
            by_case = [np.concatenate(parts) for parts in cases.values()]
            graphs[graph] = GraphQuality(
                float(np.concatenate(by_case).mean()), float(min(case.mean() for case in by_case)),
                float(np.concatenate(self._ratios[graph]).mean()),
            )
        return Quality(graphs, self._tokens, self._changed)


def check_quality(
    quality: Quality, limits: Limits, scheme: str, schemes: Sequence[str] = SCHEMES_OF["ort"],
    graphs: Sequence[str] = GRAPHS,
) -> None:
    """Raise `ParityError` for a cost beyond ``limits``. The remedy it names is a milder one of ``schemes``, which are
    sorted, the mildest first."""
    milder = schemes[: schemes.index(scheme)][::-1]
    advice = f"take --quantize {' or '.join(milder)}" if milder else "leave out --quantize"
    remedy = f"no bundle was written: {advice}"
    for name in graphs:
        lowest = quality.graphs[name].lowest_cosine
        if not lowest >= limits.cosine:  # also when it is not a number
            raise ParityError(
                f"graph {name}, {scheme}: the cosine with PyTorch's output is {lowest:.4f}, below the limit of "
                f"{limits.cosine}; {remedy}, or lower --min-cosine"
            )
    if quality.changed_share > limits.changed:
        raise ParityError(
            f"{scheme} changes {quality.changed} of {quality.tokens} greedy tokens ({quality.changed_share:.1%}), "
            f"above the limit of {limits.changed:.1%}; {remedy}, or raise --max-changed"
        )
