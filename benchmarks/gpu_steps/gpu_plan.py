"""The steps and their order: the most important first, since time may run out.

A step is a command in a process of its own: the product's (``export``, ``build``, ``bench``, ``verify``, ``doctor``),
or a peer's. Everything lies in one work folder:

    bundles/MODEL-LOWERING-COMPUTE/   graphs, and the engines that ``flamingo-rt build`` makes of them
    workload/                         the prompts of ``flamingo-rt bench``, for the peers
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison.shapes import SMALL, shape_of
from flamingo_rt.bundle import is_bundle
from flamingo_rt.child_process import python_command
from flamingo_rt.config import FlamingoConfig, ViTConfig
from flamingo_rt.errors import FlamingoError

ROOT = Path(__file__).parents[2]
PACKAGED, CHECKPOINT = "packaged", ROOT / "models" / "tiny"
# A file, not a module: the peers' Python may be older than the option -P.
PEER_SCRIPT = ROOT / "benchmarks" / "peers" / "openflamingo_on_device.py"
DOCTOR, EXPORT, BUILD, BENCH, VERIFY, LOOK, PEER = "doctor", "export", "build", "bench", "verify", "look", "peer"
TARGETS = ("tensorrt", "tensorrt-rtx")
BACKENDS = (*TARGETS, "ort-cuda", "ort-tensorrt-rtx")
EAGER, COMPILED = "eager", "compiled"
# The large model's engines: 32 shots, one row, a prefill of 1,500 tokens.
LARGE_LIMITS = {"batch": 1, "tokens": 1536, "visuals": 33, "frames": 1, "capacity": 2048}


@dataclass(frozen=True)
class Size:
    """The measured model and the number of measurements.

    ``shots`` of the few-shot prompt; ``tokens`` of an answer; ``runs`` of each measurement, none of which begins after
    ``seconds``; the longest ``context``. Peers run on ``device``, compiled with torch.compile's backend ``compiler``.
    ``verified`` names the models whose bundles are verified. With ``every``, each system is measured, otherwise the
    first one.
    """

    model: str
    shots: int
    tokens: int
    runs: int
    seconds: float
    compute: str
    context: int
    device: str
    compiler: str
    verified: tuple[str, ...]
    every: bool


LARGE = Size("openflamingo-3b", 32, 32, 3, 10.0, "fp16", 1500, "cuda", "inductor", (PACKAGED, SMALL), True)
SMOKE = Size(SMALL, 1, 4, 1, 1.0, "fp32", 128, "cpu", "eager", (PACKAGED,), False)


@dataclass(frozen=True)
class System:
    """A backend, the ``lowering`` and type of its graphs, and the ``target`` of its engines, if it has engines."""

    backend: str
    lowering: str
    compute: str
    target: str | None = None

    @property
    def name(self) -> str:
        """A short name, such as ``tensorrt-rtx, classic graphs, fp16``."""
        kind = self.target or self.backend
        usual = "ort" if kind in ("ort", "ort-cuda") else "tensorrt"
        lowering = [] if self.lowering == usual else [f"{self.lowering.removeprefix('tensorrt-')} graphs"]
        return ", ".join([kind, *lowering, self.compute])


@dataclass(frozen=True)
class Step:
    """A process. ``share`` is its percentage of the budget; with fewer than ``least`` seconds left it is not started,
    nor where one of ``needs`` is missing or ``done`` says that its output is there."""

    name: str
    system: str
    command: tuple[str, ...]
    share: float
    least: float = 5.0
    needs: tuple[Path, ...] = ()
    done: bool = False


@dataclass(frozen=True)
class Skipped:
    """A step that is not in the plan, and the reason."""

    name: str
    system: str
    why: str


Planned = Step | Skipped


def tool(*arguments: str) -> tuple[str, ...]:
    """The command ``flamingo-rt`` with these arguments."""
    return python_command("flamingo_rt", *arguments)


def first_steps(peer_python: str) -> list[Step]:
    """``doctor``, and a look for the peer: what they find decides about the rest."""
    return [
        Step(DOCTOR, "", tool("doctor", "--json"), share=5.0),
        Step(LOOK, "open_flamingo", (peer_python, str(PEER_SCRIPT), "--check"), share=1.0, least=1.0),
    ]


def known_lowerings(backend: str) -> tuple[str, ...]:
    """Lowerings that a backend or a target of engines runs, the best first. Raises `FlamingoError` where its library is
    missing."""
    if backend in TARGETS:
        from flamingo_rt.engines.tensorrt.versions import import_tensorrt

        return import_tensorrt(backend).lowerings
    from flamingo_rt.engines.ort_gpu import PROVIDERS

    return PROVIDERS[backend]().lowerings


def smoke_systems() -> list[System]:
    """Systems of the CPU."""
    return [System("ort", lowering, "fp32") for lowering in ("ort", "tensorrt")]


def gpu_systems(
    doctor: Mapping[str, Any], backends: Sequence[str] = BACKENDS,
    lowerings: Callable[[str], Sequence[str]] = known_lowerings,
) -> tuple[list[System], list[Skipped]]:
    """Systems that run here, the most important first, and those that do not, by the record of ``doctor --json``.

    Of the two targets of engines the first one that works is taken: both would be in the same bundle, where the backend
    takes one of them.
    """
    found: list[System] = []
    missing: list[Skipped] = []
    for name in backends:
        why_not = _why_not(doctor, name)
        target = name if name in TARGETS else None
        taken = next((system.target for system in found if system.target), None)
        if not why_not and target and taken:
            why_not = f"the bundles have engines of {taken}: give --backends {name}"
        try:
            forms = () if why_not else lowerings(name)
        except FlamingoError as error:
            why_not, forms = str(error), ()
        if why_not:
            missing.append(Skipped("backend", name, why_not))
        backend = "tensorrt" if target else name
        found += [System(backend, form, compute, target) for compute in ("fp16", "bf16") for form in forms]
    return sorted(found, key=lambda system: _rank(system, found)), missing


def _why_not(doctor: Mapping[str, Any], name: str) -> str:
    """The reason why a backend or target does not run here, in ``doctor``'s words; empty where it does."""
    states = [doctor.get("cuda"), doctor.get("builders" if name in TARGETS else "backends", {}).get(name)]
    for state in states:
        if state is None:
            return "doctor says nothing of it"
        if not state["works"]:
            return str(state["detail"])
    return ""


