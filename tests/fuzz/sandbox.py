"""The folders an input lives in, and the traps around it: files that nobody may open, a port that nobody may call.

    input/     the stranger's files, and the only ones that may be read
    work/      the current folder; a command's outputs go to work/out
    home/ tmp/ what HOME, XDG_* and TMPDIR name
    outside/   the traps: a text, a picture, a clip, a module that would run
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

SECRET = b"secret of another file\n"
IN_ACCESS, IN_MODIFY, IN_OPEN, IN_CREATE, IN_DELETE, IN_MOVE = 0x1, 0x2, 0x20, 0x100, 0x200, 0xC0
OUTPUT = "out"


@dataclass(frozen=True)
class Sandbox:
    """The folders of one child at a time, and its listening socket."""

    top: Path
    listener: socket.socket

    @property
    def input(self) -> Path:
        return self.top / "input"

    @property
    def work(self) -> Path:
        return self.top / "work"

    @property
    def outside(self) -> Path:
        return self.top / "outside"

    @property
    def url(self) -> str:
        """Address of the listening socket, which nobody may call."""
        host, port = self.listener.getsockname()
        return f"http://{host}:{port}/clip.mp4"

    @classmethod
    def make(cls, top: Path) -> Sandbox:
        """A new sandbox in an empty folder."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        sandbox = cls(top, listener)
        sandbox.outside.mkdir(parents=True)
        (sandbox.outside / "secret.txt").write_bytes(SECRET)
        PIL.Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(sandbox.outside / "secret.png")
        shutil.copyfile(sandbox.outside / "secret.png", sandbox.outside / "secret.mp4")
        return sandbox

    def clear(self) -> None:
        """Empty every folder but the traps', whatever permissions the input left."""
        for name in ("input", "work", "home", "tmp"):
            folder = self.top / name
            folder.mkdir(exist_ok=True)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        _unlock(entry.path)
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)

    def environment(self) -> dict[str, str]:
        """Variables that keep a process inside."""
        home = str(self.top / "home")
        return {
            "HOME": home, "XDG_CACHE_HOME": home, "XDG_CONFIG_HOME": home, "XDG_DATA_HOME": home,
            "XDG_STATE_HOME": home, "TMPDIR": str(self.top / "tmp"), "MPLCONFIGDIR": home, "COLUMNS": "120",
        }

    def contents(self) -> dict[str, tuple]:
        """Every entry by its path from the top: its kind, size and age. Caches in `home` belong there."""
        found = {}
        for part in ("input", "work", "tmp", "outside"):
            for folder, folders, files in os.walk(self.top / part):
                for name in (*folders, *files):
                    path = os.path.join(folder, name)
                    status = os.lstat(path)
                    about = (stat.S_IFMT(status.st_mode), status.st_ino)
                    if stat.S_ISREG(status.st_mode):
                        about += (status.st_size, status.st_mtime_ns)
                    found[os.path.relpath(path, self.top)] = about
        return found

    def called(self) -> bool:
        """Whether somebody connected since the last call."""
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return False
        connection.close()
        return True


def _unlock(top: str) -> None:
    os.chmod(top, 0o700)
    for path, folders, _ in os.walk(top):
        for name in folders:
            if not os.path.islink(os.path.join(path, name)):
                os.chmod(os.path.join(path, name), 0o700)


class Watch:
    """Record of the files of a folder that are opened, read, written, made or deleted, by the system's inotify."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1 failed")
        self._follow(folder, IN_ACCESS | IN_MODIFY | IN_OPEN | IN_CREATE | IN_DELETE | IN_MOVE)

    def _follow(self, folder: Path, events: int) -> None:
        if self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), events) < 0:
            raise OSError(ctypes.get_errno(), f"cannot watch {folder}")

    def touched(self) -> set[str]:
        """The names of files that something happened to since the last call; the folder itself does not count."""
        names = set()
        while True:
            try:
                events = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                return names
            place = 0
            while place < len(events):
                _, _, _, length = struct.unpack_from("iIII", events, place)
                name = events[place + 16 : place + 16 + length].rstrip(b"\0")
                if name:
                    names.add(os.fsdecode(name))
                place += 16 + length
