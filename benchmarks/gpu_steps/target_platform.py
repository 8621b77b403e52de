"""The machine that wheels are fetched for, as options of pip."""

from __future__ import annotations

GLIBC = 39  # of 2.39, Ubuntu 24.04's; JetPack 6 has 35
OLDEST_GLIBC = 5
OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


def pip_options(python: str, machine: str, glibc: int = GLIBC) -> tuple[str, ...]:
    """Options with which pip takes wheels for CPython of a version such as ``3.12`` on Linux and a ``machine``,
    ``x86_64`` or ``aarch64``, in the place of this one. ``glibc`` is the second number of its C library's version: pip
    takes the platforms that it is told and no older ones, so all are listed."""
    names = [f"manylinux_2_{number}" for number in range(glibc, OLDEST_GLIBC - 1, -1)]
    names += [old for number, old in OLD_NAMES.items() if number <= glibc]
    platforms = [option for name in names for option in ("--platform", f"{name}_{machine}")]
    return ("--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms)
