"""The steps in the order of their importance, since time may run out: each a command in a process of its own.

Everything lies in one work folder:

    bundles/MODEL-LOWERING-COMPUTE/   graphs, and the engines that ``flamingo-rt build`` makes of them
    workload/                         the prompts of ``flamingo-rt bench`` and the model's sizes, for the peers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison.shapes import SMALL
from flamingo_rt.bundle import is_bundle
from flamingo_rt.child_process import python_command

ROOT = Path(__file__).parents[2]
PACKAGED, CHECKPOINT = "packaged", ROOT / "models" / "tiny"
# A file, not a module: the peers' Python may be older than the option -P.
PEER_SCRIPT = ROOT / "benchmarks" / "peers" / "openflamingo_on_device.py"
TARGETS = ("tensorrt", "tensorrt-rtx")  # of engines; the backend tensorrt runs both
BACKENDS = (*TARGETS, "ort-cuda", "ort-tensorrt-rtx")
UNKNOWN = [("tensorrt-classic", "bf16")]  # its opset has no such type
# The measured model's engines: 32 shots, one row, a prefill of 1,500 tokens.
LIMITS = ("--max-batch", "1", "--max-tokens", "1536", "--max-visuals", "33", "--max-frames", "1", "--capacity", "2048")


@dataclass(frozen=True)
class Size:
    """The measured ``model`` and type, ``shots`` of its long prompt, its longest ``context``, the ``amounts`` of
    measurements as options; where peers run and how torch.compile compiles them; the models that are ``verified``."""

    model: str
    compute: str
    shots: int
    context: int
    amounts: tuple[str, ...]
    device: str
    compiler: str
    verified: tuple[str, ...]


LARGE = Size("openflamingo-3b", "fp16", 32, 1500, ("--tokens", "32", "--runs", "3", "--seconds", "10"), "cuda",
             "inductor", (PACKAGED, SMALL))
SMOKE = Size(SMALL, "fp32", 1, 128, ("--tokens", "4", "--runs", "1", "--seconds", "1"), "cpu", "eager", (PACKAGED,))


@dataclass(frozen=True)
class System:
    """A backend, or a target of engines; the lowering of its graphs, and the type that they compute in."""

    backend: str
    lowering: str
    compute: str

    @property
    def name(self) -> str:
        """Such as ``ort-cuda, ort graphs, fp16``."""
        return f"{self.backend}, {self.lowering} graphs, {self.compute}"


CPU_SYSTEMS = (System("ort", "ort", "fp32"), System("ort", "tensorrt", "fp32"))


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
            lowerings[name] = state["lowerings"]
    return systems_of(lowerings), missing


def systems_of(lowerings: Mapping[str, Sequence[str]]) -> list[System]:
    """Every backend with its lowerings, best first: fp16, then bf16; each backend's best lowering, then the others."""
    places = range(max(map(len, lowerings.values()), default=0))
    return [System(name, forms[place], compute) for compute in ("fp16", "bf16") for place in places
            for name, forms in lowerings.items()
            if place < len(forms) and (forms[place], compute) not in UNKNOWN]


def steps_of(size: Size, systems: Sequence[System], work: Path, peer_python: str) -> list[Step]:
    """Everything after `DOCTOR`: the first system, the peers, then of the other systems what is small before what is
    large. What several systems need is made once."""
    prompts = python_command("benchmarks.gpu_steps.random_graphs", "--model", size.model, "--shots", str(size.shots),
                             "--prompts", str(work / "workload"))
    first, *others = [system_steps(size, system, work) for system in systems] or [[]]
    steps = [Step("prompts", "", prompts, 2.0), *first, *peer_steps(size, work, peer_python)]
    steps += sorted((step for system in others for step in system), key=lambda step: size.model in step.name)
    once: dict[tuple[str, ...], Step] = {}
    for step in steps:
        once.setdefault(step.command, step)
    return list(once.values())


def system_steps(size: Size, system: System, work: Path) -> list[Step]:
    """Bench of the measured model and verify of the small ones, each after export and build unless that was done."""
    steps: list[Step] = []
    tasks = [("bench", size.model)] if system.compute == size.compute else []
    for task, model in [*tasks, *(("verify", model) for model in size.verified)]:
        large, bundle = task == "bench", work / "bundles" / f"{model}-{system.lowering}-{system.compute}"
        if not is_bundle(bundle):
            random = ("benchmarks.gpu_steps.random_graphs", "--model", model, *(() if large else ("--compare",)))
            made = ("flamingo_rt", "export", "--json", "--ckpt", str(CHECKPOINT)) if model == PACKAGED else random
            form = ("--lowering", system.lowering, "--compute", system.compute, "--out", str(bundle))
            steps.append(Step(f"export {model}", system.name, python_command(*made, *form), 20.0 if large else 2.0))
        if system.backend in TARGETS and not any(bundle.glob(f"engines/{system.backend}-*/engine.json")):
            build = python_command("flamingo_rt", "build", "--json", "--model", str(bundle), "--target", system.backend,
                                   *(LIMITS if large else ()))
            steps.append(Step(f"build {model}", system.name, build, 20.0 if large else 3.0))
        measured = ("--shots", f"0,{size.shots}", "--batch", "1", "--context", f"64,{size.context}", *size.amounts)
        backend = "tensorrt" if system.backend in TARGETS else system.backend
        command = python_command("flamingo_rt", task, "--json", "--model", str(bundle), "--backend", backend,
                                 "--trust-engines", *(measured if large else ()))
        steps.append(Step(f"{task} {model}", system.name, command, 14.0 if large else 2.0))
    return steps


def peer_steps(size: Size, work: Path, python: str) -> list[Step]:
    """open_flamingo, and this project's own PyTorch model, each eager and compiled."""
    how = ("--work", str(work), "--shots", f"0,{size.shots}", "--device", size.device, "--dtype", size.compute,
           *size.amounts)
    own = python_command("benchmarks.gpu_steps.own_torch", "--model", size.model)
    return [Step("peer", f"{title}, {size.compute}, {kind}", (*command, *how, *more), share)
            for title, command in (("open_flamingo", (python, str(PEER_SCRIPT))), ("own PyTorch model", own))
            for kind, more, share in (("eager", (), 10.0), ("compiled", ("--compile", size.compiler), 16.0))]
