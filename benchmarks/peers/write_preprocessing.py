"""What transformers' CLIPImageProcessor makes of a few pictures: ``tests/fixtures/clip_preprocessing.npz``.

    benchmarks/peers/.venv/bin/python benchmarks/peers/write_preprocessing.py

The pictures are noise from `random_weights`, so only the results are stored. Sizes are chosen so that an even number of
pixels is cropped away: for odd ones torchvision, which OpenFlamingo used, and transformers round to different sides.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from random_weights import random_picture
from transformers import CLIPImageProcessor

OUT = Path(__file__).parents[2] / "tests" / "fixtures" / "clip_preprocessing.npz"
SIZE = 28
PICTURES = ((60, 44), (44, 64), (28, 28), (14, 28), (200, 90), (31, 31))  # width, height


def main() -> None:
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    results = {}
    for width, height in PICTURES:
        resized = int(SIZE * max(width, height) / min(width, height))
        assert (resized - SIZE) % 2 == 0, (width, height, resized)
        picture = Image.fromarray(random_picture(7, width, height))
        results[f"{width}x{height}"] = processor(picture, return_tensors="np")["pixel_values"][0].astype(np.float32)
    np.savez_compressed(OUT, **results)
    print(f"wrote {OUT.name}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
