"""Which parts there are, in what order, and what each needs: the most important first, since time may run out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison.shapes import SMALL, shape_of
from benchmarks.gpu_parts.bundles import ready
from benchmarks.gpu_parts.systems import PACKAGED, System, bundle_path, system_path, systems_of
from flamingo_rt.child_process import python_command
from flamingo_rt.config import ViTConfig

MODULE = "benchmarks.gpu_parts"
PEER_SCRIPT = Path(__file__).parent / "peer.py"  # a file: its Python may be of a version without -P
FACTS, EXPORT, BUILD, SPEED, CORRECT, PEER = "facts", "export", "build", "speed", "correct", "peer"
EAGER, COMPILED = "eager", "compiled"


@dataclass(frozen=True)
class Size:
    """How large the measured model is, and how much is measured of it. ``shots`` of the few-shot prompt, ``tokens`` of
    an answer, ``runs`` of each measurement, of which none begins after ``seconds``, the longest ``context``. The peer
    runs on ``device``, with torch.compile's backend ``compiler``. The numbers of the models ``compared`` are held
    against PyTorch's; ``every``: every system's speed is measured, not the first one's alone."""

    model: str
    shots: int
    tokens: int
    runs: int
    seconds: float
    compute: str
    context: int
    device: str
    compiler: str
    compared: tuple[str, ...]
    every: bool


LARGE = Size("openflamingo-3b", 32, 32, 3, 10.0, "fp16", 1500, "cuda", "inductor", (PACKAGED, SMALL), True)
SMOKE = Size(SMALL, 1, 4, 1, 1.0, "fp32", 128, "cpu", "eager", (PACKAGED,), False)


@dataclass(frozen=True)
class Part:
    """A process. ``share`` is its percentage of the budget; with fewer than ``least`` seconds it is not worth starting.
    Without all of ``needs`` it is skipped; ``done`` says that there is nothing left to do."""

    name: str
    system: str
    command: tuple[str, ...]
    share: float
    least: float = 5.0
    needs: tuple[Path, ...] = ()
    done: bool = False


@dataclass(frozen=True)
class Skipped:
    """What is not done, and why."""

    name: str
    system: str
    why: str


def facts_part(peer_python: str | None) -> Part:
    peer = ("--peer-python", peer_python) if peer_python else ()
    return Part(FACTS, "", python_command(f"{MODULE}.facts", *peer), share=6.0)


def smoke_systems() -> list[System]:
    """The CPU's."""
    return systems_of("ort", None, ("ort", "tensorrt"), ("fp32",))


def gpu_systems(available: Mapping[str, Any]) -> tuple[list[System], list[Skipped]]:
    """Those that can run here, the most important first, and those that cannot; ``available`` as `facts` tells it."""
    found, missing = [], []
    for target in ("tensorrt", "tensorrt-rtx", "ort-cuda", "ort-tensorrt-rtx"):
        backend, lowerings = ("tensorrt" if target.startswith("tensorrt") else target), available.get(target)
        if isinstance(lowerings, str):
            missing.append(Skipped("backend", target, lowerings))
        else:
            own = target if backend == "tensorrt" else None
            found += systems_of(backend, own, tuple(lowerings or ()), ("fp16", "bf16"))
    # By type, then each backend's best lowering before the second ones.
    order = {system: place for place, system in enumerate(found)}

    def rank(system: System) -> tuple[bool, int, int]:
        before = [each for each in found if (each.backend, each.target, each.compute)
                  == (system.backend, system.target, system.compute) and order[each] < order[system]]
        return system.compute != "fp16", len(before), order[system]

    return sorted(found, key=rank), missing


def parts_of(
    size: Size, systems: Sequence[System], work: Path, peer_python: str | None, no_peer: str | None,
) -> list[Part | Skipped]:
    """Everything after the facts. The first system and the peer are measured before other systems."""
    fast = [system for system in systems if system.compute == size.compute]
    parts: list[Part | Skipped] = []
    for system in fast[:1]:
        parts += [*making(size, system, work), *speed_parts(size, system, work)]
        parts += correct_parts(size, system, work)
    if not fast:
        parts.append(Skipped(SPEED, "", f"no backend that computes in {size.compute} runs here"))
        parts += workload_parts(size, work)
    parts += peer_parts(size, work, peer_python, no_peer)
    for system in fast[1:]:
        parts += correct_parts(size, system, work)
    for system in fast[1:] if size.every else ():
        parts += [*making(size, system, work), *speed_parts(size, system, work)]
    for system in systems:
        if system not in fast:
            parts += correct_parts(size, system, work)
    return parts


