"""A language model's GGUF file, as ``train flamingo --language`` reads it."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

from flamingo_rt.training.parts import open_language_part

from ..kind import Kind, Seeds
from ..mutators import raw
from ..sandbox import Sandbox

FIXTURES = Path(__file__).parents[2] / "fixtures" / "gguf"
FILE = "model.gguf"
DATA = 90_000  # bytes at the end that are values; what stands before says how to read them
NUMBERS = (0, 1, 2, 3, 7, 8, 9, 255, 2**16, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1)


def _seeds(folder: Path) -> Seeds:
    return {path.name: path.read_bytes() for path in sorted(FIXTURES.glob("*.gguf"))}


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    content = seeds[rng.choice(sorted(seeds))]
    if rng.random() < 0.5:
        # The keys of the sizes come first, the tensors' names and shapes last; texts of the vocabulary are between.
        changed = bytearray(content)
        end = len(content) - DATA
        for _ in range(rng.choice((1, 1, 2))):
            place = rng.randrange(4, 1500) if rng.random() < 0.6 else rng.randrange(end - 4000, end)
            number = rng.choice(NUMBERS)
            size = rng.choice((1, 4, 8))
            changed[place : place + size] = struct.pack("<Q", number)[:size]
        content = bytes(changed)
    else:
        content = raw.mutate(rng, content[:-DATA]) + content[-DATA:]
    (sandbox.input / FILE).write_bytes(content)


def _run(sandbox: Sandbox) -> None:
    for tensor in open_language_part(sandbox.input / FILE).tensors.values():
        tensor.read()


GGUF = Kind("gguf", _seeds, _write, _run, first=100)
