"""Option types for numbers, all with bounds, so that no value overflows later."""

from __future__ import annotations

import math
from typing import Any

import click

MOST = 2**31 - 1  # of a count that has no smaller limit: what 32 bits hold


class Number(click.FloatRange):
    """A finite float within bounds. `click.FloatRange` alone accepts nan."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        number = float(super().convert(value, parameter, context))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", parameter, context)
        return number


class Counts(click.ParamType):
    """Integers separated by commas, as a tuple."""

    name = "counts"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(entry) for entry in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of integers such as 1,2,4", parameter, context)


def count(least: int = 1) -> click.IntRange:
    """An integer from ``least`` up to what 32 bits hold."""
    return click.IntRange(least, MOST)
