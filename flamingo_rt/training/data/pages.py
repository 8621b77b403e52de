"""Interleaved pages: rows of JSON that say where pictures stand among texts, in two forms.

MMC4's: ``{"text_list": [text, …], "image_info": [{"image_name": …, "matched_text_index": …}, …]}``; a picture stands
before the text that it is matched with, and texts follow each other with a space between. OBELICS': ``{"texts": [text
or null, …], "images": [name or null, …]}``, of equal length; at each place is one of the two, and a blank line stands
between two texts. Other keys of a row are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from flamingo_rt.printable import printable
from flamingo_rt.training.data.file_prints import grouped, line_prints
from flamingo_rt.training.data.json_lines import JsonLines
from flamingo_rt.training.data.row_fields import checked_text, file_inside, shown
from flamingo_rt.training.data.samples import DamagedSample, FilePrint, Said, Sample, Segment, Visual

MOST_PAGE = 1_000_000  # characters of all texts of a page
MOST_PARTS = 10_000  # texts and pictures of a page


@dataclass(frozen=True, eq=False)
class PageLines:
    """A JSONL file of pages, with the pictures beside it. ``root`` is its folder, resolved."""

    lines: JsonLines
    root: Path
    kind: Literal["pages"] = "pages"

    def __len__(self) -> int:
        return len(self.lines)

    def sample(self, index: int) -> Sample:
        """See `SampleSource.sample`."""
        name = self.lines.name(index)

        def picture(file: str) -> Visual:
            return Visual("image", file_inside(self.root, file, "the picture", name), printable(file))

        return Sample(name, page_segments(self.lines.row(index), picture, name))

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`: changes with the file, not with what its pictures show."""
        return f"{self.kind}, {len(self)} lines, {self.lines.digest[:16]}"

    @cached_property
    def files(self) -> tuple[FilePrint, ...]:
        """See `SampleSource.files`: the lines' file, and the sizes of what is named there."""
        return grouped(line_prints(self.lines, self.root))


def is_page(row: Mapping[str, Any]) -> bool:
    """Whether a row is a page of one of the two forms."""
    return "text_list" in row or "texts" in row


def page_segments(row: Mapping[str, Any], picture: Callable[[str], Visual], name: str) -> tuple[Segment, ...]:
    """The texts and pictures of the page ``name``, in order; ``picture`` finds one by its name in the row.

    A page of pictures alone, or of texts alone, is whole: `DocumentWriter.page` finds nothing to learn in it. Raises
    `DamagedSample` for a row of neither form, or with more than `MOST_PAGE` characters or `MOST_PARTS` parts, and
    whatever ``picture`` raises.
    """
    if "text_list" in row:
        parts, between = _mmc4_parts(row, picture, name), " "
    elif "texts" in row:
        parts, between = _obelics_parts(row, picture, name), "\n\n"
    else:
        raise DamagedSample(name, f"has the keys {shown(', '.join(row))}: a page has text_list and image_info, or "
                                  "texts and images")
    runs: list[list[str] | Visual] = []
    for part in parts:
        if isinstance(part, Visual):
            runs.append(part)
        elif part.strip() and runs and isinstance(runs[-1], list):
            runs[-1].append(part)
        elif part.strip():
            runs.append([part])
    segments = tuple(Said(between.join(run)) if isinstance(run, list) else run for run in runs)
    text = "".join(segment.text for segment in segments if isinstance(segment, Said))
    if text:
        checked_text(text, "the page's text", name, MOST_PAGE)
    return segments


def _mmc4_parts(row: Mapping[str, Any], picture: Callable[[str], Visual], name: str) -> list[str | Visual]:
    texts = _entries(row, "text_list", name)
    if not all(isinstance(text, str) for text in texts):
        raise DamagedSample(name, "text_list holds something else than texts")
    before: dict[int, list[Visual]] = {}
    for entry in _entries(row, "image_info", name):
        if not isinstance(entry, dict):
            raise DamagedSample(name, f"image_info holds {shown(entry)}, not an object")
        place, file = entry.get("matched_text_index"), entry.get("image_name")
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(texts):
            raise DamagedSample(name, f"matched_text_index is {shown(place)}, not one of the {len(texts)} texts")
        before.setdefault(place, []).append(picture(_file_name(file, name)))
    return [part for place, text in enumerate(texts) for part in (*before.get(place, ()), text)]


def _obelics_parts(row: Mapping[str, Any], picture: Callable[[str], Visual], name: str) -> list[str | Visual]:
    texts, images = _entries(row, "texts", name), _entries(row, "images", name)
    if len(texts) != len(images):
        raise DamagedSample(name, f"has {len(texts)} texts and {len(images)} images: at each place is one of the two, "
                                  "null the other")
    parts: list[str | Visual] = []
    for place, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None):
            raise DamagedSample(name, f"has {'neither' if text is None else 'both'} a text and an image at place "
                                      f"{place}")
        if image is not None:
            parts.append(picture(_file_name(image, name)))
        elif isinstance(text, str):
            parts.append(text)
        else:
            raise DamagedSample(name, f"texts holds {shown(text)}, not a text")
    return parts


def _entries(row: Mapping[str, Any], key: str, name: str) -> list[Any]:
    entries = row.get(key)
    if not isinstance(entries, list):
        raise DamagedSample(name, f"{key} is {shown(entries)}, not a list")
    if len(entries) > MOST_PARTS:
        raise DamagedSample(name, f"{key} has {len(entries):,} entries, more than {MOST_PARTS:,}")
    return entries


def _file_name(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise DamagedSample(name, f"an image is {shown(value)}, not the name of a file")
    return value
