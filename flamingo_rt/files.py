"""Output for users: written beside its place, then renamed, so that a kill or a full disk never costs the old version.

Everything that this project writes for a user goes through here.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.printable import printable
from flamingo_rt.unfinished import is_leftover_name, put_in_place, unfinished_folder


def path_beside(path: Path, ending: str) -> Path:
    """The path in the same folder whose name is that of ``path`` with an ending, as ``run.log.jsonl`` beside ``run``;
    also of ``.`` and ``..``, which have no name of their own."""
    named = path if path.name not in ("", "..") else _resolved(path)
    return named.parent / (named.name + ending)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a private folder beside ``path``, for a file to be made at; on success it
    replaces ``path`` in one step, on failure it is removed. Raises `DataError` when ``path`` cannot be written."""
    _check_place(path, "path")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(path.parent, _is_output) as folder:
            beside = folder / path.name
            yield beside
            _flush(beside)
            os.replace(beside, path)


@contextmanager
def adding_files(folder: Path) -> Iterator[Path]:
    """Yield a private folder in ``folder``, which is made where it is missing; on success all files that were made
    there are moved into ``folder`` and replace those of the same name, on failure they are removed.

    Raises `DataError` when ``folder`` cannot be written.
    """
    _check_place(folder / "file", "path")
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(folder, _is_output) as beside:
            yield beside
            files = sorted(beside.iterdir())
            for file in files:
                _flush(file)
            for file in files:
                os.replace(file, folder / file.name)


def check_file(path: Path, overwrite: bool, option: str = "--out") -> None:
    """Refuse a file to write, the value of ``option``, before any work is done for it.

    Raises `UsageError` when it exists, `DataError` where no file can be written.
    """
    if path.is_dir():
        raise UsageError(f"{path} already exists and is a folder: choose another {option}")
    if path.is_symlink() and not path.exists():
        raise UsageError(f"{path} is a link that leads nowhere: choose another {option}")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is a pipe or a device, and is not replaced: choose another {option}")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} already exists: choose another {option}, or replace it with --overwrite")
    _check_place(path, option)


def check_output(path: Path, overwrite: bool, sources: Iterable[Path] = ()) -> None:
    """Refuse an output before any work is done for it. ``sources`` is what the work reads.

    Raises `UsageError` when it exists, or is or holds a source; `DataError` where no folder can be written.
    """
    for source in map(_resolved, sources):
        if _resolved(path) in (source, *source.parents):
            raise UsageError(f"{path} is or holds {source}, which the model is read from: choose another --out")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} already exists: choose another --out, or replace it with --overwrite")
    if path.is_symlink():
        raise UsageError(f"{path} is a link: give the folder it points to")
    if path.is_dir() and overwrite and not _is_output(path):
        raise UsageError(f"{path} holds more than a bundle or a checkpoint{_foreign(path)}, and is not replaced: "
                         "choose another --out, or move it away")
    working = _working_folder()
    if working is not None and _resolved(path) in (working, *working.parents):
        raise UsageError(f"{path} is the folder you are in, or one above it: choose another --out")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, not a folder: choose another --out")
    _check_place(path, "--out")


def _resolved(path: Path) -> Path:
    """The path without links, or made absolute where links form a circle (Python before 3.13 raises for those)."""
    try:
        return path.resolve()
    except RuntimeError:
        return path.absolute()


