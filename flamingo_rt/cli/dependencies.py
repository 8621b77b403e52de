"""Missing optional libraries, reported with the extra that installs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flamingo_rt.errors import DependencyError


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a missing third-party library into a `DependencyError` that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "flamingo_rt":
            raise
        raise DependencyError(
            f"this command needs {error.name}, which is not installed: pip install 'flamingo-rt[{extra}]'"
        ) from error
