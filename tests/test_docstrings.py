"""Docstrings are plain: each begins with a noun phrase or a verb, and every file says what it is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOPS = ("flamingo_rt", "export", "engines", "tests", "benchmarks", "examples")
FILES = [
    file for top in TOPS for file in sorted((ROOT / top).rglob("*.py")) if ".venv" not in file.relative_to(ROOT).parts
]
# A sentence that begins so is a clause about something else, which the reader has to find first.
CLAUSES = re.compile(r"(As|How|Of|That|What|Where|Which|Who|Whose) ")


def documented(file: Path) -> list[tuple[ast.AST, str, str | None]]:
    """Every module, class and function of a file with its name and docstring."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [
        (node, getattr(node, "name", file.stem), ast.get_docstring(node))
        for node in ast.walk(tree) if isinstance(node, kinds)
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_docstring_begins_with_what_it_is_about(file: Path) -> None:
    assert not [(name, text) for _, name, text in documented(file) if text and CLAUSES.match(text)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_file_says_in_its_first_line_what_it_is(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert not text or text.startswith(('"""', 'r"""'))
