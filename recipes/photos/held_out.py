"""Concepts that are held out from training: one head noun in seven, in whatever words it stands.

A concept is a name such as "red apple". Its head noun is "apple"; with it "apple" and "green apple" are held out too,
from every source of pictures. A thing may still be trained under another noun ("gravestone" for "headstone"), or beside
one ("glass of milk"): `SEEN` lists the held-out head nouns of which a reader found or suspected that, and no task asks
about them.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Side = Literal["train", "held-out"]

HELD_OUT_EVERY = 7
PREPOSITIONS = frozenset(("of", "with", "in", "on", "at", "behind", "from", "without", "for", "under", "and", "to"))
# Held-out head nouns whose things training shows, or may: as another noun, or as a part of what another noun names.
SEEN = frozenset((
    "headstone", "seagull", "rhinoceros", "tv", "lock", "thumbtack", "brush", "trophy", "beer", "cob", "boy", "train",
    "duck", "dromedary", "shovel", "virus", "cow", "ox", "gnu", "rooster", "hen", "megaphone", "wapiti", "wasp",
    "glove", "spaghetti", "gift", "crawfish", "purse", "umbrella", "milk", "tongue", "ribbon", "level", "badminton",
    "meat", "donkey", "buffalo", "ewe", "laptop", "toolbox", "bottle", "razor", "genie", "clock", "guitar", "boot",
    "sandal",
    # Beside names of ImageNet's classes: maillot, conch, barn, damselfly, coffeepot, megalith, killer whale, hammer,
    # geyser, parachute
    "swimsuit", "bikini", "shell", "stable", "dragonfly", "teapot", "inukshuk", "dolphin", "mallet", "spring",
    "paratrooper",
))
# Names whose head noun alone is another thing: a sea lion is no lion.
COMPOUNDS = frozenset(("sea lion", "totem pole", "apollo lunar lander module", "christmas stocking", "rubber duck"))
PEOPLE = frozenset(("person", "man", "woman", "people", "men", "women"))  # who do something: "man lifting weights"
# Words whose plural is another word than what the rules below make of it.
IRREGULAR = {"men": "man", "women": "woman", "people": "person", "mice": "mouse", "feet": "foot", "teeth": "tooth",
             "geese": "goose", "leaves": "leaf", "knives": "knife", "wolves": "wolf", "shelves": "shelf", "dice": "die",
             "children": "child", "cookies": "cookie", "pies": "pie", "oxen": "ox", "houses": "house",
             "horses": "horse", "roses": "rose", "shoes": "shoe", "axes": "axe", "vases": "vase",
             "rhinoceros": "rhinoceros"}


def head_noun(name: str) -> str:
    """The noun that a concept's name is about, in the singular: "apple" of "red apples", "hat" of "hat with a feather",
    "man" of "man lifting weights"."""
    words = name.split()
    end = next((place for place, word in enumerate(words) if place and word in PREPOSITIONS), len(words))
    if words[0] in PEOPLE and any(word.endswith("ing") for word in words[1:end]):
        end = 1
    return singular(words[end - 1])


def is_unseen(name: str) -> bool:
    """Whether training shows no such thing at all, for the name of a held-out concept."""
    return head_noun(name) not in SEEN


def singular(noun: str) -> str:
    """The singular of an English noun by simple rules; a word that only looks like a plural may come out cut, always
    in the same way."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if noun.endswith(("sses", "shes", "ches", "xes", "toes")):
        return noun[:-2]
    if noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and len(noun) > 3:
        return noun[:-1]
    return noun


def side_of(name: str) -> Side:
    """Whether a concept is trained or held out: the same on every machine, and for all names of one head noun."""
    number = int.from_bytes(hashlib.sha256(head_noun(name).encode()).digest()[:8], "big")
    return "held-out" if number % HELD_OUT_EVERY == 0 else "train"
