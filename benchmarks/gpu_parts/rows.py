"""What a part tells: JSON objects, one a line, as soon as they are known, so that a part that ends early leaves them.

    {"measure": "each token", "value": 4.1, "unit": "ms", …}     a row of the table
    {"skipped": why}   {"error": what}                           the end of a part that could not do its work

Of a row, ``key`` and ``shots`` say what it is compared by, ``target`` what is aimed at (``>= 0.7``), ``reference`` what
it stands beside, ``note`` what a reader should know; ``samples`` are kept as they were measured. The standard library
alone: the peer's environment has no more.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Row = dict[str, Any]


def tell(measure: str, value: float | str, unit: str = "", **more: Any) -> None:
    """A row, now."""
    said = {name: entry for name, entry in more.items() if entry is not None}
    print(json.dumps({"measure": measure, "value": value, "unit": unit, **said}), flush=True)


@contextmanager
def reporting() -> Iterator[None]:
    """Ends the process with a line that says why, when what is within fails."""
    try:
        yield
    except Exception as error:
        # A library that is missing is no failure. Named, not imported: the peer's environment has no flamingo_rt.
        missing = type(error).__name__ in ("DependencyError", "ModuleNotFoundError")
        expected = missing or any(base.__name__ == "FlamingoError" for base in type(error).__mro__)
        if not expected:
            traceback.print_exc()
        text = str(error) if expected else f"{type(error).__name__}: {error}"
        print(json.dumps({"skipped" if missing else "error": text}), flush=True)
        sys.exit(0 if missing else 1)


def parsed(line: str) -> Row | None:
    """The row of a line of output, or None for other output."""
    if not line.startswith("{"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and row.keys() & {"measure", "skipped", "error"} else None
