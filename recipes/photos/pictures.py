"""Class folders of pictures: ``train/CONCEPT`` of all sources, and held-out concepts apart.

    python -m recipes.photos.pictures

Writes ``runs/photos/pictures``: ``train/red_apple/emoji-0-3.jpg`` is view 3 of the first emoji of a red apple; held-out
concepts are in ``held-out/stamps``, ``held-out/emoji`` and ``held-out/clipart``. The same packages give the same
pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flamingo_rt.errors import DataError, FlamingoError
from flamingo_rt.printable import printable
from recipes.photos import FETCHED, WORK
from recipes.photos.fetch import fetched_folder
from recipes.photos.held_out import side_of
from recipes.photos.named_pictures import NamedPicture, clip_art_pictures, emoji_pictures, stamp_pictures
from recipes.photos.packages import CLIP_ART, EMOJI, EMOJI_NAMES, STAMPS
from recipes.photos.views import may_be_flipped, read_picture, view
from recipes.photos.whole_folder import whole_folder

PICTURES = WORK / "pictures"
TRAIN_VIEWS, HELD_OUT_VIEWS = 6, 8
QUALITY = 90  # of JPEG


@dataclass(frozen=True)
class Written:
    """Pictures in class folders: concepts and source pictures of each part, and files that could not be read."""

    concepts: Counter[str]
    sources: Counter[str]
    files: int
    unreadable: tuple[str, ...]


def all_pictures(fetched: Path = FETCHED) -> list[NamedPicture]:
    """The named pictures of all three sources. Raises `DataError` where a package was not fetched."""
    return [
        *stamp_pictures(fetched_folder(STAMPS, fetched)),
        *emoji_pictures(fetched_folder(EMOJI, fetched), fetched_folder(EMOJI_NAMES, fetched)),
        *clip_art_pictures(fetched_folder(CLIP_ART, fetched)),
    ]


def write_class_folders(pictures: Iterable[NamedPicture], folder: Path) -> Written:
    """Write views of pictures into class folders, which replace ``folder`` once all are there.

    Raises `DataError` where nothing can be read, or ``folder`` was not written by this recipe.
    """
    with whole_folder(folder) as beside:
        written = _write(pictures, beside)
        if not written.files:
            raise DataError("none of the pictures could be read: run python -m recipes.photos.fetch anew")
    return written


def class_folder(name: str) -> str:
    """The folder's name of a concept, which the trainer reads back as the concept."""
    return name.replace(" ", "_")


def _write(pictures: Iterable[NamedPicture], folder: Path) -> Written:
    numbers: Counter[tuple[str, str]] = Counter()
    concepts: dict[str, str] = {}
    sources: Counter[str] = Counter()
    unreadable: list[str] = []
    files = 0
    for each in pictures:
        held_out = side_of(each.name) == "held-out"
        part = f"held-out/{each.source}" if held_out else "train"
        number = numbers[each.source, each.name]
        try:
            _write_views(each, folder / part / class_folder(each.name), number,
                         HELD_OUT_VIEWS if held_out else TRAIN_VIEWS)
        except DataError as error:
            unreadable.append(str(error))
            continue
        numbers[each.source, each.name] += 1
        concepts[f"{part}/{each.name}"] = part
        sources[f"{part} {each.source}"] += 1
        files += HELD_OUT_VIEWS if held_out else TRAIN_VIEWS
    return Written(Counter(concepts.values()), sources, files, tuple(unreadable))


def _write_views(picture: NamedPicture, folder: Path, number: int, views: int) -> None:
    pixels = read_picture(picture.file)
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{picture.source} {picture.name} {number}".encode()).digest()
    seed = [int.from_bytes(digest[:4], "big")]
    for count in range(views):
        view(pixels, count, seed, may_be_flipped(picture.name)).save(
            folder / f"{picture.source}-{number}-{count}.jpg", quality=QUALITY)


def report(written: Written) -> str:
    """Counts as lines."""
    lines = [f"{part}: {count} concepts, of {_listed(written.sources, part)} pictures"
             for part, count in sorted(written.concepts.items(), reverse=True)]
    lines.append(f"{written.files} views written, {len(written.unreadable)} pictures unreadable")
    return "\n".join([*lines, *map(printable, written.unreadable)])


def _listed(sources: Counter[str], part: str) -> str:
    found = {key.rpartition(" ")[2]: count for key, count in sources.items() if key.rpartition(" ")[0] == part}
    return ", ".join(f"{count} {source}" for source, count in found.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the class folders; gives the exit code."""
    argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(arguments)
    start = time.perf_counter()
    try:
        written = write_class_folders(all_pictures(), PICTURES)
    except FlamingoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(report(written))
    print(f"wrote {PICTURES} in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
