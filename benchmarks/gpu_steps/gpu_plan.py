"""The steps in the order of their importance, since time may run out: each a command in a process of its own.

Everything lies in one work folder:

    bundles/MODEL-LOWERING-COMPUTE/   graphs, and the engines that ``flamingo-rt build`` makes of them
    checkpoints/MODEL-COMPUTE/        the same random weights for the backend torch
    workload/                         the prompts of ``flamingo-rt bench`` and the model's sizes, for the peers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison.shapes import SMALL
from benchmarks.gpu_steps.gpu_support import TARGETS
from flamingo_rt.bundle import is_bundle
from flamingo_rt.child_process import python_command

ROOT = Path(__file__).parents[2]
PACKAGED, CHECKPOINT = "packaged", ROOT / "models" / "tiny"
# A file, not a module: the peers' Python may be older than the option -P.
PEER_SCRIPT = ROOT / "benchmarks" / "peers" / "openflamingo_on_device.py"
TORCH = "torch"
UNKNOWN = [("tensorrt-classic", "bf16")]  # its opset has no such type
# The measured model's engines: 32 shots, one row, a prefill of 1,500 tokens.
LIMITS = ("--max-batch", "1", "--max-tokens", "1536", "--max-visuals", "33", "--max-frames", "1", "--capacity", "2048")


@dataclass(frozen=True)
class Size:
    """The measured ``model`` and type, ``shots`` of its prompts, its longest ``context``, the ``amounts`` of
    measurements as options; where PyTorch runs and how torch.compile compiles the peers; the models that are
    ``verified``."""

    model: str
    compute: str
    shots: tuple[int, ...]
    context: int
    amounts: tuple[str, ...]
    device: str
    compiler: str
    verified: tuple[str, ...]


LARGE = Size("openflamingo-3b", "fp16", (0, 4, 32), 1500, ("--tokens", "32", "--runs", "3", "--seconds", "10"), "cuda",
             "inductor", (PACKAGED, SMALL))
SMOKE = Size(SMALL, "fp32", (0, 1, 2), 128, ("--tokens", "4", "--runs", "1", "--seconds", "1"), "cpu", "eager",
             (PACKAGED,))


@dataclass(frozen=True)
class System:
    """A backend, or a target of engines; the lowering of its graphs, for ``torch`` of those that it is verified with,
    and the type that it computes in."""

    backend: str
    lowering: str
    compute: str

    @property
    def name(self) -> str:
        """Such as ``ort-cuda, ort graphs, fp16``."""
        graphs = "" if self.backend == TORCH else f" {self.lowering} graphs,"
        return f"{self.backend},{graphs} {self.compute}"


CPU_SYSTEMS = (System(TORCH, "ort", "fp32"), System("ort", "ort", "fp32"), System("ort", "tensorrt", "fp32"))


@dataclass(frozen=True)
class Step:
    """A process for a system, and its percentage of the budget."""

    name: str
    system: str
    command: tuple[str, ...]
    share: float


DOCTOR = Step("doctor", "", python_command("flamingo_rt", "doctor", "--json"), 4.0)


def gpu_systems(doctor: Mapping[str, Any], backends: Sequence[str]) -> tuple[list[System], dict[str, str]]:
    """Systems that run here, and the reasons why other backends do not, by the record of ``doctor``.

    Of the two targets of engines the first one that works is taken: the backend would find both in the same bundle.
    """
    lowerings: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    for name in backends:
        state = doctor["backends"]["tensorrt" if name in TARGETS else name]
        if state["works"] and name in TARGETS:
            state = doctor["builders"][name]
        taken = next((other for other in lowerings if {name, other} == set(TARGETS)), None)
        if not state["works"]:
            missing[name] = state["detail"]
        elif taken:
            missing[name] = f"the bundles have engines of {taken}: give --backends {name}"
        else:
            lowerings[name] = ["ort"] if name == TORCH else state["lowerings"]
    return systems_of(lowerings), missing


def systems_of(lowerings: Mapping[str, Sequence[str]]) -> list[System]:
    """Every backend with its lowerings, best first: fp16, then bf16; each backend's best lowering, then the others."""
    places = range(max(map(len, lowerings.values()), default=0))
    return [System(name, forms[place], compute) for compute in ("fp16", "bf16") for place in places
            for name, forms in lowerings.items()
            if place < len(forms) and (forms[place], compute) not in UNKNOWN]


