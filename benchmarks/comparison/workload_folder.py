"""The prompts that every system answers: captions of random pictures, after 0 to 32 shots, as texts and as token ids.

Written once into the work folder: ``workload.json``, the pictures as PNG files in the encoder's size, so that nobody
resizes them, and our pixel values of them, which the peers compare with theirs. With the byte-level tokenizer of the
random sources the query is 31 tokens long and each shot 32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from tokenizers import Tokenizer

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.processing.preprocess import visual_pixels
from flamingo_rt.processing.visuals import Image

DESCRIPTION = "workload.json"
QUERY = "Describe this picture. Output:"
SHOTS = (0, 1, 4, 8, 16, 32)
SEED = 20_261_123
GRAIN = 6  # colours along a side of a picture; in finer noise an encoder sees no difference
# 23 bytes each with "Output:" before: a shot is 32 tokens with its picture and its end of chunk.
CAPTIONS = (
    "a red star and a circle", "two dogs on a beach run", "an old bridge at sunset", "a bowl of green apples.",
    "a boy with a kite jumps", "the market in the rain.", "a cat asleep on a chair", "three boats near a pier",
)


def shot_text(config: FlamingoConfig, number: int) -> str:
    """The text of a shot behind its picture, with its end of chunk."""
    return f"Output:{CAPTIONS[number % len(CAPTIONS)]}{config.tokens.end_of_chunk}"


def case_parts(config: FlamingoConfig, shots: int) -> list[dict[str, Any]]:
    """Pictures by number and texts, in reading order. The query's picture is number 0, shots have the next ones."""
    parts: list[dict[str, Any]] = []
    for number in range(shots):
        parts += [{"picture": number + 1}, {"text": shot_text(config, number)}]
    return [*parts, {"picture": 0}, {"text": QUERY}]


def written(config: FlamingoConfig, parts: Sequence[dict[str, Any]]) -> str:
    """The prompt as one text, as it is tokenized."""
    return "".join(part.get("text", config.tokens.image) for part in parts)


def write_workload(config: FlamingoConfig, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder, unless it is there. ``tokenizer`` has OpenFlamingo's tokens added."""
    if (folder / DESCRIPTION).is_file():
        return
    size, rng = config.vision.image_size, np.random.default_rng(SEED)
    grains = [rng.integers(0, 256, (GRAIN, GRAIN, 3), dtype=np.uint8) for _ in range(max(SHOTS) + 1)]
    pictures = [PIL.Image.fromarray(grain).resize((size, size), PIL.Image.Resampling.BICUBIC) for grain in grains]
    cases = []
    for shots in SHOTS:
        parts = case_parts(config, shots)
        ids = tokenizer.encode(written(config, parts), add_special_tokens=False).ids
        cases.append({"shots": shots, "parts": parts, "input_ids": ids, "pictures": shown(parts)})
    write_folder(folder, config, tokenizer, pictures, cases)


def shown(parts: Sequence[dict[str, Any]]) -> list[int]:
    """The numbers of the pictures in the prompt, in reading order."""
    return [part["picture"] for part in parts if "picture" in part]


def write_folder(
    folder: Path, config: FlamingoConfig, tokenizer: Tokenizer, pictures: Sequence[PIL.Image.Image],
    cases: Sequence[dict[str, Any]],
) -> None:
    """Pictures, our pixel values of them and the description, which is last: a folder that has it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"picture-{number:02}.png" for number in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        picture.save(folder / name)
    pixels = [visual_pixels(Image(folder / name), config)[0] for name in names]
    np.save(folder / "pixels.npy", np.stack(pixels))
    tokens = {name: tokenizer.token_to_id(getattr(config.tokens, name)) for name in ("image", "end_of_chunk", "pad")}
    workload = {
        "image_size": config.vision.image_size, "mean": config.preprocessing.mean, "std": config.preprocessing.std,
        "pictures": names, "pixels": "pixels.npy", "tokens": tokens | {"rows": config.language.vocab_size},
        "cases": list(cases),
    }
    (folder / DESCRIPTION).write_text(json.dumps(workload), encoding="utf-8")
