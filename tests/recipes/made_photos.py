"""Tiny made-up packages and class folders for the tests of the recipe with photographs."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import PIL.Image


def write_wheel(file: Path, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)


def write_npm_package(file: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(file, "w:gz") as tar:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))


def write_class_folder(folder: Path, source: str, pictures: int, views: int, color: int = 0) -> None:
    """One-coloured views of pictures, ``SOURCE-PICTURE-VIEW.jpg``; no two have the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in range(pictures):
        for view in range(views):
            made = PIL.Image.new("RGB", (8, 8), (color % 256, 30 * picture, 10 * view))
            made.save(folder / f"{source}-{picture}-{view}.jpg", quality=90)