def steps_of(size: Size, systems: Sequence[System], work: Path, peer_python: str) -> list[Step]:
    """Everything after `DOCTOR`: PyTorch and the first other system, the peers, then of the other systems what is small
    before what is large. What several systems need is made once."""
    prompts = python_command("benchmarks.gpu_steps.random_graphs", "--model", size.model, "--shots",
                             _listed(size.shots), "--prompts", str(work / "workload"))
    first = 2 if systems and systems[0].backend == TORCH else 1
    each = [system_steps(size, system, work) for system in systems]
    steps = [Step("prompts", "", prompts, 2.0), *(step for steps in each[:first] for step in steps)]
    steps += peer_steps(size, work, peer_python)
    steps += sorted((step for steps in each[first:] for step in steps), key=lambda step: size.model in step.name)
    once: dict[tuple[str, ...], Step] = {}
    for step in steps:
        once.setdefault(step.command, step)
    return list(once.values())


def system_steps(size: Size, system: System, work: Path) -> list[Step]:
    """Verify of the small models, then bench of the measured one: no time without the answers being right before. Each
    comes after what makes its model, unless that was made."""
    steps = []
    for model in size.verified:
        more = ()
        if system.backend == TORCH:
            steps += checkpoint_steps(size, system, model, work)
            more = ("--ckpt", str(checkpoint(model, system, work)), "--device", size.device)
        steps += bundle_steps(size, system, model, work)
        steps.append(_on_backend("verify", system, model, 2.0, "--model", str(bundle(model, system, work)), *more))
    if system.compute != size.compute:
        return steps
    amounts = ("--shots", _listed(size.shots), "--batch", "1", "--context", f"64,{size.context}", *size.amounts)
    if system.backend == TORCH:
        steps += checkpoint_steps(size, system, size.model, work)
        measured, where = checkpoint(size.model, system, work), ("--device", size.device, "--compute", size.compute)
    else:
        steps += bundle_steps(size, system, size.model, work)
        measured, where = bundle(size.model, system, work), ()
    return [*steps, _on_backend("bench", system, size.model, 8.0, "--model", str(measured), *where, *amounts)]


def bundle(model: str, system: System, work: Path) -> Path:
    """The folder of a model's graphs for a system."""
    return work / "bundles" / f"{model}-{system.lowering}-{system.compute}"


def checkpoint(model: str, system: System, work: Path) -> Path:
    """The folder of a model's weights for the backend ``torch``."""
    return CHECKPOINT if model == PACKAGED else work / "checkpoints" / f"{model}-{system.compute}"


def bundle_steps(size: Size, system: System, model: str, work: Path) -> list[Step]:
    """Export of a model and build of its engines, each unless it was done."""
    large, folder, steps = model == size.model, bundle(model, system, work), []
    if not is_bundle(folder):
        random = ("benchmarks.gpu_steps.random_graphs", "--model", model, *(() if large else ("--compare",)))
        made = ("flamingo_rt", "export", "--json", "--ckpt", str(CHECKPOINT)) if model == PACKAGED else random
        form = ("--lowering", system.lowering, "--compute", system.compute, "--out", str(folder))
        steps.append(Step(f"export {model}", system.name, python_command(*made, *form), 15.0 if large else 2.0))
    if system.backend in TARGETS and not any(folder.glob(f"engines/{system.backend}-*/engine.json")):
        build = python_command("flamingo_rt", "build", "--json", "--model", str(folder), "--target", system.backend,
                               *(LIMITS if large else ()))
        steps.append(Step(f"build {model}", system.name, build, 17.0 if large else 3.0))
    return steps


def checkpoint_steps(size: Size, system: System, model: str, work: Path) -> list[Step]:
    """Writing of a random model's weights, unless they are there."""
    folder = checkpoint(model, system, work)
    if (folder / "config.json").is_file():
        return []
    command = python_command("benchmarks.gpu_steps.random_graphs", "--model", model, "--compute", system.compute,
                             "--checkpoint", str(folder))
    return [Step(f"weights {model}", system.name, command, 8.0 if model == size.model else 1.0)]


def _on_backend(task: str, system: System, model: str, share: float, *options: str) -> Step:
    backend = "tensorrt" if system.backend in TARGETS else system.backend
    trust = ("--trust-engines",) if system.backend in TARGETS else ()
    command = python_command("flamingo_rt", task, "--json", "--backend", backend, *trust, *options)
    return Step(f"{task} {model}", system.name, command, share)


def peer_steps(size: Size, work: Path, python: str) -> list[Step]:
    """open_flamingo, and this project's own PyTorch model, each eager and compiled."""
    how = ("--work", str(work), "--shots", _listed(size.shots), "--device", size.device, "--dtype", size.compute,
           *size.amounts)
    own = python_command("benchmarks.gpu_steps.own_torch", "--model", size.model)
    return [Step("peer", f"{title}, {size.compute}, {kind}", (*command, *how, *more), share)
            for title, command in (("open_flamingo", (python, str(PEER_SCRIPT))), ("own PyTorch model", own))
            for kind, more, share in (("eager", (), 7.0), ("compiled", ("--compile", size.compiler), 8.0))]


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
