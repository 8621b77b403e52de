"""Writing so that a kill or a full disk never costs what was there before: write beside, then rename."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flamingo_rt.errors import DataError, UsageError


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path``; on success it replaces ``path`` in one step, on failure it is removed."""
    beside = path.with_name(f".{path.name}.partial")
    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            _flush(beside)
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output that exists, before any work is done for it. Raises `UsageError`."""
    if path.exists() and not overwrite:
        raise UsageError(f"{path} already exists: choose another --out, or replace it with --overwrite")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, not a folder: choose another --out")


@contextmanager
def new_directory(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that becomes ``path`` on success and disappears on failure.

    Raises `UsageError` when ``path`` exists and may not be replaced, `DataError` when the disk is full.
    """
    check_output(path, overwrite)
    beside, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("partial", "old"))
    with _explained(path):
        try:
            shutil.rmtree(beside, ignore_errors=True)  # what a killed run left
            beside.mkdir(parents=True)
            yield beside
            for file in beside.rglob("*"):
                if file.is_file():
                    _flush(file)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.replace(path, old)
            os.replace(beside, path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn operating-system errors into a `DataError` with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DataError(f"no space left while writing {path}: nothing was changed; free some and run again") from error
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
