"""Commands that need an extra say so instead of failing on an import."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from flamingo_rt.errors import DependencyError, UsageError


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a missing third-party library into a `DependencyError` that names the extra to install.

    Raises `UsageError` in a working folder that is gone: PyTorch's libraries end the process there.
    """
    require_working_folder()
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "flamingo_rt":
            raise
        raise DependencyError(
            f"this command needs {error.name}, which is not installed: pip install 'flamingo-rt[{extra}]'"
        ) from error


def require_working_folder() -> None:
    """Raise `UsageError` when the working folder is gone."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError("the current directory is gone: change to one that exists (cd)") from error
