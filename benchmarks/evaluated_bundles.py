"""Bundles that a benchmark is asked about by name, and what ``flamingo-rt evaluate`` says of one."""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks.processes import toolkit


def named_bundle(text: str) -> tuple[str, str]:
    """Name and folder of an option ``NAME=BUNDLE``. Raises `argparse.ArgumentTypeError`."""
    name, equals, folder = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"write NAME=BUNDLE, for example mine={text}")
    return name, folder


def bundles_asked(given: list[tuple[str, str]]) -> dict[str, str | None]:
    """Folders by name; without any, the model in the package, whose folder is None."""
    return dict(given) or {"packaged": None}


def evaluated(bundle: str | None, *arguments: str) -> dict[str, Any]:
    """The record that ``evaluate … --json`` prints."""
    model = [] if bundle is None else ["--model", bundle]
    output = toolkit("evaluate", *arguments, *model, "--json")
    record: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return record
