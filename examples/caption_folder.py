"""Caption every picture of a folder, several at once.

    python examples/caption_folder.py examples/scenes
    python examples/caption_folder.py photos --model bundle --batch 8
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import flamingo_rt
from flamingo_rt import Image, Model

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def captions(model: Model, pictures: list[Path], batch: int) -> Iterator[tuple[Path, str]]:
    """Each picture with its caption; ``batch`` pictures are captioned together."""
    for start in range(0, len(pictures), batch):
        files = pictures[start : start + batch]
        results = model.generate_batch([model.caption_prompt(Image(file)) for file in files], max_new_tokens=40)
        for file, result in zip(files, results, strict=True):
            yield file, result.text.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="a bundle; default: the model in the package")
    parser.add_argument("--batch", type=int, default=4, help="pictures captioned together; default %(default)s")
    options = parser.parse_args()
    pictures = sorted(file for file in options.folder.iterdir() if file.suffix.lower() in SUFFIXES)
    for file, caption in captions(flamingo_rt.load(options.model), pictures, options.batch):
        print(f"{file.name}: {caption}")


if __name__ == "__main__":
    main()
