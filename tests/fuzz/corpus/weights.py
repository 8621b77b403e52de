"""Weight files: pickles that run code or reserve gigabytes, records that unpack to them, names outside."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable

from ..kind import Case, Seeds
from ..mutators import pickle_opcodes, zip_archive
from ..sandbox import Sandbox

FOLDER = "weights"
RUN = f"touch ../{FOLDER}-ran; touch ../../outside/ran"


def write_weights(sandbox: Sandbox, files: dict[str, bytes]) -> None:
    """A folder of weight files."""
    folder = sandbox.input / FOLDER
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _case(name: str, make: Callable[[Seeds], dict[str, bytes]], refused: bool | None = True) -> Case:
    return Case(name, lambda sandbox, seeds: write_weights(sandbox, make(seeds)), refused)


def _pickle_of(seed: str, content: bytes) -> Callable[[Seeds], dict[str, bytes]]:
    """An archive whose data.pkl is another."""

    def make(seeds: Seeds) -> dict[str, bytes]:
        found = [(name, content if name.endswith("/data.pkl") else data) for name,
                 data in zip_archive.members(seeds[seed])]
        return {seed: zip_archive.written(found)}

    return make


def _bombed(seed: str, record: str) -> Callable[[Seeds], dict[str, bytes]]:
    """An archive in which a record is deflated from a gigabyte."""

    def make(seeds: Seeds) -> dict[str, bytes]:
        found = zip_archive.members(seeds[seed])
        name = next(name for name, _ in found if name.endswith(f"/{record}"))
        others = zip_archive.written([member for member in found if member[0] != name])
        return {seed: zip_archive.joined(others, zip_archive.bomb(name, b"", 1 << 30))}

    return make


def _index(shard: object) -> Callable[[Seeds], dict[str, bytes]]:
    return lambda seeds: {
        "model.safetensors.index.json": json.dumps({"weight_map": {"a": shard}}).encode(),
        "model.safetensors.part": seeds["model.safetensors"],
    }


def _deflated(seeds: Seeds) -> dict[str, bytes]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in zip_archive.members(seeds["plain.pt"]):
            archive.writestr(name, content)
    return {"plain.pt": file.getvalue()}


CASES = (
    _case("TorchScript whose memo is of 400 million", _pickle_of("script.pt", pickle_opcodes.memo_bomb())),
    _case("archive whose memo is of 400 million", _pickle_of("plain.pt", pickle_opcodes.memo_bomb())),
    _case("older pickle whose memo is of 400 million", lambda seeds: {"old.bin": pickle_opcodes.memo_bomb()}),
    _case("TorchScript that runs code", _pickle_of("script.pt", pickle_opcodes.running(RUN))),
    _case("archive that runs code", _pickle_of("plain.pt", pickle_opcodes.running(RUN))),
    _case("older pickle that runs code", lambda seeds: {"old.bin": pickle_opcodes.running(RUN)}),
    _case("TorchScript with data.pkl deflated from a gigabyte", _bombed("script.pt", "data.pkl")),
    _case("TorchScript with byteorder deflated from a gigabyte", _bombed("script.pt", "byteorder"), None),
    _case("archive with data.pkl deflated from a gigabyte", _bombed("plain.pt", "data.pkl")),
    _case("archive with a storage deflated from a gigabyte", _bombed("plain.pt", "data/0"), None),
    _case("archive that is deflated as a whole", _deflated, None),
    _case("index that names a file above", _index("../../outside/secret.txt")),
    _case("index that names an absolute path", _index("/etc/passwd")),
    _case("index that names no text", _index(7)), _case("index that names a NUL", _index("a\x00b")),
    _case("index that names what a terminal obeys", _index("\x1b]52;c;aGFjaw==\x07")),
)
