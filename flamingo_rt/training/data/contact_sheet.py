"""A contact sheet: some samples of a dataset as one picture, to see whether texts belong to their pictures."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps

from flamingo_rt.files import replacing_file
from flamingo_rt.printable import printable

ENTRIES = 40
BOX = 144, 108  # pixels of a picture on the sheet
MOST_PICTURES = 8  # of one sample
IN_A_ROW = 4  # pictures of a sample beside each other
MOST_LINES = 8  # of a text
MOST_CHARACTERS = 1000  # of a text that are looked at: more than so many lines hold
MARGIN, GAP, FONT_SIZE, LINE = 12, 4, 13, 17  # pixels
PAPER, INK, GREY = (228, 228, 228), (20, 20, 20), (110, 110, 110)  # no picture ends unseen in the paper
WIDTH = 1300  # about; of the whole sheet

Font = PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont


@dataclass(frozen=True, eq=False)
class SheetEntry:
    """A sample on the sheet: thumbnails of its pictures, or of the frames of its clip."""

    name: str
    text: str
    pictures: tuple[PIL.Image.Image, ...]


def thumbnail(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture made to fit into `BOX`; small ones are enlarged, with their pixels to be seen."""
    larger = picture.width <= BOX[0] and picture.height <= BOX[1]
    method = PIL.Image.Resampling.NEAREST if larger else PIL.Image.Resampling.BILINEAR
    return PIL.ImageOps.contain(picture, BOX, method)


def write_sheet(path: Path, entries: Sequence[SheetEntry]) -> None:
    """Write the sheet as a PNG; what is there is replaced. Raises `DataError` when it cannot be written."""
    sheet = draw_sheet(entries)
    with replacing_file(path) as beside, beside.open("wb") as file:
        sheet.save(file, "PNG")


def draw_sheet(entries: Sequence[SheetEntry]) -> PIL.Image.Image:
    """The sheet: rows of entries, each with its pictures, its text, and in grey the end of its name."""
    font = PIL.ImageFont.load_default(FONT_SIZE)
    most = max((min(len(entry.pictures), IN_A_ROW) for entry in entries), default=1)
    across = max(most, 2 if not most else 1)  # texts alone are as wide as two pictures
    width = across * (BOX[0] + GAP) - GAP
    columns = max(1, min(len(entries), (WIDTH - MARGIN) // (width + MARGIN)))
    rows = [entries[start : start + columns] for start in range(0, len(entries), columns)]
    lines = [[_lines(entry, font, width) for entry in row] for row in rows]
    heights = [max(_height(entry, text) for entry, text in zip(*pair, strict=True))
               for pair in zip(rows, lines, strict=True)]
    sheet = PIL.Image.new("RGB", (MARGIN + columns * (width + MARGIN), MARGIN + sum(heights) + MARGIN * len(rows)),
                          PAPER)
    top = MARGIN
    for row, texts, height in zip(rows, lines, heights, strict=True):
        for column, (entry, text) in enumerate(zip(row, texts, strict=True)):
            _paint(sheet, entry, text, MARGIN + column * (width + MARGIN), top, font)
        top += height + MARGIN
    return sheet


def _paint(
    sheet: PIL.Image.Image, entry: SheetEntry, lines: Sequence[str], left: int, top: int, font: Font
) -> None:
    for number, picture in enumerate(entry.pictures[:MOST_PICTURES]):
        row, column = divmod(number, IN_A_ROW)
        sheet.paste(picture, (left + column * (BOX[0] + GAP), top + row * (BOX[1] + GAP)))
    pen = PIL.ImageDraw.Draw(sheet)
    top += _pictures_height(entry)
    for number, line in enumerate(lines):
        last = number == len(lines) - 1
        pen.text((left, top + number * LINE), line, GREY if last else INK, font)


def _height(entry: SheetEntry, lines: Sequence[str]) -> int:
    return _pictures_height(entry) + len(lines) * LINE


def _pictures_height(entry: SheetEntry) -> int:
    return math.ceil(min(len(entry.pictures), MOST_PICTURES) / IN_A_ROW) * (BOX[1] + GAP)


def _lines(entry: SheetEntry, font: Font, width: int) -> list[str]:
    """The lines of the text, and as the last one the end of the name."""
    lines = _wrapped(entry.text, font, width)
    if len(entry.pictures) > MOST_PICTURES:
        lines = [f"(and {len(entry.pictures) - MOST_PICTURES} more pictures)", *lines]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], "..."]
    name = printable(entry.name)
    while len(name) > 1 and font.getlength(name) > width:
        name = name.partition("/")[2] or name[1:]
    return [*lines, name]


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """The beginning of a text in lines that fit into ``width`` pixels; at most one more than `MOST_LINES`."""
    lines: list[str] = []
    for paragraph in text[:MOST_CHARACTERS].splitlines():
        line = ""
        for word in printable(paragraph).split():
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            while font.getlength(word) > width:  # a word longer than a line
                fitting = _fitting(word, font, width)
                lines.append(word[:fitting])
                word = word[fitting:]
            line = word
        if line:
            lines.append(line)
        if len(lines) > MOST_LINES:
            break
    return lines[: MOST_LINES + 1]


def _fitting(word: str, font: Font, width: int) -> int:
    """Number of characters of a word that is too long that fit into a line; at least 1."""
    ends = range(1, len(word))
    return max(1, bisect.bisect_left(ends, True, key=lambda end: font.getlength(word[:end]) > width))
