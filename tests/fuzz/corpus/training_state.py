"""States of training whose run.json is damaged or hostile, or whose tensors are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ..kind import Case, Seeds
from ..sandbox import Sandbox

FOLDER, RUN, SHARD = "out.training", "run.json", "shard-00001-model-00001-of-00001.safetensors"


def write_state(sandbox: Sandbox, files: Seeds) -> Path:
    """Write a state's files into the sandbox; gives its folder."""
    folder = sandbox.input / FOLDER
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _case(name: str, change: Callable[[dict[str, bytes]], object]) -> Case:
    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        files = dict(seeds)
        change(files)
        write_state(sandbox, files)

    return Case(name, write)


def _run(name: str, **changes: object) -> Case:
    def change(files: dict[str, bytes]) -> None:
        files[RUN] = json.dumps(json.loads(files[RUN]) | changes).encode()

    return _case(name, change)


def _header(name: str, old: bytes, new: bytes) -> Case:
    """A case whose tensors' header says something else, in as many bytes."""
    assert len(old) == len(new)
    return _case(name, lambda files: files.update({SHARD: files[SHARD].replace(old, new, 1)}))


CASES = (
    _run("step of 10,000 digits", step=10**4000), _run("step that is no number", step="nan"),
    _run("identity of another run that a terminal obeys", identity={"options": "\x1b]52;c;aGFjaw==\x07"}),
    _case("run.json nested a hundred thousand times", lambda files: files.update({RUN: b"[" * 100_000})),
    _case("no run.json", lambda files: files.pop(RUN)), _case("no tensors", lambda files: files.pop(SHARD)),
    _header("pieces without a place", b"saved_offsets", b"saved_0ffsets"),
    _header("a header that names another type", b'"F32"', b'"F64"'),
)
