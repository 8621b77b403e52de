"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any


def about_machine() -> dict[str, Any]:
    return {
        "cpu": cpu_name(), "cores": os.cpu_count(), "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.release()}", "architecture": platform.machine(),
    }


def machine_name(machine: dict[str, Any]) -> str:
    """A short name for files, such as ``amd-epyc-2-cores``."""
    words = re.sub(r"\((R|TM|r|tm)\)|@.*|CPU|Processor|\d+-Core", " ", machine["cpu"])
    return slug(f"{words} {machine['cores']} cores")


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def cpu_name() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