def _rank(system: System, systems: Sequence[System]) -> tuple[bool, int, int]:
    """Key of the order: fp16 first, then the best lowering of each backend before the second ones."""
    alike = [each for each in systems if (each.backend, each.target, each.compute)
             == (system.backend, system.target, system.compute)]
    return system.compute != "fp16", alike.index(system), systems.index(system)


def steps_of(
    size: Size, systems: Sequence[System], work: Path, peer_python: str, no_peer: str | None
) -> list[Planned]:
    """Everything after `first_steps`: the first system and the peer before the other systems."""
    fast = [system for system in systems if system.compute == size.compute]
    steps: list[Planned] = []
    for system in fast[:1]:
        steps += [*large_steps(size, system, work), *verify_steps(PACKAGED, system, work)]
    if not fast:
        steps.append(Skipped(BENCH, "", f"no backend that computes in {size.compute} runs here"))
        steps.append(export_step(size, size.model, System("ort", "ort", size.compute), work))
    steps += peer_steps(size, work, peer_python, no_peer)
    others = [(model, system) for system in fast for model in size.verified if (model, system) != (PACKAGED, fast[0])]
    for model, system in others:
        steps += verify_steps(model, system, work)
    for system in fast[1:] if size.every else ():
        steps += large_steps(size, system, work)
    for system in systems:
        if system not in fast:
            steps += [step for model in size.verified for step in verify_steps(model, system, work)]
    return steps


def prepared_steps(
    size: Size, work: Path, lowerings: Sequence[str], capabilities: Sequence[str]
) -> list[Planned]:
    """Steps that need no GPU: the bundles, and with compute capabilities such as ``86`` the large model's engines of
    TensorRT-RTX."""
    steps: list[Planned] = []
    for lowering in lowerings:
        target = "tensorrt-rtx" if capabilities and lowering != "ort" else None
        system = System("tensorrt" if target else "ort", lowering, size.compute, target)
        steps.append(export_step(size, size.model, system, work))
        if target is not None:
            steps.append(build_step(size.model, system, work, share=20.0, capabilities=capabilities))
        for model in size.verified:
            for compute in dict.fromkeys((size.compute, "bf16")):
                steps.append(export_step(size, model, System("ort", lowering, compute), work))
    return steps


def bundle_path(work: Path, model: str, system: System) -> Path:
    """The bundle that a system loads."""
    return work / "bundles" / f"{model}-{system.lowering}-{system.compute}"


def large_steps(size: Size, system: System, work: Path) -> list[Step]:
    """Export, build and bench of the measured model."""
    steps = [export_step(size, size.model, system, work)]
    if system.target is not None:
        steps.append(build_step(size.model, system, work, share=20.0))
    bundle = bundle_path(work, size.model, system)
    command = tool(
        "bench", "--model", str(bundle), "--backend", system.backend, "--trust-engines", "--shots", f"0,{size.shots}",
        "--batch", "1", "--context", f"64,{size.context}", *_amounts(size), "--json",
    )
    return [*steps, Step(BENCH, system.name, command, share=14.0, least=20.0, needs=(bundle / "manifest.json",))]


