"""The machine of a measurement, and a short name of it for files."""

from __future__ import annotations

import platform
import re
from typing import Any

from flamingo_rt.bench.machine import describe_machine


def about_machine() -> dict[str, Any]:
    machine = describe_machine()
    return {
        "cpu": machine.cpu, "cores": machine.cores, "memory_bytes": machine.memory_bytes,
        "system": f"{platform.system()} {platform.release()}", "architecture": platform.machine(),
    }


def machine_name(machine: dict[str, Any]) -> str:
    """A short name for files, such as ``amd-epyc-2-cores``."""
    words = re.sub(r"\((R|TM|r|tm)\)|@.*|CPU|Processor|\d+-Core", " ", machine["cpu"])
    return slug(f"{words} {machine['cores']} cores")


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
