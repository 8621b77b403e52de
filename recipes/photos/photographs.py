"""The 23 photographs to test on, with the nouns that are right about each.

Twenty are of PyPI's ``foolbox``, each with a class of ImageNet in its file's name; three are scikit-image's. The list
was made by hand before this bridge was asked: the class's own names, other words for the same thing, and names of what
it is a kind of, going up as WordNet does, where they still tell it from most other pictures. "Animal" is right where
an animal is shown and "food" where food is; "object", "thing", "plant" and "building material" are right nowhere. A
narrower kind is right only where the picture shows it. Other things that are in a picture are not right, but for
`imagenet_12`, which shows windows and not its class, a prayer rug, and `imagenet_05`, whose thatch lies on houses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flamingo_rt.errors import DataError
from recipes.photos import FETCHED
from recipes.photos.fetch import fetched_folder
from recipes.photos.packages import PHOTOGRAPHS, SAMPLE_PHOTOGRAPHS

_DOG = "dog, dog face, dog head, canine, pet, mammal, animal"
_BIRD = "bird, animal, vertebrate"
_INSECT = "insect, bug, arthropod, invertebrate, animal"
_CAR = ("jeep, car, automobile, suv, sport utility vehicle, off-road vehicle, off-roader, four-wheel drive, "
        "motor vehicle, vehicle")
ACCEPTED = {
    "imagenet_00_243.jpg": f"bull mastiff, bullmastiff, mastiff, {_DOG}",
    "imagenet_01_559.jpg": "folding chair, deck chair, deckchair, lawn chair, beach chair, chair, seat, furniture",
    "imagenet_02_438.jpg": "beaker, laboratory glass, glassware, vessel, container",
    "imagenet_03_990.jpg": "buckeye, horse chestnut, conker, chestnut, seed, nut, fruit",
    "imagenet_04_949.jpg": "strawberry, berry, fruit, food",
    "imagenet_05_853.jpg": "thatch, thatched roof, straw roof, roof, thatched house, thatched cottage, house, cottage, "
                           "home, building",
    "imagenet_06_609.jpg": _CAR,
    "imagenet_07_609.jpg": _CAR,
    "imagenet_08_915.jpg": "yurt, ger, tent, hut, house, home, dwelling, shelter, building",
    "imagenet_09_455.jpg": "bottle cap, bottlecap, crown cap, bottle top, cap, lid, stopper",
    "imagenet_10_541.jpg": "drum, snare drum, snare, percussion instrument, musical instrument, instrument",
    "imagenet_11_630.jpg": "loafer, shoe, man's shoe, men's shoe, dress shoe, leather shoe, oxford, footwear",
    "imagenet_12_741.jpg": "prayer rug, prayer mat, rug, carpet, mat, stained glass, stained glass window, window",
    "imagenet_13_471.jpg": "cannon, field gun, artillery, gun, weapon",
    "imagenet_14_129.jpg": f"spoonbill, wading bird, wader, water bird, waterbird, {_BIRD}",
    "imagenet_15_99.jpg": f"goose, wild goose, hawaiian goose, nene, gander, waterfowl, water bird, waterbird, "
                          f"fowl, {_BIRD}",
    "imagenet_16_251.jpg": f"dalmatian, {_DOG}",
    "imagenet_17_22.jpg": f"bald eagle, eagle, bird of prey, raptor, {_BIRD}",
    "imagenet_18_317.jpg": f"leafhopper, {_INSECT}",
    "imagenet_19_305.jpg": f"dung beetle, scarab, beetle, {_INSECT}",
    "chelsea.png": "cat, tabby, tabby cat, cat face, feline, pet, mammal, animal",
    "coffee.png": "coffee, espresso, coffee cup, cup, teacup, mug, coffee mug, hot beverage, hot drink, beverage, "
                  "drink",
    "rocket.jpg": "rocket, space rocket, rocket ship, launch vehicle, spacecraft, launch pad, rocket launch",
}


@dataclass(frozen=True)
class Photograph:
    """A photograph's file, and the names in the singular that are right about it, the closest first."""

    file: Path
    accepted: tuple[str, ...]


def photographs(fetched: Path = FETCHED) -> list[Photograph]:
    """The 23 photographs, sorted by name within each package. Raises `DataError` where they were not fetched."""
    found = [file for package in (PHOTOGRAPHS, SAMPLE_PHOTOGRAPHS)
             for file in sorted(fetched_folder(package, fetched).iterdir()) if file.name in ACCEPTED]
    missing = set(ACCEPTED) - {file.name for file in found}
    if missing:
        raise DataError(f"{fetched} lacks {min(missing)}: remove {PHOTOGRAPHS.name} and {SAMPLE_PHOTOGRAPHS.name} "
                        "there, and run python -m recipes.photos.fetch --only try")
    return [Photograph(file, tuple(ACCEPTED[file.name].split(", "))) for file in found]