def prepared_parts(
    size: Size, work: Path, lowerings: Sequence[str], numbers: Sequence[str]
) -> list[Part | Skipped]:
    """What needs no GPU: bundles of the large model and of those whose numbers are compared, and with compute
    capabilities the large one's engines of TensorRT-RTX."""
    parts: list[Part | Skipped] = []
    for lowering in lowerings:
        target = "tensorrt-rtx" if numbers and lowering != "ort" else None
        system = System("tensorrt" if target else "ort", lowering, size.compute, target)
        parts += making(size, system, work, numbers)
        for model in size.compared:
            for compute in dict.fromkeys((size.compute, "bf16")):
                parts.append(export_part(model, System("ort", lowering, compute), work))
    return parts


def making(size: Size, system: System, work: Path, numbers: Sequence[str] = ()) -> list[Part]:
    """The large model's bundle, and its engines where the system has any."""
    export = export_part(size.model, system, work)
    parts = [export]
    if system.target is not None:
        ahead = ("--compute-capability", ",".join(numbers)) if numbers else ()
        parts.append(Part(
            BUILD, system.name, (*export.command, "--engines", *ahead), share=22.0, least=30.0,
            needs=(bundle_path(work, size.model, system) / "manifest.json",),
            done=ready(work, size.model, system, engines=True),
        ))
    return parts


def export_part(model: str, system: System, work: Path) -> Part:
    """One bundle."""
    command = python_command(
        f"{MODULE}.bundles", "--work", str(work), "--model", model, "--system", system.slug,
    )
    done = ready(work, model, system, engines=False)
    return Part(EXPORT, f"{model}, {system.lowering} graphs, {system.compute}", command, 26.0, least=20.0, done=done)


def workload_parts(size: Size, work: Path) -> list[Part]:
    """The bundle whose tokenizer the workload is written with, where no system of ours made one."""
    return making(size, System("ort", "ort", size.compute), work)


def speed_parts(size: Size, system: System, work: Path) -> list[Part]:
    command = python_command(
        f"{MODULE}.speed", "--work", str(work), "--model", size.model, "--system", system.slug,
        "--shots", str(size.shots), "--context", str(size.context), *amounts(size),
    )
    needs = (system_path(work, size.model, system) / "manifest.json",)
    return [Part(SPEED, system.name, command, share=12.0, least=20.0, needs=needs)]


def correct_parts(size: Size, system: System, work: Path) -> list[Part]:
    def command(model: str) -> tuple[str, ...]:
        return python_command(
            f"{MODULE}.correct", "--work", str(work), "--model", model, "--system", system.slug,
        )

    return [Part(CORRECT, f"{system.name}: {model}", command(model), share=5.0, least=10.0) for model in size.compared]


def peer_parts(size: Size, work: Path, python: str | None, missing: str | None) -> list[Part | Skipped]:
    """open_flamingo, eager and compiled; where it is ``missing``, this project's own PyTorch model."""
    needs = (work / "workload" / "workload.json",)
    shots = ("--shots", f"0,{size.shots}", "--device", size.device, "--dtype", size.compute, *amounts(size))
    if python is not None and not missing:
        title = "open_flamingo"
        command = (python, str(PEER_SCRIPT), "--work", str(work), "--shape", str(write_shape(size, work)), *shots)
        found: list[Part | Skipped] = []
    else:
        title = "own PyTorch model, a stand-in"
        command = python_command(f"{MODULE}.own_torch", "--work", str(work), "--model", size.model, *shots)
        found = [Skipped(PEER, "open_flamingo", missing or "no --peer-python")]
    eager = Part(PEER, f"{title}, {size.compute}, {EAGER}", command, share=8.0, least=20.0, needs=needs)
    how = COMPILED if size.compiler == "inductor" else f"backend {size.compiler}, {COMPILED}"
    compiled = Part(
        PEER, f"{title}, {size.compute}, {how}", (*command, "--compile", size.compiler), share=16.0, least=30.0,
        needs=needs,
    )
    return [*found, eager, compiled]


def amounts(size: Size) -> tuple[str, ...]:
    return ("--tokens", str(size.tokens), "--runs", str(size.runs), "--seconds", str(size.seconds))


def write_shape(size: Size, work: Path) -> Path:
    """The peer's model of the same sizes, as its script reads it."""
    from benchmarks.random_sources import language_settings

    config, path = shape_of(size.model), work / f"peer-{size.model}.json"
    vision = config.vision
    if not isinstance(vision, ViTConfig):
        raise SystemExit(f"{size.model} has no ViT: open_flamingo cannot be built as it")
    shape = {
        "vision_width": vision.width, "vision_layers": vision.layers, "patch": vision.patch_size,
        "picture": vision.image_size, "language": language_settings(config), "rows": config.language.vocab_size,
        "interval": config.cross_attention.interval,
    }
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(shape), encoding="utf-8")
    return path
