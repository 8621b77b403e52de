"""The names that a file imports, read from its text."""

from __future__ import annotations

import ast
from pathlib import Path


def imported(file: Path) -> set[str]:
    """Whole names of what a file imports: modules, and what is taken from them, as ``module.name``; relative
    ones begin with a point."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names
