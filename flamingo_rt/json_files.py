"""Untrusted JSON files, read within limits of size and nesting; duplicate keys and NaN are refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from flamingo_rt.bounded_files import read_bytes
from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable

# The largest real ones are a few MB (a tokenizer's configuration with a long list of tokens).
MOST_BYTES = 16_000_000
MOST_LEVELS = 100


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Parse a JSON file.

    Raises `DataError` that names it when it is missing, damaged, longer than ``most_bytes``, nested deeper than
    `MOST_LEVELS`, or has a duplicate key, NaN or Infinity.
    """
    content = read_bytes(path, most_bytes)
    try:
        return parse_json(content)
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


def parse_json(content: bytes) -> Any:
    """Parse JSON text in UTF-8, with or without a byte order mark.

    Raises `ValueError` where `read_json` raises `DataError`; the caller limits the size.
    """
    try:
        data = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level, deeper = 0, [data]
    while deeper:
        level += 1
        if level > MOST_LEVELS:
            raise ValueError(f"it is nested deeper than {MOST_LEVELS} levels")
        containers = [node.values() if isinstance(node, dict) else node
                      for node in deeper if isinstance(node, (dict, list))]
        deeper = [child for children in containers for child in children]
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key in counts if counts[key] > 1)
        raise ValueError(f"the key {printable(twice[:60])!r} appears twice in an object")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
