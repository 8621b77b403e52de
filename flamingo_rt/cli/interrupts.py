"""Messages of interrupted commands: what was written, and the command that continues."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

Written = tuple[int, int, int] | None


@contextmanager
def on_interrupt(say: Callable[[], str]) -> Iterator[None]:
    """Give an interrupt in the block the message ``say()``, which `flamingo_rt.cli.main` prints."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(say()) from error


@contextmanager
def saying_what_was_written(out: Path) -> Iterator[None]:
    """Give an interrupt the message whether ``out`` was written, for a command that writes it whole or not at all."""
    before = _written(out)

    def say() -> str:
        now = _written(out)
        if now != before:
            return f"{out} was written before that"
        return f"{out} was not written" if now is None else f"{out} is as it was"

    with on_interrupt(say):
        yield


def command_again(*more: str) -> str:
    """The running command as one would type it into a shell, with the flags ``more`` added where they are missing.

    For commands whose options are flags or take one value, once or several times.
    """
    context = click.get_current_context()
    words = context.command_path.split()
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE and value is not None:
            words += _typed(parameter, value)
    return shlex.join([*words, *(flag for flag in more if flag not in words)])


def _typed(parameter: click.Parameter, value: Any) -> list[str]:
    """The words that give a parameter this value."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return [(parameter.opts if value else parameter.secondary_opts)[-1]]
    return [word for entry in (value if parameter.multiple else [value]) for word in (parameter.opts[-1], str(entry))]


def _written(path: Path) -> Written:
    """Identity of a file or folder, which changes when it is replaced; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
