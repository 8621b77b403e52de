"""Option types for numbers, all with bounds, so that no value overflows later."""

from __future__ import annotations

import math
import re
from typing import Any

import click

MOST = 2**31 - 1  # of a count that has no smaller limit: what 32 bits hold
MOST_SIZE = 10**15  # bytes


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


class Triple(click.ParamType):
    """Three finite numbers separated by commas, one for each colour."""

    name = "three numbers"

    def __init__(self, above_zero: bool = False) -> None:
        self._above_zero = above_zero

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[float, float, float]:
        try:
            first, second, third = (float(entry) for entry in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not three numbers such as 0.5,0.5,0.5", parameter, context)
        for number in (first, second, third):
            if not abs(number) < 1e30 or (self._above_zero and number <= 0):
                bound = " above 0" if self._above_zero else ""
                self.fail(f"{value!r} holds {number}: three finite numbers{bound} are expected", parameter, context)
        return first, second, third


class Features(click.ParamType):
    """Number and width of an encoder's features, ``81x1280``."""

    name = "features"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, int]:
        count, _, width = value.partition("x")
        if not all(text.isdecimal() and len(text) <= 10 and 0 < int(text) <= MOST for text in (count, width)):
            self.fail(f"{value!r} is not a number of features and their width, such as 81x1280", parameter, context)
        return int(count), int(width)


class Size(click.ParamType):
    """A number of bytes with its unit, ``8GB`` or ``7.4GiB``, as an integer. GB are powers of 1000, GiB of 1024."""

    name = "size"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*(?:([kmgt])(i?))?b\s*", value, re.IGNORECASE | re.ASCII)
        if found is None:
            self.fail(f"{value!r} is not a size with its unit, such as 8GB or 7.4GiB", parameter, context)
        number, unit, binary = found.groups()
        scale = (1024 if binary else 1000) ** ("kmgt".index(unit.lower()) + 1 if unit else 0)
        size = round(float(number) * scale)
        if not 0 < size <= MOST_SIZE:
            self.fail(f"{value!r} is not within 1 byte and {MOST_SIZE // 10**12:,} TB", parameter, context)
        return size


def count(least: int = 1, most: int = MOST) -> click.IntRange:
    """An integer from ``least`` to ``most``, by default what 32 bits hold."""
    return click.IntRange(least, most)