def verify_steps(model: str, system: System, work: Path) -> list[Step]:
    """Export, build and verify of a small model."""
    steps = [export_step(None, model, system, work)]
    if system.target is not None:
        steps.append(build_step(model, system, work, share=4.0))
    bundle = bundle_path(work, model, system)
    command = tool("verify", "--model", str(bundle), "--backend", system.backend, "--json")
    title = f"{system.name}: {model}"
    return [*steps, Step(VERIFY, title, command, share=4.0, needs=(bundle / "manifest.json",))]


def export_step(size: Size | None, model: str, system: System, work: Path) -> Step:
    """One bundle. With a ``size``, its model's prompts are written for the peers too."""
    bundle, large = bundle_path(work, model, system), size is not None and model == size.model
    if model == PACKAGED:
        command = tool("export", "--ckpt", str(CHECKPOINT), "--lowering", system.lowering, "--compute", system.compute,
                       "--out", str(bundle), "--json")
    else:
        command = python_command(
            "benchmarks.gpu_steps.random_graphs", "--model", model, "--lowering", system.lowering, "--compute",
            system.compute, "--out", str(bundle),
        )
        if large and size is not None:
            command += ("--prompts", str(work / "workload"), "--shots", str(size.shots))
        else:
            command += ("--compare",)
    done = is_bundle(bundle) and (not large or (work / "workload" / "workload.json").is_file())
    title = f"{model}, {system.lowering} graphs, {system.compute}"
    return Step(EXPORT, title, command, 25.0 if large else 4.0, least=20.0 if large else 5.0, done=done)


def build_step(
    model: str, system: System, work: Path, share: float, capabilities: Sequence[str] = ()
) -> Step:
    """Engines of one bundle: for this machine's GPU, or ahead of time for compute capabilities."""
    bundle = bundle_path(work, model, system)
    ahead = ("--compute-capability", ",".join(capabilities)) if capabilities else ()
    limits = () if model == PACKAGED else _limits(shape_of(model))
    command = tool("build", "--model", str(bundle), "--target", str(system.target), *limits, *ahead, "--json")
    return Step(
        BUILD, f"{system.name}: {model}", command, share, least=30.0 if share > 10 else 5.0,
        needs=(bundle / "manifest.json",), done=any(bundle.glob(f"engines/{system.target}-*/engine.json")),
    )


def _limits(config: FlamingoConfig) -> tuple[str, ...]:
    """`LARGE_LIMITS` as options, as far as the model goes."""
    context = config.language.context
    most = {"tokens": context, "visuals": config.max_visuals, "capacity": context}
    names = {name: f"--max-{name}" for name in LARGE_LIMITS} | {"capacity": "--capacity"}
    values = {name: min(value, most.get(name, value)) for name, value in LARGE_LIMITS.items()}
    return tuple(word for name, value in values.items() for word in (names[name], str(value)))


def peer_steps(size: Size, work: Path, python: str, missing: str | None) -> list[Planned]:
    """open_flamingo, eager and compiled; where it is ``missing``, this project's own PyTorch model in its place."""
    needs = (work / "workload" / "workload.json",)
    how = ("--work", str(work), "--shots", f"0,{size.shots}", "--device", size.device, "--dtype", size.compute,
           *_amounts(size))
    found: list[Planned] = []
    if missing:
        title = "own PyTorch model, a stand-in"
        command = python_command("benchmarks.gpu_steps.own_torch", "--model", size.model, *how)
        found.append(Skipped(PEER, "open_flamingo", missing))
    else:
        title = "open_flamingo"
        command = (python, str(PEER_SCRIPT), "--shape", str(write_shape(size, work)), *how)
    kind = COMPILED if size.compiler == "inductor" else f"backend {size.compiler}, {COMPILED}"
    eager = Step(PEER, f"{title}, {size.compute}, {EAGER}", command, share=8.0, least=20.0, needs=needs)
    compiled = Step(
        PEER, f"{title}, {size.compute}, {kind}", (*command, "--compile", size.compiler), share=15.0, least=30.0,
        needs=needs,
    )
    return [*found, eager, compiled]


def _amounts(size: Size) -> tuple[str, ...]:
    return ("--tokens", str(size.tokens), "--runs", str(size.runs), "--seconds", str(size.seconds))


def write_shape(size: Size, work: Path) -> Path:
    """Write the sizes of the measured model as the peer's script reads them. Ends the program for a model without a
    ViT."""
    from benchmarks.random_sources import language_settings

    config, path = shape_of(size.model), work / f"peer-{size.model}.json"
    vision = config.vision
    if not isinstance(vision, ViTConfig):
        sys.exit(f"{size.model} has no ViT: open_flamingo cannot be built as it")
    shape = {
        "vision_width": vision.width, "vision_layers": vision.layers, "patch": vision.patch_size,
        "picture": vision.image_size, "language": language_settings(config), "rows": config.language.vocab_size,
        "interval": config.cross_attention.interval,
    }
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(shape), encoding="utf-8")
    return path