def _check_place(path: Path, option: str) -> None:
    """Raise `DataError`, which asks for another ``option``, unless something can be made at ``path``."""
    above = _existing_folder(path)
    if not above.is_dir():
        raise DataError(f"cannot write {path}: {above} is a file, not a folder; choose another {option}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise DataError(f"cannot write {path}: {above} may not be written to; choose another {option}")


def _existing_folder(path: Path) -> Path:
    """The nearest existing folder above ``path``. Raises `DataError` when the working folder was removed."""
    try:
        return next(folder for folder in path.absolute().parents if folder.exists())
    except FileNotFoundError as error:
        raise _without_working_folder(path) from error


def _working_folder() -> Path | None:
    """The working folder, or None when it was removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def _without_working_folder(path: Path) -> DataError:
    return DataError(f"cannot write {path}: the working folder was removed; change to another, or give a whole path")


def check_space(path: Path, needed: int) -> None:
    """Raise `DataError` when the disk of ``path`` has no room for ``needed`` bytes, before they are computed."""
    free = shutil.disk_usage(_existing_folder(path)).free
    if free < needed:
        raise DataError(
            f"cannot write {path}: {needed / 1e6:.1f} MB are needed, its disk has {free / 1e6:.1f} MB left; free some, "
            "or choose another --out"
        )


# Files of a bundle, a checkpoint or a folder of engines, and the keys that tell this project's JSON files from others.
_WRITTEN = re.compile(
    r"(manifest|config|tokenizer|engine)\.json|\w+\.onnx(\.data)?|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
    r"|\w+\.engine|timing\.cache|reference\.npz|run\.json|shard-\d+-model-\d+-of-\d+\.safetensors"
)
_MARKS = (
    ("manifest.json", {"format_version", "graphs"}), ("config.json", {"resampler", "cross_attention"}),
    ("config.json", {"kind", "vision", "preprocessing"}), ("config.json", {"kind", "language", "tokens"}),
    ("config.json", {"kind", "model", "vision", "language", "vocabulary"}),
    ("engine.json", {"format_version", "engines"}), ("run.json", {"step", "identity"}),
)


_BROWSED = (".DS_Store", "Thumbs.db", "desktop.ini")  # left in a folder by programs that show it


def _is_output(path: Path) -> bool:
    """Whether a folder is empty or this project's: photographs and other libraries' models are not replaced."""
    entries = [
        entry for entry in path.iterdir()
        if not is_leftover_name(entry.name) and entry.name not in _BROWSED
        and (entry.name != "engines" or not _holds_engines(entry))
    ]
    ours = all(map(_is_written_name, entries))
    return not entries or (ours and any(_is_marked(path / name, keys) for name, keys in _MARKS))


def _is_written_name(entry: Path) -> bool:
    return entry.is_file() and _WRITTEN.fullmatch(entry.name) is not None


def _foreign(path: Path) -> str:
    """The name of an entry of a folder that keeps it from being replaced, in brackets; nothing where it is none
    alone."""
    names = sorted(entry.name for entry in path.iterdir() if entry.name not in _BROWSED and not _is_written_name(entry))
    return f" ({printable(names[0])})" if names else ""


def _holds_engines(path: Path) -> bool:
    """Whether a folder holds folders of engines and leftovers of killed builds, and nothing else."""
    return path.is_dir() and all(
        entry.is_dir() and (_is_output(entry) or is_leftover_name(entry.name)) for entry in path.iterdir()
    )


def _is_marked(file: Path, keys: set[str]) -> bool:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and keys <= set(data)


@contextmanager
def new_directory(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that becomes ``path`` on success and disappears on failure.

    Raises `UsageError` when ``path`` exists and may not be replaced, `DataError` when the disk is full.
    """
    check_output(path, overwrite)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(path.parent, _is_output) as folder:
            beside = folder / path.name
            beside.mkdir()
            yield beside
            for file in beside.rglob("*"):
                if file.is_file():
                    _flush(file)
            check_output(path, overwrite)  # again: another process may have written there meanwhile
            put_in_place(beside, path)


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
            raise DataError(f"no space left while writing {path}: nothing was changed; free some, run again") from error
        if error.errno is None:
            raise DataError(
                f"writing {path} failed: {error}; is the disk full? Nothing was changed; free some, run again"
            ) from error
        if error.errno == errno.ENOTEMPTY:  # of the last rename
            raise DataError(f"{path} was written by another process meanwhile, and stays as it is now") from error
        if error.errno == errno.ENOENT and _working_folder() is None:
            raise _without_working_folder(path) from error
        # Its own text would name the private folder, which is gone.
        raise DataError(f"writing {path} failed: {error.strerror}; nothing was changed") from error
