"""Tasks of an evaluation: keys and items that do not fit."""

from __future__ import annotations

from ..kind import Case, Seeds
from ..sandbox import Sandbox

FILE = "task.toml"


def _case(name: str, toml: bytes = b"", line: bytes = b"", kind: str = "question") -> Case:
    """The task of a ``kind`` with more TOML, or one more line among its items."""
    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        for file, data in seeds.items():
            (sandbox.input / file).write_bytes(data)
        (sandbox.input / FILE).write_bytes(seeds[f"{kind}.toml"] + toml)
        items = sandbox.input / f"{kind}.jsonl"
        items.write_bytes(items.read_bytes() + line)

    return Case(name, write)


CASES = (
    _case("key twice", b"beams = 1\nbeams = 1\n"), _case("tables nested deep", b"a = " + b"[" * 10_000),
    _case("penalty of 400 digits", b"length_penalty = 1" + b"0" * 400), _case("penalty that is no number",
                                                                              b"length_penalty = nan"),
    _case("infinite penalty", b"length_penalty = inf"), _case("key that a terminal obeys", b'"\\u001b[2J" = 1'),
    _case("date for a text", b"after = 2020-01-01"), _case("line nested deep", line=b"[" * 100_000),
    _case("number of 10,000 digits", line=b'{"image": ' + b"9" * 10_000 + b"}"),
    _case("half a character", line=b'{"image": "0.png", "question": "\\ud800", "answer": "a"}'),
    _case("picture outside", line=b'{"image": "../secret.png", "question": "a", "answer": "a"}'),
    _case("question on one class alone", line=b'{"image": "0.png", "question": "a", "class": "red"}', kind="classes"),
)
