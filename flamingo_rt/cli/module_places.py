"""Places of a module: an environment that sees the system's packages may hold another, which hides the system's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path


def places(module: str, path: Sequence[str] | None = None) -> list[Path]:
    """The folders of ``path``, by default `sys.path`, that hold a module, in the order of imports: the first one's is
    imported. A folder without an ``__init__.py`` is no module here. Nothing is imported."""
    found: list[Path] = []
    for entry in sys.path if path is None else path:
        spec = PathFinder.find_spec(module, [entry]) if entry else None
        if spec is not None and spec.origin is not None:
            folder = Path(entry).resolve()
            found += [folder] if folder not in found else []
    return found
