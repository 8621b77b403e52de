"""pip: options that fetch wheels for another machine, and the reason in what it prints when it fails."""

from __future__ import annotations

GLIBC = 39  # of 2.39, Ubuntu 24.04's; JetPack 6 has 35
OLDEST_GLIBC = 5
KEPT = 300  # characters of a reason
OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


def pip_options(python: str, machine: str, glibc: int = GLIBC) -> tuple[str, ...]:
    """Options with which pip takes wheels for CPython of a version such as ``3.12`` on Linux and a ``machine``,
    ``x86_64`` or ``aarch64``, in the place of this one. ``glibc`` is the second number of its C library's version: pip
    takes the platforms that it is told and no older ones, so all are listed."""
    names = [f"manylinux_2_{number}" for number in range(glibc, OLDEST_GLIBC - 1, -1)]
    names += [old for number, old in OLD_NAMES.items() if number <= glibc]
    platforms = [option for name in names for option in ("--platform", f"{name}_{machine}")]
    return ("--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms)


def reason(output: str) -> str:
    """The error in what pip printed: the last that says something, and the first of the conflicts that it lists."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    said = [error for error in errors if not error.startswith("ResolutionImpossible")] or lines or ["pip said nothing"]
    begins = [place for place, line in enumerate(lines) if line.startswith("The conflict is caused by")]
    conflict = "".join(f" {line}" for place in begins[:1] for line in lines[place + 1 : place + 2])
    return f"{said[-1]}{conflict and ':'}{conflict}"[:KEPT]
