"""Folders that appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flamingo_rt.errors import DataError

MARK = ".recipe"  # a file in folders that this recipe wrote, which it alone replaces


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder`` that replaces it on success, and is removed on failure.

    Raises `DataError` where ``folder`` exists and was not written by this recipe, or cannot be written.
    """
    if folder.exists() and not (folder / MARK).is_file():
        raise DataError(f"{folder} was not written by this recipe and is not replaced: move it away, then run again")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as private:
            beside = Path(private) / folder.name
            beside.mkdir()
            yield beside
            (beside / MARK).touch()
            if folder.exists():
                shutil.rmtree(folder)
            beside.rename(folder)
    except OSError as error:
        raise DataError(f"writing {folder} failed: {error.strerror or error}; nothing half-written stays") from error
