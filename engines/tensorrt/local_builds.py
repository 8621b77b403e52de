"""Record of the engines that this user has built. Engines are code, and a bundle can claim anything about the engines
in it: so each build is remembered in the user's own folder, by the SHA-256 of its record, which holds the engines'.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.files import replacing_file


@dataclass(frozen=True)
class EngineTrust:
    """Permissions for engines that this user did not build: ``engines`` to be used at all, ``host_code`` to bring a
    runtime of their own, which runs on the host like any program (version-compatible ones do).

    Raises `UsageError` for the second without the first.
    """

    engines: bool = False
    host_code: bool = False

    def __post_init__(self) -> None:
        if self.host_code and not self.engines:
            raise UsageError(
                "--allow-engine-host-code (allow_host_code) goes with --trust-engines (trust_engines): it allows more"
            )


OWN_ALONE = EngineTrust()


def remember_build(record: bytes, folder: Path) -> None:
    """Remember the engines with this record as the user's own. ``folder``, where they are, is noted for readers alone.

    Raises `DataError` when the note cannot be written.
    """
    file = _file_of(record)
    if file is None:
        raise DataError("there is no folder of the user's to remember it in: set XDG_STATE_HOME to one")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {file}: {error.strerror}") from error
    built = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with replacing_file(file) as beside:
        beside.touch(mode=0o600)
        beside.write_text(json.dumps({"folder": str(folder), "built": built}) + "\n", encoding="utf-8")


def is_local_build(record: bytes) -> bool:
    """Whether the engines with this record are remembered, in a file that nobody else could have written."""
    file = _file_of(record)
    try:
        found = None if file is None else file.lstat()
    except OSError:
        return False
    if found is None or not stat.S_ISREG(found.st_mode):
        return False
    return not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)


def state_folder() -> Path | None:
    """The folder for what this program remembers of this user; None where no place for it is known."""
    for name in ("XDG_STATE_HOME", *(["LOCALAPPDATA"] if sys.platform == "win32" else [])):
        named = Path(os.environ.get(name, ""))
        if named.is_absolute():  # a relative one would be found in whatever folder this runs in
            return named / "flamingo-rt"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if not home.is_absolute():
        return None
    places = {"win32": ("AppData", "Local"), "darwin": ("Library", "Application Support")}
    return home.joinpath(*places.get(sys.platform, (".local", "state")), "flamingo-rt")


def _file_of(record: bytes) -> Path | None:
    folder = state_folder()
    return None if folder is None else folder / "built-engines" / f"{hashlib.sha256(record).hexdigest()}.json"
