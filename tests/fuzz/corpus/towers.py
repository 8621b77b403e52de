"""Folders of stages 1 and 2 whose configuration asks for more than there is, or names tokens that there are not."""

from __future__ import annotations

import json
from pathlib import Path

from ..kind import Case, Seeds
from ..sandbox import Sandbox

VISION, LANGUAGE = "vision", "language"


def write_towers(sandbox: Sandbox, files: Seeds) -> tuple[Path, Path]:
    """Write files, named ``vision/config.json`` and the like, into the sandbox; gives both folders."""
    for name, content in files.items():
        file = sandbox.input / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    return sandbox.input / VISION, sandbox.input / LANGUAGE


def _config(name: str, tower: str, part: str, **changes: object) -> Case:
    """A case whose configuration of a part is another."""
    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        file = f"{tower}/config.json"
        config = json.loads(seeds[file])
        config[part] |= changes
        write_towers(sandbox, {**seeds, file: json.dumps(config).encode()})

    return Case(name, write)


def _without(name: str, file: str) -> Case:
    """A case that lacks a file."""
    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        write_towers(sandbox, {other: content for other, content in seeds.items() if other != file})

    return Case(name, write)


_HUGE = 10**18
CASES = (
    _config("a decoder of width 10^18", LANGUAGE, "language", width=_HUGE),
    _config("a vocabulary of 10^18", LANGUAGE, "language", vocab_size=_HUGE),
    _config("a million layers", LANGUAGE, "language", layers=10**6),
    _config("a vocabulary smaller than the tokenizer's", LANGUAGE, "language", vocab_size=10),
    _config("a token that the tokenizer does not have", LANGUAGE, "tokens", bos="<nowhere>"),
    _config("a token that a terminal obeys", LANGUAGE, "tokens", eos="\x1b]52;c;aGFjaw==\x07"),
    _config("an encoder of 10^9 pixels a side", VISION, "vision", image_size=10**9),
    _config("a thousand stages", VISION, "vision", widths=[16] * 1000, depths=[1] * 1000, strides=[1] * 1000),
    _config("standard deviations of 0", VISION, "preprocessing", std=[0, 0, 0]),
    _without("no weights", "vision/model.safetensors"), _without("no tokenizer", "language/tokenizer.json"),
)
