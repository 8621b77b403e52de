"""What quantization costs: how far the quantized graphs' answers are from PyTorch's, on prompts it was not rounded for.

Each graph is given what PyTorch gives it, so that its figures are its own. Prompts are read as in use: prefill, then
token by token.
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
    """One graph's outputs (of the language model: the logits) against PyTorch's: the mean cosine of the vectors, that
    of the prompt where it is lowest, and the mean ratio of their norms."""

    cosine: float
    lowest_cosine: float
    norm_ratio: float


@dataclass(frozen=True)
class Quality:
    """The cost of quantizing a model. ``tokens`` of the measured prompts were compared, and for ``changed`` of them the
    likeliest next token is another one."""

    graphs: dict[str, GraphQuality]
    tokens: int
    changed: int

    @property
    def changed_share(self) -> float:
        """Share of the tokens that changed, 0 to 1."""
        return self.changed / max(1, self.tokens)


@dataclass
class QualityMeter:
    """Takes the tensors that `flamingo_rt.export.checks.parity.compare` compares and adds them up."""

    _cosines: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    _ratios: dict[str, list[np.ndarray]] = field(default_factory=dict)
    _tokens: int = 0
    _changed: int = 0

    def check(self, graph: str, tensor: str, case: str, found: np.ndarray, expected: Tensor) -> None:
        """Take one output: its vectors are along the last axis. Of the language model, logits alone count."""
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
        """All that was taken."""
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
    """Raise `ParityError` that names what is beyond ``limits``, and the remedy; ``schemes`` are those there are, the
    mildest first."""
    milder = schemes[: schemes.index(scheme)][::-1]
    advice = f"take --quantize {' or '.join(milder)}" if milder else "leave out --quantize"
    remedy = f"no bundle was written: {advice}"
    for name in graphs:
        lowest = quality.graphs[name].lowest_cosine
        if not lowest >= limits.cosine:  # also when it is not a number
            raise ParityError(
                f"graph {name}, {scheme}: the cosine with PyTorch's output is {lowest:.4f}, at least {limits.cosine} "
                f"is asked for; {remedy}, or lower --min-cosine"
            )
    if quality.changed_share > limits.changed:
        raise ParityError(
            f"{scheme} changes {quality.changed} of {quality.tokens} greedy tokens ({quality.changed_share:.1%}), at "
            f"most {limits.changed:.1%} is asked for; {remedy}, or raise --max-changed"
        )
