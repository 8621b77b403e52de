"""The run on the machine that measures: what there is, the steps for it, their table and the dated file."""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.comparison.machine_names import about_machine, machine_name, slug
from benchmarks.gpu_steps import gpu_plan
from benchmarks.gpu_steps.gpu_session import Session
from benchmarks.gpu_steps.gpu_support import BACKENDS, GpuFacts, cannot_run, mixed_cudas, old_driver, read_facts
from benchmarks.gpu_steps.gpu_table import printed
from benchmarks.processes import run
from flamingo_rt.engines.gpu.nvidia_driver import find_gpu
from flamingo_rt.errors import DataError
from flamingo_rt.json_files import read_json

QUERY = ("--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader", "--id=0")
PATIENCE = 30.0  # seconds for nvidia-smi


def measure(options: argparse.Namespace) -> int:
    """Run the steps of `gpu_run.options_of`'s result, and print the table. Returns 1 where a step failed."""
    size, machine, facts = gpu_plan.SMOKE if options.smoke else gpu_plan.LARGE, about_machine(), asked_gpu()
    gpu = find_gpu()
    found = facts.name if facts else gpu.name if gpu else None
    date, name = datetime.date.today().isoformat(), slug(found) if found else machine_name(machine)
    about = {"format": 4, "date": date, "machine": machine, "gpu": asdict(gpu) if gpu else None,
             "driver": facts.driver if facts else None, "size": asdict(size), "smoke": options.smoke,
             "minutes": options.minutes}
    session = Session(options.results / f"{date}-{name}-gpu.jsonl", about,
                      None if options.prepare else options.minutes * 60)
    if options.prepare:
        systems, only = gpu_plan.systems_of({"prepared": options.lowerings.split(",")}), "prompts,export"
    else:
        only = options.only
        missing = _add_notes(session, options, facts)
        systems = _add_backends(session, options.backends.split(",") if options.backends else BACKENDS, facts, missing)
    systems = gpu_plan.CPU_SYSTEMS if options.smoke else systems
    for step in gpu_plan.steps_of(size, systems, options.work, options.peer_python):
        if only is None or step.name.split()[0] in only.split(","):
            session.run(step)
    print(f"\n{printed(session.outcomes, judged=not options.smoke)}")
    failed = sum("error" in outcome for outcome in session.outcomes)
    print(json.dumps({"results": str(session.path), "steps": len(session.outcomes), "errors": failed,
                      "seconds": round(session.elapsed())}))
    return 1 if failed else 0


def asked_gpu() -> GpuFacts | None:
    """The first GPU by ``nvidia-smi``, which works beside libraries of any CUDA; None where that shows none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        finished = run((program, *QUERY), quiet=True, limit=PATIENCE)
    except OSError:
        return None
    return None if finished.status else read_facts(finished.last_line)


def _add_notes(session: Session, options: argparse.Namespace, facts: GpuFacts | None) -> dict[str, str]:
    """Put into the table what unpacking found and what the libraries and the driver are. Returns the parts that a pack
    lacks, with the reasons."""
    notes: Any = {} if options.notes is None else read_json(options.notes)
    if not isinstance(notes, dict) or not isinstance(notes.get("missing", {}), dict):
        raise DataError(f"{options.notes} is not what --unpack-and-run writes: leave --notes out")
    if facts:
        session.add("machine", "", note=f"{facts.title}, driver {facts.driver}")
    for note in (mixed_cudas(), facts and old_driver(facts)):
        if note:
            session.add("machine", "", note=note)
    for note in notes.get("notes", ()):
        session.add("pack", "", note=str(note))
    missing = {str(group): str(why) for group, why in notes.get("missing", {}).items()}
    for group, why in missing.items():
        if group not in BACKENDS:
            session.add("pack", "", note=f"{group}: {why}")
    return missing


def _add_backends(
    session: Session, backends: Sequence[str], facts: GpuFacts | None, missing: dict[str, str]
) -> list[gpu_plan.System]:
    """Ask ``doctor`` which of the backends that a pack and the GPU do not rule out work. Returns their systems; every
    other backend becomes a row with the reason."""
    ruled_out = {name: why for name in backends if (why := facts and cannot_run(name, facts))}
    ruled_out = {name: why for name, why in missing.items() if name in backends} | ruled_out
    systems: list[gpu_plan.System] = []
    for doctor in session.run(gpu_plan.DOCTOR)["records"]:
        systems, failed = gpu_plan.gpu_systems(doctor, [name for name in backends if name not in ruled_out])
        ruled_out |= failed
    for name in backends:
        if name in ruled_out:
            session.add("backend", name, skipped=ruled_out[name])
    return systems
