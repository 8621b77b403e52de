"""Measuring a model's speed on this machine, stage by stage, beside the machine's limits.

    from flamingo_rt import load
    from flamingo_rt.bench import BenchOptions, measure

    report = measure(load("bundle/"), BenchOptions(shots=(0, 32)), folder="bundle/")
    report.decode[0].tokens_per_second, report.decode[0].against.reached

Names are resolved on first use: the process that measures memory bandwidth needs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flamingo_rt.bench.bench_options import BenchOptions
    from flamingo_rt.bench.measuring import measure
    from flamingo_rt.bench.results import Report

_HOMES = {"BenchOptions": "bench_options", "Report": "results", "measure": "measuring"}

__all__ = ["BenchOptions", "Report", "measure"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
