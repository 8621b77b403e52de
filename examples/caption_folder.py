"""Caption every picture of a folder, several at once; with shots, in the style of their captions.

    python examples/caption_folder.py examples/scenes
    python examples/caption_folder.py photos --model bundle --batch 8
    python examples/caption_folder.py examples/scenes --shots examples/scenes/shots.jsonl --out captions.jsonl

Shots are lines such as {"image": "a.png", "text": "star, yellow"}, with pictures beside the file. A picture that is a
shot has its caption, and gets no other. The output has the same form, so it can be trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import flamingo_rt
from flamingo_rt import Image, Model, PromptState
from flamingo_rt.errors import DataError, FlamingoError, UsageError
from flamingo_rt.evaluation.item_sources import ItemSource, read_items
from flamingo_rt.evaluation.task import Item
from flamingo_rt.evaluation.task_prompts import visual_of
from flamingo_rt.files import replacing_file
from flamingo_rt.printable import printable
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.tasks import caption_shot

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
HEADINGS = ("picture", "without shots", "with shots")


def read_shots(file: Path) -> tuple[Item, ...]:
    """The pictures and captions of a captions.jsonl. Pictures that are not there are named and left out."""
    pool = read_items(ItemSource("--shots", (file,), None), "caption")
    for reason in pool.missing:
        print(f"left out: {printable(reason)}", file=sys.stderr)
    return pool.items


def compiled_shots(model: Model, shots: Sequence[Item]) -> PromptState:
    """The shots, read once for all pictures."""
    parts = [caption_shot(model.config, visual_of(shot) or [], shot.answer) for shot in shots]
    return model.prompt([part for shot in parts for part in shot])


def captions(
    model: Model, pictures: Sequence[Path], batch: int, shots: PromptState | None = None
) -> Iterator[tuple[Path, str]]:
    """Each picture with its caption; ``batch`` pictures are captioned together."""
    for start in range(0, len(pictures), batch):
        files = pictures[start : start + batch]
        prompts = [model.caption_prompt(Image(file)) for file in files]
        results = model.generate_batch(prompts, prefix=shots, max_new_tokens=40)
        for file, result in zip(files, results, strict=True):
            yield file, result.text.strip()


def pictures_of(folder: Path, shots: Sequence[Item] = ()) -> list[Path]:
    """The pictures of a folder that are no shots. Those that cannot be read are named and left out."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: give one with pictures")
    given, found = {shot.file for shot in shots}, []
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in SUFFIXES and file.resolve() not in given:
            try:
                open_picture(file)
                found.append(file)
            except DataError as error:
                print(f"left out: {printable(str(error))}", file=sys.stderr)
    return found


def comparison(plain: Sequence[tuple[Path, str]], styled: Sequence[tuple[Path, str]]) -> str:
    """Captions without and with shots as a table."""
    rows = [HEADINGS, *((printable(file.name), printable(text), printable(other))
                        for (file, text), (_, other) in zip(plain, styled, strict=True))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write_captions(file: Path, captioned: Sequence[tuple[Path, str]]) -> None:
    """Write a captions.jsonl for the folder of the pictures."""
    lines = [json.dumps({"image": picture.name, "text": text}, ensure_ascii=False) for picture, text in captioned]
    with replacing_file(file) as beside:
        beside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="a bundle or a checkpoint; default: the model in the package")
    parser.add_argument("--batch", type=int, default=4, help="pictures captioned together; default %(default)s")
    parser.add_argument("--shots", type=Path, help="a .jsonl file of pictures with captions, whose style is wanted")
    parser.add_argument("--out", type=Path, help="a .jsonl file for the captions")
    options = parser.parse_args()
    shots = read_shots(options.shots) if options.shots else ()
    pictures = pictures_of(options.folder, shots)
    model = flamingo_rt.load(options.model)
    found = []
    for file, caption in captions(model, pictures, options.batch, compiled_shots(model, shots) if shots else None):
        found.append((file, caption))
        if not shots:
            print(f"{printable(file.name)}: {printable(caption)}")
    if shots:
        print(comparison(list(captions(model, pictures, options.batch)), found))
    if options.out:
        write_captions(options.out, found)


if __name__ == "__main__":
    try:
        main()
    except FlamingoError as error:
        sys.exit(f"error: {printable(str(error))}")
