"""Whether an answer names what a photograph shows, and how sure a share of right answers is."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

from recipes.photos.held_out import PREPOSITIONS, singular

# Words before a noun that do not change what it names. "Hot" is none of them: a hot dog is no dog.
ADJECTIVES = frozenset((
    "a", "an", "the", "some", "two", "three", "four", "several", "many", "red", "orange", "yellow", "green", "blue",
    "purple", "pink", "brown", "black", "white", "grey", "gray", "silver", "colorful", "spotted", "striped",
    "big", "large", "huge", "small", "little", "tiny", "old", "young", "happy", "sad", "angry", "sleeping", "sitting",
    "standing", "flying", "wooden", "open", "closed", "dark", "light",
))
FORMS = re.compile(
    r"^(this is |it is |it's |there is |there are )?(an? )?(picture|photo|photograph|image|close-up) of |"
    r"^(this is |it is |it's |there is |there are )"
)
QUANTITIES = re.compile(r"^(an? |the |two )?(pair|group|couple|bunch|pile) of ")


def named_in(answer: str) -> str:
    """The noun phrase that an answer begins with, in lower case and the singular, without articles, colours and sizes,
    and without what follows a preposition other than "of": "bird" of "A picture of a blue bird in the sky."."""
    text = re.split(r"[.,;:!?\n]", answer.strip(" \"'").lower(), maxsplit=1)[0].strip(" \"'")
    words = QUANTITIES.sub("", FORMS.sub("", text, count=1), count=1).split()
    while len(words) > 1 and words[0] in ADJECTIVES:
        words.pop(0)
    end = next((place for place, word in enumerate(words) if place and word in PREPOSITIONS - {"of"}), len(words))
    words = words[:end]
    return " ".join([*words[:-1], singular(words[-1])]) if words else ""


def is_right(answer: str, accepted: Collection[str]) -> bool:
    """Whether an answer's noun phrase is one of the accepted names, or two of them joined by "of": "cup of coffee"
    where both are right, not "cup of tea"."""
    name = named_in(answer)
    return bool(name) and (name in accepted or all(part in accepted for part in name.split(" of ", 1)))


def wilson(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The ends of Wilson's 95% interval of a share of ``right`` out of ``count`` (1 or more), 0 to 1 (Wilson, 1927)."""
    share, squared = right / count, z * z
    middle = (share + squared / (2 * count)) / (1 + squared / count)
    half = z * math.sqrt(share * (1 - share) / count + squared / (4 * count * count)) / (1 + squared / count)
    return max(0.0, middle - half), min(1.0, middle + half)
