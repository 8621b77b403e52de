"""A stage small enough to work out by hand: linear regression on numbers that are a function of (dataset, step)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flamingo_rt.training.gradient_norms import clip_norm
from flamingo_rt.training.sharding import whole
from flamingo_rt.training.stage import Dataset, Division, Drawn, Loss, Updating


@dataclass(frozen=True)
class ToyBatches:
    """``batch`` rows a step, each of 1 to 3 targets; sample names are ``<name>-<step>-<row>``."""

    name: str
    seed: int
    batch: int = 4
    damaged_from: int = 10**9
    nan_at: int = -1
    error_at: int = -1

    def draw(self, step: int, part: int, parts: int) -> Drawn:
        rows = range(part * self.batch // parts, (part + 1) * self.batch // parts)
        if step == self.error_at:
            return Drawn(None, error=RuntimeError(f"cannot draw {self.name} {step}"))
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        inputs = torch.randn(self.batch, 6, generator=generator)
        weights = torch.randint(1, 4, (self.batch,), generator=generator).float()
        if step == self.nan_at:
            inputs[:] = torch.nan
        names = tuple(f"{self.name}-{step}-{row}" for row in rows)
        damaged = tuple(f"{name}: cut short" for name in names) if step >= self.damaged_from else ()
        chosen = slice(rows.start, rows.stop)
        return Drawn((inputs[chosen], weights[chosen]), damaged, len(rows), names)

    def fingerprint(self) -> dict[str, Any]:
        return {"data": f"{self.name} {self.seed}", "batch": self.batch}


class ToyModel(nn.Module):
    """A trained layer behind a frozen one, with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 5).requires_grad_(False)
        self.trained = nn.Linear(5, 3)
        self.gate = nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.trained(self.frozen(inputs).tanh()) * self.gate


class ToyStage:
    """See `flamingo_rt.training.stage.Stage`."""

    division: Division = "parts"

    def __init__(self, datasets: list[Dataset], seed: int = 0, is_first: bool = True,
                 shares: Mapping[str, float] | None = None) -> None:
        torch.manual_seed(seed)
        self.shares = shares or {}
        self.model, self.datasets, self.seed, self.is_first = ToyModel(), datasets, seed, is_first

    def shards(self) -> list[nn.Module]:
        return [self.model.frozen, self.model.trained]

    def loss(self, dataset: str, batch: Any) -> Loss:
        inputs, weights = batch
        return Loss((self.model(inputs).pow(2).sum(1) * weights).sum())

    def activation_bytes(self, batch: Any) -> int:
        return 0

    def targets(self, batch: Any) -> int:
        return int(batch[1].sum())

    def tokens(self, batch: Any) -> int:
        return len(batch[0])

    def updating(self, name: str, parameter: nn.Parameter) -> Updating:
        return Updating(name == "trained.weight", self.shares.get(name, 1.0))

    def clip(self, bound: float) -> float:
        return clip_norm((entry for entry in self.model.parameters() if entry.requires_grad), bound)

    def scalars(self) -> dict[str, float]:
        return {}

    def sample_lines(self):
        yield f"{torch.rand(1).item() < 2} in {'training' if self.model.training else 'evaluation'}"

    def identity(self) -> dict[str, Any]:
        return {"toy": self.seed}

    def write(self, out, overwrite: bool) -> None:
        weights = {name: whole(value).tolist() for name, value in self.model.state_dict().items()}
        if self.is_first:
            out.mkdir()
            (out / "weights.json").write_text(json.dumps(weights))


def two_datasets(**changes: Any) -> list[Dataset]:
    return [Dataset("one", 1.0, ToyBatches("one", 1)), Dataset("two", 0.3, ToyBatches("two", 2, **changes))]
