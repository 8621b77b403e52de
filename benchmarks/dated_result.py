"""The dated result file of one benchmark: machine, versions of libraries, settings, and what was measured."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison.machine_names import about_machine, machine_name
from flamingo_rt.bench.machine import describe_machine
from flamingo_rt.files import replacing_file

RESULTS = Path(__file__).parent / "results"


def result_file(folder: Path, subject: str, ending: str = "json") -> Path:
    """``DATE-MACHINE-SUBJECT.json`` of today on this machine."""
    return folder / f"{datetime.date.today().isoformat()}-{machine_name(about_machine())}-{subject}.{ending}"


def circumstances(settings: Any) -> dict[str, Any]:
    """Circumstances of a result: date, machine, versions of what is installed, and the settings (a mapping or a
    dataclass)."""
    versions = describe_machine().libraries
    given = asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else dict(settings)
    return {
        "date": datetime.date.today().isoformat(), "machine": about_machine(),
        "libraries": {name: version for name, version in versions.items() if version is not None},
        "settings": given,
    }


def write_result(folder: Path, subject: str, settings: Any, measured: Mapping[str, Any]) -> Path:
    """Write a result whole or not at all, one entry of ``measured`` a line; gives its file."""
    path = result_file(folder, subject)
    entries = {**circumstances(settings), **measured}
    lines = [f" {json.dumps(key)}: {json.dumps(value, default=str)}" for key, value in entries.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as beside:
        beside.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return path
