"""Unfinished output, kept in a private folder beside its target: nobody can foresee its name or plant a link in it.

The folder is locked while its run lives, which distinguishes it from leftovers of killed runs.

    .flamingo-rt-<random>.partial/NAME     output that is being written; left over, it is removed
    .flamingo-rt-<random>.replaced/NAME    the old version, for the moment between two renames; left over, it goes back
                                           if this project wrote it (an unpacked archive may bring such a folder)
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX, PARTIAL, REPLACED = ".flamingo-rt-", ".partial", ".replaced"
_NAME = re.compile(r"\.flamingo-rt-[a-z0-9_]{8}\.(partial|replaced)")
_ABANDONED_SECONDS = 86400  # where a file system has no locks, age alone decides


def is_leftover_name(name: str) -> bool:
    """Whether a folder of this name can only be unfinished output, of this run or another."""
    return _NAME.fullmatch(name) is not None


@contextmanager
def unfinished_folder(parent: Path, is_output: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield a new, locked folder in ``parent`` for unfinished output; what is still in it at the end is removed.

    Leftovers of killed runs in ``parent`` are removed first; a folder that one of them had moved aside goes back, if
    ``is_output`` accepts it. Raises `OSError`.
    """
    _clear_leftovers(parent, is_output)
    folder, lock = _locked_folder(parent, PARTIAL)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _release(lock)


def put_in_place(new: Path, target: Path) -> None:
    """Rename the folder ``new`` to ``target``; an old version is removed after that, and comes back when it fails.

    Raises `OSError`.
    """
    if not os.path.lexists(target):
        os.replace(new, target)
        return
    aside, lock = _locked_folder(target.parent, REPLACED)
    try:
        os.replace(target, aside / target.name)
        os.replace(new, target)
    except BaseException:  # Ctrl-C too, which may come between the two
        if os.path.lexists(aside / target.name) and not os.path.lexists(target):
            os.replace(aside / target.name, target)
        raise
    finally:
        _discard(aside)
        _release(lock)


def _locked_folder(parent: Path, suffix: str) -> tuple[Path, int | None]:
    """A new folder, and the descriptor that holds its lock; None where there are no locks."""
    while True:
        folder = Path(tempfile.mkdtemp(suffix, PREFIX, parent))
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):  # taken for a leftover before it was locked
            continue
        if lock is None or folder.is_dir():
            return folder, lock
        _release(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder for as long as the descriptor is open. Raises `BlockingIOError` when another process has it."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # some network file systems lock no folders
        os.close(descriptor)
        return None
    return descriptor


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _clear_leftovers(parent: Path, is_output: Callable[[Path], bool]) -> None:
    """Remove leftovers of this user's killed runs, and put back what they had moved aside."""
    with suppress(OSError), os.scandir(parent) as entries:
        names = [entry.name for entry in entries if is_leftover_name(entry.name)]
    for name in names:
        folder = parent / name
        with suppress(OSError):  # another process may be at it too
            if not _is_own_folder(folder):
                continue
            lock = _lock(folder)
            try:
                abandoned = lock is not None or time.time() - folder.lstat().st_mtime > _ABANDONED_SECONDS
                if abandoned and _put_back(folder, is_output):
                    _discard(folder)
            finally:
                _release(lock)


def _is_own_folder(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and (not hasattr(os, "geteuid") or found.st_uid == os.geteuid())


def _put_back(folder: Path, is_output: Callable[[Path], bool]) -> bool:
    """Undo a replacement that was killed between its two renames. False for a folder that holds anything but this
    project's output, which stays as it is."""
    if not folder.name.endswith(REPLACED):
        return True
    entries = list(folder.iterdir())
    if not all(entry.is_dir() and not entry.is_symlink() and is_output(entry) for entry in entries):
        return False
    for entry in entries:
        if not os.path.lexists(folder.parent / entry.name):
            os.replace(entry, folder.parent / entry.name)
    return True


def _discard(folder: Path) -> None:
    """Remove a folder. A replaced one is renamed to a partial one first, so that half of it is never put back."""
    if folder.name.endswith(REPLACED):
        partial = folder.with_name(folder.name.removesuffix(REPLACED) + PARTIAL)
        os.replace(folder, partial)
        folder = partial
    shutil.rmtree(folder, ignore_errors=True)
