"""How likely a model's captions of its own kind of pictures are. A bundle keeps a low quantile of it: a caption below
is likely one of a picture that the model knows nothing of (`flamingo_rt.runtime.generation_options.GenerationResult`).

The probability is that of the whole caption with its stop token. ``benchmarks/confidence.py`` compares it with others.
Questions are left out: answers are as likely about pictures of other kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flamingo_rt.bundle import QUANTILE, Validation
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError
from flamingo_rt.export.quantization.calibration import parse_prompts, spread
from flamingo_rt.processing.prompt import Part
from flamingo_rt.processing.tasks import caption_prompt
from flamingo_rt.processing.visuals import Image, Visual
from flamingo_rt.runtime.model import Model

CAPTIONS = 1000  # at most
FEWEST = 20  # of fewer there is no 5th percentile
SEED = 5
BATCH = 8


@dataclass(frozen=True)
class ValidationPrompts:
    """Prompts that ask for a caption; ``origin`` says where from."""

    prompts: Sequence[list[Part]]
    origin: str


def scene_captions(config: FlamingoConfig, count: int = CAPTIONS) -> ValidationPrompts:
    """Of drawn scenes that training has not seen. Raises `DependencyError` without scikit-learn, which has the
    digits."""
    from flamingo_rt.training import scenes

    pictures = (scenes.sample(SEED, index, "heldout").image for index in range(count))
    return ValidationPrompts([caption_prompt(config, Image(picture)) for picture in pictures], "about drawn scenes")


def file_captions(config: FlamingoConfig, file: Path) -> ValidationPrompts:
    """Prompts of a file in the form of `flamingo_rt.export.quantization.calibration.read_prompts`: those that end in a
    picture and its caption, each without that caption. A long file is sampled evenly.

    Raises `DataError` for a file that cannot be read or holds fewer than `FEWEST` of them.
    """
    found = [asking for prompt in parse_prompts(file) if (asking := _asking(config, prompt.parts)) is not None]
    if len(found) < FEWEST:
        raise DataError(
            f"{file} holds {len(found)} prompts that end in a picture and {config.prompts.caption!r}: give {FEWEST} or "
            "more, for a 5th percentile"
        )
    return ValidationPrompts(spread(found, CAPTIONS), f"of {file.name}")


def _asking(config: FlamingoConfig, parts: Sequence[Part]) -> list[Part] | None:
    """The prompt without its last caption; None where it ends in something else."""
    visuals = [index for index, part in enumerate(parts) if isinstance(part, Visual)]
    if not visuals:
        return None
    before, text = list(parts[: visuals[-1] + 1]), "".join(parts[visuals[-1] + 1 :])
    return [*before, config.prompts.caption] if text.strip().startswith(config.prompts.caption.strip()) else None


def validate(
    model: Model, validation: ValidationPrompts, on_batch: Callable[[int], None] = lambda done: None
) -> Validation:
    """Caption the pictures, greedily; ``on_batch`` hears how many were captioned."""
    probabilities: list[float] = []
    for start in range(0, len(validation.prompts), BATCH):
        results = model.generate_batch(validation.prompts[start : start + BATCH])
        probabilities += [result.probability for result in results]
        on_batch(len(results))
    return Validation(round(float(np.quantile(probabilities, QUANTILE)), 6), len(probabilities), validation.origin)
