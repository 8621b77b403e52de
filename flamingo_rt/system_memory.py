"""The memory this process can still get: on Linux, the kernel's own estimate and the limits of control groups
(containers)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MEMINFO, OWN_GROUPS, GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Files of a control group, version 2 and 1: its limit, its use, and the part of the use that is droppable page cache.
_VERSION_2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def available_bytes() -> int | None:
    """Memory that this process can still get, or None where that is unknown."""
    return min((*_free_of_the_machine(), *_free_of_the_groups()), default=None)


def _free_of_the_machine() -> Iterator[int]:
    for line in _lines(MEMINFO):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield int(value.split()[0]) * 1024


def _free_of_the_groups() -> Iterator[int]:
    """Memory left within the limits of this process's control groups and of their parents."""
    for line in _lines(OWN_GROUPS):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, files = GROUPS, _VERSION_2
        elif "memory" in controllers.split(","):
            top, files = GROUPS / "memory", _VERSION_1
        else:
            continue
        group = top / path.strip("/")
        # In a container the path may be the host's, and only the top exists.
        for folder in (group, *group.parents):
            yield from _free_of_group(folder, *files)
            if folder == top:
                break


def _free_of_group(folder: Path, limit: str, used: str, droppable: tuple[str, ...]) -> Iterator[int]:
    allowed, current = (_lines(folder / name)[:1] for name in (limit, used))
    if allowed and current and allowed[0].isdigit():  # "max" is no limit
        statistics = dict(line.split() for line in _lines(folder / "memory.stat"))
        yield max(0, int(allowed[0]) - int(current[0]) + sum(int(statistics.get(name, 0)) for name in droppable))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def readable_bytes(count: int) -> str:
    """A size for messages, such as 1.5 GB or 12.0 MB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
