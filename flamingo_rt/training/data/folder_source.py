"""Pictures and clips in a folder: named in a ``captions.jsonl``, or sorted into folders by their class (ImageFolder),
where features of pictures may stand in their place.

A line of ``captions.jsonl`` is ``{"image": …, "text": …}`` or ``{"image": …, "question": …, "answer": …}``; of clips,
``video`` stands for ``image``. Paths are relative to the file, and stay inside its folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable
from flamingo_rt.processing.visuals import PICTURE_SUFFIXES
from flamingo_rt.training.data.file_prints import grouped, line_prints
from flamingo_rt.training.data.given_features import FEATURES_SUFFIX
from flamingo_rt.training.data.json_lines import JsonLines
from flamingo_rt.training.data.row_fields import checked_text, file_inside, shown, text_field
from flamingo_rt.training.data.samples import DamagedSample, FilePrint, Said, Sample, Visual

TEXTS = ({"text"}, {"question", "answer"})  # the keys of a line beside its picture or clip


@dataclass(frozen=True, eq=False)
class CaptionLines:
    """A ``captions.jsonl``; each of its lines is a sample. ``root`` is its folder, resolved."""

    lines: JsonLines
    root: Path
    kind: Literal["pairs", "videos"]

    def __len__(self) -> int:
        return len(self.lines)

    def sample(self, index: int) -> Sample:
        """See `SampleSource.sample`. A line with other keys than those above is damaged: one may be misspelt."""
        row, name = self.lines.row(index), self.lines.name(index)
        key = "image" if self.kind == "pairs" else "video"
        if key not in row or set(row) - {key} not in TEXTS:
            raise DamagedSample(name, f"has the keys {shown(', '.join(row))}: a line has {key} and text, or {key}, "
                                      "question and answer")
        visual = Visual("image" if key == "image" else "video", file_inside(self.root, row[key], key, name),
                        printable(row[key]))
        if "text" in row:
            return Sample(name, (visual, Said(text_field(row, "text", name))))
        question = Said(text_field(row, "question", name), learnt=False)
        return Sample(name, (visual, question, Said(text_field(row, "answer", name))))

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`: changes with the file, not with what its pictures show."""
        return f"{self.kind}, {len(self)} lines, {self.lines.digest[:16]}"

    @cached_property
    def files(self) -> tuple[FilePrint, ...]:
        """See `SampleSource.files`: the lines' file, and the sizes of what is named there."""
        return grouped(line_prints(self.lines, self.root))


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """A folder with a folder of pictures for each class, whose name is the class. ``names`` are relative to ``root``,
    the resolved ``folder``, ``sizes`` in bytes; ``template`` makes the caption. ``holds``: pictures, or features of
    pictures in ``.npy`` files."""

    folder: Path
    root: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    digest: str
    template: str
    holds: Literal["image", "features"] = "image"
    kind: Literal["pairs"] = "pairs"

    @classmethod
    def open(cls, folder: Path, template: str, holds: Literal["image", "features"] = "image") -> ImageFolder:
        """Find the pictures, or the features, in all depths of the folders in ``folder``, without names that begin with
        a dot.

        Raises `DataError` for a folder that cannot be read, or holds a link to another folder.
        """
        digest, names, sizes = hashlib.sha256(), [], []
        for file, size in _files(folder, PICTURE_SUFFIXES if holds == "image" else (FEATURES_SUFFIX,)):
            names.append(file)
            sizes.append(size)
            digest.update(f"{file}\0{size}\n".encode("utf-8", "surrogateescape"))
        return cls(folder, folder.resolve(), tuple(names), tuple(sizes), digest.hexdigest(), template, holds)

    def __len__(self) -> int:
        return len(self.names)

    def sample(self, index: int) -> Sample:
        """See `SampleSource.sample`."""
        file = self.names[index]
        name = printable(str(self.folder / file))
        label = class_name(file.split("/", 1)[0])
        caption = checked_text(self.template.replace("{}", label), "the name of the class", name)
        path = file_inside(self.root, file, "the picture", name)
        return Sample(name, (Visual(self.holds, path, printable(file)), Said(caption)), label)

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`: changes with the files' names and sizes."""
        what = "pictures" if self.holds == "image" else "features"
        return f"{self.kind}, {len(self)} {what}, {self.digest[:16]}"

    @cached_property
    def files(self) -> tuple[FilePrint, ...]:
        """See `SampleSource.files`: the sizes of the pictures."""
        return grouped(zip(self.names, map(str, self.sizes), strict=True))


def class_name(folder: str) -> str:
    """The class that a folder's name says: ``golden_retriever`` is "golden retriever"."""
    return re.sub(r"[_\-\s]+", " ", folder).strip() or folder


def holds_class_folders(folder: Path, glance: bool = False) -> bool:
    """Whether any folder in ``folder`` holds a picture, in any depth.

    Raises `DataError` as `ImageFolder.open` does; with ``glance``, what that cannot read is passed over: the data of
    ``folder`` may be something else than its folders.
    """
    return next(_files(folder, PICTURE_SUFFIXES, glance), None) is not None


def _files(folder: Path, suffixes: tuple[str, ...], glance: bool = False) -> Iterator[tuple[str, int]]:
    """(path relative to ``folder``, size in bytes) of each file with one of ``suffixes`` in the folders of ``folder``,
    in order, without names that begin with a dot. ``glance``: see `holds_class_folders`."""

    def unreadable(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename}: {error.strerror}; give this user read access to it") from error

    for place, folders, files in os.walk(folder, onerror=None if glance else unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # no thumbnails, no trash
        linked = next((name for name in folders if os.path.islink(os.path.join(place, name))), None)
        if linked is not None and not glance:
            raise DataError(f"{printable(os.path.join(place, linked))} is a link to a folder, which is not followed: "
                            "put the folder itself there")
        if place == os.fspath(folder):
            continue
        for name in sorted(files):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                path = os.path.join(place, name)
                yield os.path.relpath(path, folder).replace(os.sep, "/"), os.lstat(path).st_size
