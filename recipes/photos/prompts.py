"""Prompts to calibrate a quantized export with: emoji that training saw, with their names or with new words.

    python -m recipes.photos.prompts
    flamingo-rt export --ckpt runs/photos/joined --quantize int4 --calibration runs/photos/calibration/prompts.jsonl …

Writes ``runs/photos/calibration``: the pictures, and a prompt of six shots a line, of two to four concepts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flamingo_rt.config import PromptsConfig, TokensConfig
from flamingo_rt.errors import DataError, FlamingoError
from flamingo_rt.training.scenes.nonce_words import nonce_words
from recipes.photos import FETCHED, WORK
from recipes.photos.fetch import fetched_folder
from recipes.photos.held_out import side_of
from recipes.photos.named_pictures import NamedPicture, emoji_pictures
from recipes.photos.packages import EMOJI, EMOJI_NAMES
from recipes.photos.views import may_be_flipped, read_picture, view
from recipes.photos.whole_folder import whole_folder

CALIBRATION = WORK / "calibration"
PROMPTS, SHOTS = 80, 6  # prompts; shots of each
SEED = 0


def write_prompts(pictures: Sequence[NamedPicture], folder: Path, count: int = PROMPTS, seed: int = SEED) -> Path:
    """Write ``count`` prompts with views of their pictures into ``folder``; gives the file of prompts. Every second
    names its concepts by new words.

    Raises `DataError` for a picture that cannot be read, and where too few concepts are given.
    """
    by_name = {each.name: each for each in pictures}
    names = sorted(by_name)
    if len(names) < 4:
        raise DataError(f"{len(names)} named pictures cannot make prompts of four concepts: fetch the packages anew")
    caption, end = PromptsConfig(), TokensConfig().end_of_chunk
    rng, lines = np.random.default_rng(seed), []
    with whole_folder(folder) as beside:
        for number in range(count):
            chosen = rng.choice(len(names), int(rng.integers(2, 5)), replace=False)
            words = nonce_words(rng, "train", len(chosen)) if number % 2 else [names[index] for index in chosen]
            prompt: list[object] = []
            for shot in range(SHOTS):
                place = int(rng.integers(len(chosen)))
                file = f"{number:02}-{shot}.jpg"
                shown = by_name[names[chosen[place]]]
                view(read_picture(shown.file), int(rng.integers(1, 6)), [seed, number, shot],
                     may_be_flipped(shown.name)).save(beside / file, quality=90)
                prompt += [{"image": file}, f"{caption.caption}{caption.answer_separator}{words[place]}{end}"]
            lines.append(json.dumps(prompt))
        (beside / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "prompts.jsonl"


def trained_emoji(fetched: Path = FETCHED) -> list[NamedPicture]:
    """The emoji whose head nouns are not held out. Raises `DataError` where their packages were not fetched."""
    found = emoji_pictures(fetched_folder(EMOJI, fetched), fetched_folder(EMOJI_NAMES, fetched))
    return [each for each in found if side_of(each.name) == "train"]


def main() -> int:
    """Write the prompts; gives the exit code."""
    try:
        file = write_prompts(trained_emoji(), CALIBRATION)
    except FlamingoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {file}: {PROMPTS} prompts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
