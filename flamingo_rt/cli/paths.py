"""Option types for files and folders, and the start of a command whose current folder was removed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from flamingo_rt.printable import printable

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes of one name and of a whole path, of Linux and most file systems
ROOM_BESIDE = 40  # bytes: output first stands beside its place, under a longer name
SHOWN = 60  # characters of a path in a message

_current_folder_gone = False


class PathType(click.ParamType):
    """A path that a file system can have, as a `Path`; names that are not UTF-8 are allowed, as the system gives them.

    Refused, with the option's name: an empty path, one with a null character, a name or a path that is too long,
    another option where the path should be, and a relative path where the current folder is gone. ``-`` is a file of
    that name: nothing is read from standard input.

    ``written`` paths leave room for the longer name that output has until it is complete. With ``as_written`` the value
    is the text itself: a `Path` would change a web address (``https://`` becomes ``https:/``).
    """

    name = "path"

    def __init__(self, written: bool = False, as_written: bool = False) -> None:
        self._longest_name = LONGEST_NAME - (ROOM_BESIDE if written else 0)
        self._as_written = as_written

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Path | str:
        text = os.fspath(value)
        problem = _problem(text, self._longest_name)
        if problem is None and context is not None and text in _option_names(context):
            problem = f"a path is missing before {text}; a file of that name is ./{text}"
        if problem is not None:
            self.fail(problem, parameter, context)
        return text if self._as_written else Path(text)


READ, WRITTEN, PATH_TEXT = PathType(), PathType(written=True), PathType(as_written=True)


def leave_gone_folder() -> None:
    """Change to the root folder when the current one was removed: PyTorch's libraries end the process without one.

    Relative paths are refused from then on; absolute ones work.
    """
    global _current_folder_gone
    try:
        os.getcwd()
    except OSError:
        _current_folder_gone = True
        os.chdir(os.path.abspath(os.sep))


def _problem(text: str, longest_name: int) -> str | None:
    """The reason why no file can have this path, or None."""
    if not text:
        return "the path is empty"
    if "\0" in text:
        return f"{_shown(text)} holds a null character, which no path can"
    try:
        length, names = len(os.fsencode(text)), [len(os.fsencode(name)) for name in text.split(os.sep)]
    except UnicodeEncodeError:
        return f"{_shown(text)} holds characters that no path can"
    if max(names) > longest_name:
        return f"{_shown(text)} has a name of {max(names)} bytes: give one of at most {longest_name}"
    if length > LONGEST_PATH:
        return f"{_shown(text)} has {length} bytes: give a path of at most {LONGEST_PATH}"
    if _current_folder_gone and not os.path.isabs(text):
        return (
            f"{_shown(text)} is a relative path, and the current folder was removed: go to one that is there, or give "
            "the whole path"
        )
    return None


def _shown(text: str) -> str:
    return f"'{printable(text if len(text) <= SHOWN else text[:SHOWN] + '…')}'"


def _option_names(context: click.Context) -> set[str]:
    """All long options of the command that is being parsed."""
    return {
        name for parameter in context.command.params for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    }
