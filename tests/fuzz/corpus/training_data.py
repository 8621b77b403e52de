"""Data to train on: shards and lists that name other files, claim sizes without end, or hold what would run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from made_data import tar

from ..kind import Case, Seeds
from ..mutators.pickle_opcodes import running
from ..mutators.tar_archive import SIZE, TYPE, extended, parts, with_field, written
from ..sandbox import Sandbox

SHARD, LINES = "shard.tar", "captions.jsonl"  # the input is the one of these that is there, or else the folder


def archive(*files: tuple[str, bytes]) -> bytes:
    """A shard of files."""
    return tar(files)


def _shard(name: str, make: Callable[[Seeds], bytes], refused: bool | None = True) -> Case:
    return Case(name, lambda sandbox, seeds: (sandbox.input / SHARD).write_bytes(make(seeds)), refused)


def _line(name: str, row: Any, refused: bool | None = True) -> Case:
    """A list of one line; ``{0}`` in a text is the folder of the traps."""

    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        line = row if isinstance(row, str) else json.dumps(row)
        (sandbox.input / LINES).write_text(line.replace("{0}", str(sandbox.outside)) + "\n")
        (sandbox.input / "0.png").write_bytes(seeds["0.png"])
        os.symlink(sandbox.outside / "secret.png", sandbox.input / "link.png")
        os.symlink(sandbox.outside, sandbox.input / "linked")

    return Case(name, write, refused)


def _linked(seeds: Seeds) -> bytes:
    (header, _), *others = parts(archive(("0.png", b""), ("0.txt", b"a text")))
    return written([(with_field(header, TYPE, b"2"), b""), *others])


def _sized(size: bytes) -> Callable[[Seeds], bytes]:
    def make(seeds: Seeds) -> bytes:
        (header, content), *others = parts(archive(("0.png", seeds["0.png"]), ("0.txt", b"a text")))
        return written([(with_field(header, SIZE, size), content), *others])

    return make


def _long_extended_header(sandbox: Sandbox, seeds: Seeds) -> None:
    size = 1_000_000_000
    header, _ = extended(b"x", b"")
    with (sandbox.input / SHARD).open("wb") as file:  # a hole on the disk
        file.write(with_field(header, SIZE, b"%011o" % size))
        file.truncate(512 + size // 512 * 512 + 512)
        file.seek(0, 2)
        file.write(archive(("0.png", seeds["0.png"]), ("0.txt", b"a text")))


CASES = (
    _shard("shard with a link to a file outside", _linked),
    _shard("shard whose picture is the largest number of bytes", _sized(b"\x80" + b"\xff" * 11)),
    _shard("shard whose picture has less than no bytes", _sized(b"-0000000777")),
    Case("shard with an extended header of a gigabyte", _long_extended_header),
    _shard("shard that is empty", lambda seeds: b""),
    _shard("shard of zeros alone", lambda seeds: bytes(10_240)),
    _shard("shard with a pickle that would run", lambda seeds: archive(
        ("0.png", seeds["0.png"]), ("0.txt", b"a text"), ("0.pickle", running("touch ran")),
        ("0.pyd", running("touch ran"))), refused=False),
    _shard("shard with a sample of 100,000 files", lambda seeds: archive(
        *((f"0.{number}.cls", b"") for number in range(100_000)), ("0.png", seeds["0.png"]), ("0.txt", b"a"))),
    _shard("shard with a name that a terminal obeys", lambda seeds: archive(("\x1b]52;c;aGFjaw==\x07.png", b"x"))),
    _shard("page that shows a picture ten thousand times", lambda seeds: archive(
        ("0.a.png", seeds["0.png"]), ("0.json", json.dumps(
            {"texts": ["a", *[None] * 9000], "images": [None, *["a.png"] * 9000]}).encode())), refused=None),
    _line("line that names a file outside", {"image": "../outside/secret.png", "text": "a"}),
    _line("line that names a file by its whole path", {"image": "{0}/secret.png", "text": "a"}),
    _line("line that names a link", {"image": "link.png", "text": "a"}),
    _line("line that names a file in a linked folder", {"image": "linked/secret.png", "text": "a"}),
    _line("line of a clip outside", {"video": "{0}/secret.mp4", "text": "a"}),
    _line("page that names a file outside", {"texts": ["a", None], "images": [None, "linked/secret.png"]}),
    _line("line nested a hundred thousand times", "[" * 100_000),
    _line("caption of ten megabytes", {"image": "0.png", "text": "a" * 10_000_000}),
    _line("caption with half a character", '{"image": "0.png", "text": "\\ud800"}'),
    _line("caption with the picture's own token", {"image": "0.png", "text": "a <image> b"}),
    _line("line whose keys a terminal obeys", '{"image": "0.png", "\\u001b]52;c;aGFjaw==\\u0007": 1}'),
)
