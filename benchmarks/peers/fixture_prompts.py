"""The prompts of a case: random tokens around media tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers.openflamingo_cases import END_OF_CHUNK, MEDIA, PAD, ROWS, VISION, Case
from benchmarks.peers.random_weights import random_pixels, random_tokens

# Rows of each prompt: t a random token, i an image, e the end of a chunk.
PROMPTS = {
    "leading": ["ittttttttt"],
    "text_first": ["tttitteitteittt"],
    "five": ["itteiteiteiteitt"],
    "batch": ["titttttttt", "ittteitttttt", "itteiteiteittt"],
}


@dataclass(frozen=True)
class Row:
    """``input_ids``, and the numbers of its pictures for `random_pixels`."""

    input_ids: list[int]
    pixels: list[int]


def make_rows(case: Case, prompt: str, attempt: int) -> list[Row]:
    """The rows of a prompt; pictures have numbers that no other row uses."""
    names = list(PROMPTS)
    first = sum(len(PROMPTS[name]) for name in names[: names.index(prompt)])
    made = []
    for index, pattern in enumerate(PROMPTS[prompt]):
        tokens = random_tokens(case.seed, f"{prompt} {index} {attempt}", len(pattern), ROWS)
        special = {"i": MEDIA, "e": END_OF_CHUNK}
        ids = [special.get(letter, token) for letter, token in zip(pattern, tokens, strict=True)]
        made.append(Row(ids, [10 * (first + index) + image for image in range(pattern.count("i"))]))
    return made


def pixel_tensor(case: Case, rows: list[Row]) -> Tensor:
    """[B, images, 1, 3, H, W]; rows with fewer images end with zeros, as in OpenFlamingo's evaluation."""
    size = VISION["image_size"]
    pixels = torch.zeros(len(rows), max(len(row.pixels) for row in rows), 1, 3, size, size)
    for index, row in enumerate(rows):
        for image, number in enumerate(row.pixels):
            pixels[index, image, 0] = torch.from_numpy(random_pixels(case.seed, number, size))
    return pixels


def padded(rows: list[Row], left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [B, T]."""
    length = max(len(row.input_ids) for row in rows)
    ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        start = length - len(row.input_ids) if left else 0
        ids[index, start : start + len(row.input_ids)] = torch.tensor(row.input_ids)
        mask[index, start : start + len(row.input_ids)] = 1
    return ids, mask
