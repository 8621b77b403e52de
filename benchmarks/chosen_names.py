"""Names that an option of a benchmark lists."""

from __future__ import annotations

import sys
from collections.abc import Collection


def chosen_names(option: str, text: str, known: Collection[str]) -> list[str]:
    """The names in ``text``, divided by commas. Ends the program when one is not among the ``known``."""
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"{option} {', '.join(unknown)} is unknown; known: {', '.join(known)}")
    return names
