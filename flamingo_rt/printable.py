"""Untrusted text made safe for a terminal: nothing in it moves the cursor, writes the clipboard or hides other text."""

from __future__ import annotations

import unicodedata

# Control and format characters, which reorder or hide text (Cc, Cf); surrogates, private and unassigned code points
# (Cs, Co, Cn); and line and paragraph separators, which some terminals obey.
_SHOWN_AS_CODES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Format characters that words and emoji are written with.
_PART_OF_WORDS = frozenset("\u200c\u200d")


def printable(text: str, lines: bool = False) -> str:
    """``text`` with every character that a terminal would obey or hide as its code: ``\\x1b``, ``\\u202e``.

    The result is one line, unless ``lines``: then line ends and tabs stay, as in a model's answer.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        character if character in kept or character in _PART_OF_WORDS
        or unicodedata.category(character) not in _SHOWN_AS_CODES else _code(character)
        for character in text
    )


def _code(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
