"""States of training that are another run's, damaged or hostile."""

from __future__ import annotations

import json

from ..kind import Case, Seeds
from ..sandbox import Sandbox

FILE = "out.training.safetensors"


def _case(name: str, **changes: str) -> Case:
    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        data = seeds[FILE]
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header["__metadata__"] |= changes
        text = json.dumps(header).encode()
        (sandbox.input / FILE).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return Case(name, write)


CASES = (
    _case("step of 10,000 digits", step="9" * 10_000), _case("step that is no number", step="nan"),
    _case("options nested a hundred thousand times", options="[" * 100_000), _case("no tokenizer", tokenizer="{}"),
    _case("options that a terminal obeys", options='{"steps": "\\u001b]52;c;aGFjaw==\\u0007"}'),
    _case("configuration of nothing", config="{}"),
)
