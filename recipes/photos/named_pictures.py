"""Pictures of the three sources, each with the name of what it shows.

- Stamps: a caption such as "A tabby cat." beside each picture.
- Emoji: English labels; without flags, signs, letters, faces of clocks and skin tones.
- Clip art: names of files, which are title and artist run together. Only words of `clip_art_words.py` are taken.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flamingo_rt.errors import DataError
from recipes.photos.clip_art_words import MODIFIERS, NOUNS, TRANSLATED
from recipes.photos.held_out import PREPOSITIONS

Source = Literal["stamps", "emoji", "clipart"]

MOST_WORDS = 4
# "a pair of scissors" is named for what it is made of.
QUANTITIES = ("pair", "bunch", "cluster", "head", "couple", "string", "quarter", "plant", "piece", "stack")
NO_STAMPS = re.compile(
    r"symbols/(alphabets|math|money|music|faces)/|roadsigns/|hanukkah/dreydl-|newyears/new|town/flags/"
)
CLAUSE = re.compile(
    "[.!?—:;(]| – | is | are | lets | means | stands | called | can | used | from | resembles | hatched | inside "
    "| dancing | playing | covered | in its | making | at winter"
)
LEFT_OUT_EMOJI = frozenset((
    "flag", "country-flag", "subdivision-flag", "keycap", "alphanum", "arrow", "av-symbol", "math", "punctuation",
    "currency", "other-symbol", "geometric", "gender", "zodiac", "religion", "warning", "transport-sign", "skin-tone",
    "hair-style", "family", "person-gesture",
))
# Labels that name no thing: deeds, states and gestures.
NO_THINGS = frozenset((
    "hundred points", "dizzy", "dashing away", "zzz", "thumbs up", "thumbs down", "middle finger", "kiss", "selfie",
    "writing hand", "call me hand", "love-you gesture", "camping", "foggy", "locked", "unlocked", "locked with pen",
    "cooking", "performing arts", "person", "wedding", "station", "landslide", "construction", "building construction",
    "pouring liquid", "high voltage", "biting lip", "breast-feeding", "raising hands", "link", "sparkles", "wood",
    "moon viewing ceremony", "anger symbol", "hole", "dotted line face", "distorted face", "airplane departure",
    "airplane arrival", "hourglass done", "vulcan salute", "sunrise over mountains", "mate", "love hotel", "oden",
))
ANIMALS = ("animal-", "cat-face", "monkey-face")
# One of several hands, moons or globes that differ in a direction alone, and words that begin no name.
NO_NAMES = re.compile(
    r"(left|right|up|down|index|palm|globe|chart|oncoming|speaker|head|this|another|important|boom|tux|mx|first|last"
    r"|waxing|waning|new moon|flying spaghetti|paint roller|house of)\b|(people|person) .*ing\b"
    r"|.*\b(also|as|tilted|palms|with horns)\b"
)
# So that their head nouns are what is shown.
RENAMED = {"clock face": "clock", "baby of gnu": "baby gnu", "pie apple": "apple pie", "pie cherry": "cherry pie",
           "pie pumpkin": "pumpkin pie", "pizza cheese": "cheese pizza", "balloon orange": "orange balloon",
           "woman eyes": "eyes", "woman eye": "eye", "police man": "policeman", "sun flower": "sunflower"}


@dataclass(frozen=True)
class NamedPicture:
    """A picture's file, the name of what it shows, and its source."""

    file: Path
    name: str
    source: Source


def stamp_pictures(folder: Path) -> Iterator[NamedPicture]:
    """The stamps whose captions can be made a name, by path."""
    for file in sorted(folder.rglob("*.png")):
        caption = file.with_suffix(".txt")
        if caption.is_file() and NO_STAMPS.search(file.relative_to(folder).as_posix()) is None:
            name = name_of_caption(stamp_caption(caption))
            if name is not None:
                yield NamedPicture(file, name, "stamps")


