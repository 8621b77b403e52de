"""Text of strangers on a terminal: nothing in it may move the cursor, write the clipboard or look like another text."""

from __future__ import annotations

import unicodedata

# Control characters and what reorders or hides text (Cc, Cf), half pairs and what has no meaning yet (Cs, Co, Cn), and
# line and paragraph separators, which some terminals obey.
_SHOWN_AS_CODES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Format characters that words and emoji are written with.
_PART_OF_WORDS = frozenset("\u200c\u200d")


def printable(text: str, lines: bool = False) -> str:
    """``text`` with everything that a terminal would obey, or hide, as its code: ``\\x1b``, ``\\u202e``.

    It is one line, unless ``lines``: then line ends and tabs stay, as in an answer of a model.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        character if character in kept or character in _PART_OF_WORDS
        or unicodedata.category(character) not in _SHOWN_AS_CODES else _code(character)
        for character in text
    )


def _code(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
