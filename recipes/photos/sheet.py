"""A dozen real pictures with what a bundle says of them, as one picture for the page.

    python -m recipes.photos.sheet --model BUNDLE --out docs/pictures/photos.png

Three photographs of scikit-image (CC0), and pictures of held-out concepts that may be shown: Noto Color Emoji
(Apache-2.0) and clip art of Open Clip Art (public domain). None of them was in training. Needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

import flamingo_rt
from flamingo_rt.errors import DataError, FlamingoError
from flamingo_rt.files import replacing_file
from flamingo_rt.printable import printable
from recipes.photos.answers import Answer, answers
from recipes.photos.photographs import Photograph, photographs
from recipes.photos.pictures import PICTURES
from recipes.photos.tasks import concepts_in, with_head_noun

OWN = ("chelsea.png", "coffee.png", "rocket.jpg")
SHOWN = (
    ("emoji", "lion"), ("emoji", "giraffe"), ("emoji", "teapot"), ("emoji", "tomato"), ("emoji", "umbrella"),
    ("clipart", "lighthouse"), ("clipart", "duck"), ("clipart", "laptop"), ("clipart", "train"),
)
COLUMNS, SIDE = 4, 2.2  # pictures in a row; inches of each


@dataclass(frozen=True)
class Shown:
    """A picture of the page: its answer, and the name that it has in its source."""

    answer: Answer
    name: str


def pictures_shown(model: flamingo_rt.Model, pictures: Path = PICTURES) -> list[Shown]:
    """The answers about the dozen pictures. Raises `DataError` where pictures were not fetched or made."""
    own = [each for each in photographs() if each.file.name in OWN]
    asked = [(each, each.accepted[0]) for each in own]
    for source, name in SHOWN:
        concept = next((each for each in concepts_in(pictures, f"held-out/{source}") if each.name == name), None)
        if concept is None:
            raise DataError(f"{pictures / 'held-out' / source} has no pictures of \"{name}\": "
                            "run python -m recipes.photos.pictures anew")
        asked.append((Photograph(pictures / concept.views[0][0], tuple(with_head_noun(name))), name))
    given = answers(model, [each for each, _ in asked])
    return [Shown(answer, name) for answer, (_, name) in zip(given, asked, strict=True)]


def draw(shown: Sequence[Shown], out: Path) -> None:
    """Write a PNG: each picture over its answer, green where it is right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(shown) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(COLUMNS * SIDE, rows * (SIDE + 0.5)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, each in zip(axes.flat, shown, strict=False):
        with PIL.Image.open(each.answer.photograph.file) as picture:
            axis.imshow(picture.convert("RGB"))
        said = textwrap.shorten(printable(each.answer.text) or "(nothing)", 28, placeholder="…")
        axis.set_title(said, fontsize=11, color="#0b6b2e" if each.answer.right else "#a02020", pad=4)
        if not each.answer.right:
            axis.text(0.5, -0.04, f"it is: {each.name}", transform=axis.transAxes, ha="center", va="top", fontsize=9,
                      color="#444444")
    figure.tight_layout()
    with replacing_file(out) as beside:
        figure.savefig(beside, format="png", dpi=100)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask a bundle and write the picture; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="BUNDLE", required=True, help="a bundle, or a checkpoint")
    parser.add_argument("--out", type=Path, metavar="FILE", required=True, help="the PNG to write")
    options = parser.parse_args(arguments)
    try:
        shown = pictures_shown(flamingo_rt.load(options.model))
        draw(shown, options.out)
    except FlamingoError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    for each in shown:
        print(f"{each.name}: {printable(each.answer.text)} ({'right' if each.answer.right else 'wrong'})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
