"""What is measured: backends with the graphs that they run. Everything lives in one work folder:

    bundles/MODEL-LOWERING-COMPUTE/   what the exporter made
    systems/MODEL-SYSTEM/             the same files, hard links, with the engines of one target
    workload/                         prompts and pictures, for everybody
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison.shapes import shape_of
from flamingo_rt.bundle import is_bundle
from flamingo_rt.checkpoints import StoredModel, open_checkpoint
from flamingo_rt.contract import Limits
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.export.random_model import random_model

PACKAGED = "packaged"  # the model in the package, from its checkpoint; other names are shapes with random weights
CHECKPOINT = Path(__file__).parents[2] / "models" / "tiny"


@dataclass(frozen=True)
class System:
    """A backend, the ``lowering`` and type of its graphs, and the ``target`` of its engines, if it has engines."""

    backend: str
    lowering: str
    compute: str
    target: str | None = None

    @property
    def name(self) -> str:
        """Such as ``tensorrt-rtx, classic, fp16``."""
        kind = self.target or self.backend
        own = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt", "ort": "ort", "ort-cuda": "ort"}.get(kind)
        lowering = [] if self.lowering == own else [self.lowering.removeprefix("tensorrt-") + " graphs"]
        return ", ".join([kind, *lowering, self.compute])

    @property
    def slug(self) -> str:
        """The name in folders and options, which `named` reads."""
        return "+".join([self.backend, self.lowering, self.compute, *([self.target] if self.target else [])])

    @staticmethod
    def named(slug: str) -> System:
        """The system of a slug."""
        return System(*slug.split("+"))


def systems_of(backend: str, target: str | None, lowerings: tuple[str, ...], computes: tuple[str, ...]) -> list[System]:
    """Every combination, by type first: those of the first type are the most important."""
    return [System(backend, lowering, compute, target) for compute in computes for lowering in lowerings]


def stored_model(model: str) -> StoredModel:
    """The tensors of a model by its name here."""
    return open_checkpoint(CHECKPOINT) if model == PACKAGED else random_model(shape_of(model))


def bundle_path(work: Path, model: str, system: System) -> Path:
    return work / "bundles" / f"{model}-{system.lowering}-{system.compute}"


def system_path(work: Path, model: str, system: System) -> Path:
    """The bundle that a system loads."""
    if system.target is None:
        return bundle_path(work, model, system)
    return work / "systems" / f"{model}-{system.slug}"


def make_bundle(work: Path, model: str, system: System) -> Path:
    """The bundle, exported unless it is there; nothing is compared, that is for the backends to be."""
    path = bundle_path(work, model, system)
    if not is_bundle(path):
        export_model(
            stored_model(model), path, lowering=system.lowering, compute=system.compute, overwrite=True, compare=False
        )
    return path


def make_engines(
    work: Path, model: str, system: System, limits: dict[str, int], numbers: tuple[str, ...] = ()
) -> Path:
    """The system's bundle with its engines, compiled unless they are there: for the GPU of this machine, or ahead of
    time for compute capabilities ``numbers`` such as ``86``. Raises `FlamingoError` when they cannot be."""
    made, path = make_bundle(work, model, system), system_path(work, model, system)
    if system.target is None or any(path.glob("engines/*/engine.json")):
        return path
    from flamingo_rt.bundle import read_bundle
    from flamingo_rt.engines.gpu.nvidia_driver import find_gpu
    from flamingo_rt.engines.tensorrt.builder import Build, Destination
    from flamingo_rt.engines.tensorrt.versions import import_tensorrt

    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(made, path, copy_function=os.link, ignore=shutil.ignore_patterns("engines"))
    bundle, runtime = read_bundle(path), import_tensorrt(system.target)
    destination = Destination.of(runtime, None if numbers else find_gpu(), numbers)
    Build(bundle, runtime, destination, Limits.of(bundle.config, **limits)).run()
    return path


