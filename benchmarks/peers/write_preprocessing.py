"""Outputs of transformers' CLIPImageProcessor: ``tests/fixtures/clip_preprocessing.npz``, with the settings
that released encoders have, and ``clip_processors.npz``, with combinations of all settings that change the pixels.

    benchmarks/peers/.venv/bin/python -m benchmarks.peers.write_preprocessing

The pictures are noise from `random_weights`, so only the results are stored. Sizes are chosen so that an even number of
pixels is cropped away: for odd ones torchvision, which OpenFlamingo used, and transformers round to different sides.
The second file was written with transformers 5.24.0; it needs Pillow and numpy beside it, no torch.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessor

from benchmarks.peers.random_weights import random_picture

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures"
SIZE = 28
PICTURES = ((60, 44), (44, 64), (28, 28), (14, 28), (200, 90), (31, 31))  # width, height

SMALL = 8
SMALL_PICTURES = ((30, 20), (20, 45))
SQUARE = {"height": SMALL, "width": SMALL}
# One of each group makes a combination.
SIZES = (
    {"size": {"shortest_edge": SMALL}, "crop_size": SQUARE},
    {"size": SMALL, "crop_size": SMALL},
    {"size": SQUARE, "crop_size": SQUARE},
    {"size": SQUARE, "do_center_crop": False},
    {"size": SMALL, "crop_size": SQUARE, "default_to_square": True},
)
RESAMPLES = tuple({"resample": number} for number in range(6))
RESCALES = ({}, {"rescale_factor": 1 / 127.5}, {"do_rescale": False})
NORMS = ({}, {"do_normalize": False}, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})


def main() -> None:
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    results = {}
    for width, height in PICTURES:
        results[f"{width}x{height}"] = processed(processor, width, height, SIZE)
    save("clip_preprocessing.npz", results)
    results = {}
    for number, groups in enumerate(itertools.product(SIZES, RESAMPLES, RESCALES, NORMS)):
        settings = {key: value for group in groups for key, value in group.items()}
        width, height = SMALL_PICTURES[number % 2]
        name = json.dumps({"picture": [width, height], "settings": settings})
        results[name] = processed(CLIPImageProcessor(**settings), width, height, SMALL)
    save("clip_processors.npz", {"names": np.array(list(results)), "pixel_values": np.stack(list(results.values()))})


def processed(processor: CLIPImageProcessor, width: int, height: int, size: int) -> np.ndarray:
    resized = int(size * max(width, height) / min(width, height))
    assert (resized - size) % 2 == 0, (width, height, resized)
    picture = Image.fromarray(random_picture(7, width, height))
    return processor(picture, return_tensors="np")["pixel_values"][0].astype(np.float32)


def save(name: str, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(FIXTURES / name, **arrays)
    print(f"wrote {name}: {(FIXTURES / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
