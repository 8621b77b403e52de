"""Small training data that tests make: pictures and clips of one colour each, JSONL files, and tar archives."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image

Member = tuple[str, bytes]


def png(level: int, size: tuple[int, int] = (24, 24)) -> bytes:
    """A picture whose red is ``level``, which is exact in PNG."""
    file = io.BytesIO()
    PIL.Image.new("RGB", size, (level, 40, 200)).save(file, "PNG")
    return file.getvalue()


def level_of(pixels: Any) -> int:
    """The level of a picture of `png` from its pixel values [3, H, W], by the default mean and deviation."""
    return round((float(pixels[0, pixels.shape[1] // 2, pixels.shape[2] // 2]) * 0.5 + 0.5) * 255)


def write_clip(path: Path, levels: Sequence[int], fps: float = 1.0) -> Path:
    """A clip of one frame for each level of grey."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (32, 32))
    for level in levels:
        writer.write(np.full((32, 32, 3), level, np.uint8))
    writer.release()
    return path


def write_lines(path: Path, lines: Iterable[dict[str, Any] | str]) -> Path:
    """A JSONL file of rows, or of lines as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def captions(folder: Path, count: int, text: str = "number {}", step: int = 5) -> Path:
    """A folder with a ``captions.jsonl`` of ``count`` pictures; picture i has the level ``step`` * i."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (folder / f"{index}.png").write_bytes(png(step * index))
    write_lines(folder / "captions.jsonl", [{"image": f"{i}.png", "text": text.format(i)} for i in range(count)])
    return folder


def tar(members: Iterable[Member | tarfile.TarInfo], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """An archive of files, and of members without content as they are."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            header = tarfile.TarInfo(member[0])
            header.size = len(member[1])
            archive.addfile(header, io.BytesIO(member[1]))
    return file.getvalue()


def pairs(count: int, first: int = 0) -> list[Member]:
    """Members of so many captioned pictures."""
    return [member for index in range(first, first + count) for member in
            ((f"{index:06}.png", png(index)), (f"{index:06}.txt", f"number {index}".encode()))]
