"""Docstrings, comments and help texts are plain: each begins with a noun phrase or a verb, and every file says what it
is."""

from __future__ import annotations

import ast
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from flamingo_rt.training.options import RunOptions

ROOT = Path(__file__).parent.parent
PRODUCT, AROUND = ("flamingo_rt", "export", "engines"), ("tests", "benchmarks", "examples", "recipes")
FILES = {
    top: [file for file in sorted((ROOT / top).rglob("*.py")) if ".venv" not in file.relative_to(ROOT).parts]
    for top in (*PRODUCT, *AROUND)
}
EVERY = [file for files in FILES.values() for file in files]
# A sentence that begins so is a clause about something else, which the reader has to find first.
CLAUSES = ("How", "Of", "That", "What", "Whatever", "Which", "Whichever", "Who", "Whoever", "Whose", "Why")
# A comment may begin with a condition or a reason; in a docstring its subject comes before them.
CONDITIONS = ("As", "Because", "For", "If", "Since", "When", "Where")


def begins_with(words: tuple[str, ...], text: str) -> bool:
    return text.startswith(tuple(f"{word} " for word in words))


def documented(file: Path) -> list[tuple[ast.AST, str, str | None]]:
    """Every module, class and function of a file with its name and docstring."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [
        (node, getattr(node, "name", file.stem), ast.get_docstring(node))
        for node in ast.walk(tree) if isinstance(node, kinds)
    ]


def comments(file: Path) -> Iterator[str]:
    """The first line of every comment, at the end of a line of code too."""
    with file.open("rb") as lines:
        line_above = 0
        for token in tokenize.tokenize(lines.readline):
            if token.type == tokenize.COMMENT:
                if token.start[0] != line_above + 1 or token.line.strip() != token.string:
                    yield token.string.removeprefix("#").strip()
                line_above = token.start[0]


def help_texts(file: Path) -> list[str]:
    """The arguments ``help`` of a file's calls, and the texts of ``option(default, text)``, where they are
    constants."""
    values = [
        value for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        for value in (*(keyword.value for keyword in node.keywords if keyword.arg == "help"), *option_text(node))
    ]
    return [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]


def option_text(call: ast.Call) -> list[ast.expr]:
    """The text of a field of `flamingo_rt.training.options`."""
    return call.args[1:2] if isinstance(call.func, ast.Name) and call.func.id == "option" else []


def named(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", EVERY, ids=named)
def test_a_docstring_begins_with_what_it_is_about(file: Path) -> None:
    """A test's docstring may begin with the condition under which its name holds."""
    refused = (*CLAUSES, "As", "Where") if named(file).startswith(AROUND) else CLAUSES + CONDITIONS
    assert not [(name, text) for _, name, text in documented(file) if text and begins_with(refused, text)]


@pytest.mark.parametrize("file", [file for top in PRODUCT for file in FILES[top]], ids=named)
def test_a_comment_begins_with_no_clause_about_something_else(file: Path) -> None:
    assert not [text for text in comments(file) if begins_with(CLAUSES, text)]


def test_a_help_text_begins_with_what_the_option_is() -> None:
    texts = [text for file in FILES["flamingo_rt"] for text in help_texts(file)]
    assert len(texts) > 50
    assert RunOptions.__dataclass_fields__["steps"].metadata["help"] in texts
    assert not [text for text in texts if begins_with(CLAUSES + CONDITIONS, text)]


@pytest.mark.parametrize("file", EVERY, ids=named)
def test_a_file_says_in_its_first_line_what_it_is(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert not text or text.startswith(('"""', 'r"""'))
