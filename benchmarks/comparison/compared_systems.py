"""The compared systems, and the commands that run them. Everything lies in one work folder:

    sources/      the model's three files
    workload/     prompts and pictures
    captions/     few-shot prompts about drawn scenes, with the captions that are decoded
    bundle-fp32/  (int8, int4) what flamingo-rt export makes of the sources
    checkpoint/   what flamingo-rt import makes, for the torch backend
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.comparison.shapes import SMALL, import_options
from flamingo_rt.child_process import python_command

# Files: the peers' Python may be of a version without -P.
PEERS = Path(__file__).parents[1] / "peers"
TOOL = python_command("flamingo_rt")


@dataclass(frozen=True)
class System:
    """One measured program. ``kind``: peer and idefics run in the peer's environment, ours in this one; infer and
    start are whole processes. ``model`` is the folder in the work folder that it needs. ``captions``: it decodes given
    captions, not the workload's cases."""

    name: str
    label: str
    kind: str
    dtype: str
    model: str | None = None
    backend: str = "auto"
    captions: bool = False


LISTED = (
    System("peer-fp32", "open_flamingo fp32", "peer", "fp32"),
    System("ours-fp32", "flamingo-rt fp32", "ours", "fp32", "bundle-fp32"),
    System("ours-int8", "flamingo-rt int8", "ours", "int8", "bundle-int8"),
    System("ours-int4", "flamingo-rt int4", "ours", "int4", "bundle-int4"),
    System("ours-torch", "flamingo-rt torch fp32", "ours", "fp32", "checkpoint", "torch"),
    System("peer-bf16", "open_flamingo bf16", "peer", "bf16"),
    System("idefics-fp32", "IDEFICS fp32", "idefics", "fp32"),
    System("idefics-bf16", "IDEFICS bf16", "idefics", "bf16"),
    System("infer-int8", "flamingo-rt infer, int8", "infer", "int8", "bundle-int8"),
    System("infer-int4", "flamingo-rt infer, int4", "infer", "int4", "bundle-int4"),
    System("start", "flamingo-rt infer, packaged model", "start", "fp32"),
)
CAPTIONED = ("peer-fp32", "peer-bf16", "ours-fp32", "ours-int8", "ours-int4")
# Captions come right behind, while the model's folder is there.
SYSTEMS = {
    each.name: each
    for system in LISTED
    for each in (system, replace(system, name=f"captions-{system.name}", captions=True))
    if not each.captions or system.name in CAPTIONED
}
MEASURED = ("peer", "idefics", "ours")  # kinds that answer prompts


def build_command(model: str, work: Path, preset: str) -> list[str]:
    """The command that makes a folder of the work folder from the sources."""
    sources = work / "sources"
    files = ["--vision", str(sources / "vision.safetensors"), "--language", str(sources / "language")]
    files += [*import_options(preset), "--out", str(work / model), "--json"]
    if model == "checkpoint":
        return [*TOOL, "import", "openflamingo", "--checkpoint", str(sources / "checkpoint.pt"), *files]
    dtype = model.removeprefix("bundle-")
    # The weights are random: no prompts to round for, and what quantization costs says nothing of trained ones.
    unchecked = ["--min-cosine", "-1", "--max-changed", "1"]
    nearest = ["--rounding", "nearest"] if dtype != "int8" else []  # 8-bit matrices have no other rounding
    quantize = [] if dtype == "fp32" else ["--quantize", dtype, *nearest, *unchecked]
    return [*TOOL, "export", "--ckpt", str(sources / "checkpoint.pt"), *files, *quantize]


def sources_command(work: Path, preset: str) -> list[str]:
    return [*python_command("benchmarks.random_sources"), "--preset", preset, "--out", str(work / "sources")]


def measure_command(system: System, work: Path, preset: str, peer_python: str, plan: list[str]) -> list[str]:
    """The command that measures a system of the kinds in `MEASURED`; ``plan`` are the options of how much."""
    common = ["--work", str(work), *plan, *(["--captions"] if system.captions else [])]
    if system.kind == "peer":
        return [peer_python, str(PEERS / "openflamingo_speed.py"), *common, "--dtype", system.dtype]
    if system.kind == "idefics":
        size = "small" if preset == SMALL else "3b"
        script = str(PEERS / "idefics_speed.py")
        return [peer_python, script, *common, "--dtype", system.dtype, "--size", size]
    return [*python_command("benchmarks.ours"), *common, "--model", str(work / system.model),
            "--backend", system.backend, "--name", system.name, "--dtype", system.dtype]


def infer_command(bundle: Path | None, picture: Path, threads: int, tokens: int, as_json: bool) -> list[str]:
    """``flamingo-rt infer`` of a bundle, or of the packaged model."""
    model = ["--model", str(bundle)] if bundle else []
    return [*TOOL, "infer", *model, "--image", str(picture), "--threads", str(threads), "--max-new-tokens", str(tokens),
            *(["--json"] if as_json else [])]