def stamp_caption(file: Path) -> str:
    """The English caption of a stamp: the first line of its file."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[0].strip() if lines else ""


def name_of_caption(caption: str) -> str | None:
    """The noun phrase of a caption such as "A tabby cat.", in lower case; None where it is none or a long one."""
    found = re.match(r"(an?|the|some|our|two|big)\s+", caption, re.IGNORECASE)
    rest = caption[found.end():] if found else caption
    # A clause, a second sentence or an explanation is no part of the name.
    rest = CLAUSE.split(rest + " ", maxsplit=1)[0]
    if not found and len(rest.split()) > 2:  # without an article it is a sentence, mostly
        return None
    rest = re.sub(r"[“”\"\u2018]", "", rest).replace(", ", " ")
    words = [word for word in rest.split() if word.lower() not in ("very", "a", "an", "the")]
    return _clean_name(" ".join(words))


def emoji_pictures(pictures: Path, names: Path) -> Iterator[NamedPicture]:
    """The emoji that show a thing, in the order of ``data.json``. Raises `DataError` for files of another form."""
    try:
        labels = json.loads((names / "data.json").read_text(encoding="utf-8"))
        groups = json.loads((names / "messages.json").read_text(encoding="utf-8"))["subgroups"]
        subgroups = {group["order"]: group["key"] for group in groups}
        rows = [(row["label"], row["hexcode"].lower(), subgroups[row["subgroup"]])
                for row in labels if "subgroup" in row]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{names}: the labels of emoji cannot be read ({error!r}); fetch them anew") from error
    for label, code, subgroup in rows:
        files = (pictures / f"{code}.png", pictures / f"{code}-fe0f.png")
        file = next((path for path in files if path.is_file()), None)
        name = name_of_label(label, subgroup)
        if file is not None and name is not None:
            yield NamedPicture(file, name, "emoji")


def name_of_label(label: str, subgroup: str) -> str | None:
    """The name of what an emoji shows; None where that is no thing. A face of an animal is named for the animal."""
    if subgroup in LEFT_OUT_EMOJI or ":" in label or "o\u2019clock" in label or re.search(r"-thirty$", label):
        return None
    name = _clean_name(label)
    if name is None or name in NO_THINGS:
        return None
    words = name.split()
    if words[-1] == "face" and len(words) == 2 and subgroup.startswith(ANIMALS):
        return words[0]
    return name


def clip_art_pictures(folder: Path) -> Iterator[NamedPicture]:
    """The clip art whose file's name begins with known words, by path."""
    for file in sorted(folder.rglob("*.png")):
        name = name_of_file(file.stem)
        if name is not None:
            yield NamedPicture(file, name, "clipart")


def name_of_file(stem: str) -> str | None:
    """The name at the beginning of a file's name, as "happy monkey" of ``happy_monkey_benji_park_01``; None where no
    known noun stands there."""
    words = [re.sub(r"\d+$", "", word) for word in re.split(r"[_\s-]+", stem.lower())]
    words = [word for word in words if word not in ("", "a", "an", "the", "simple", "contour", "bw", "cartoon")]
    known: list[str] = []
    for word in words:
        word = TRANSLATED.get(word, word)
        if word not in NOUNS and word not in MODIFIERS and not (known and word in ("of", "with")):
            break
        if word != (known or [""])[-1]:  # "gatto_cat"
            known.append(word)
    while known and known[-1] not in NOUNS:
        known.pop()
    return _clean_name(" ".join(known)) if known else None


def _clean_name(text: str) -> str | None:
    """A name in lower case ASCII letters, of one to four words; None for another."""
    plain = unicodedata.normalize("NFKD", text.replace("\u2019", "'")).encode("ascii", "ignore").decode()
    words = plain.lower().split()
    if len(words) > 2 and words[0] in QUANTITIES and words[1] == "of":
        words = words[2:]
    while words and words[-1] in PREPOSITIONS:
        words.pop()
    if not 1 <= len(words) <= MOST_WORDS or words[0] in PREPOSITIONS:
        return None
    if not all(re.fullmatch(r"[a-z]+(['-][a-z]+)*'?", word) for word in words):
        return None
    name = " ".join(words)
    return None if NO_NAMES.match(name) else RENAMED.get(name, name)
