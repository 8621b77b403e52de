"""Validation: the probability that a model gives its captions of its own kind of pictures.

A bundle records a low quantile of it: a caption below it is likely about a picture unlike those the model was trained
on (`flamingo_rt.runtime.generation_options.GenerationResult`). The probability is that of the whole caption with its
stop token; ``benchmarks/confidence.py`` compares it with other measures. Questions are left out: their answers are as
probable about pictures of other kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flamingo_rt.bundle import QUANTILE, Validation
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError
from flamingo_rt.export.quantization.calibration import parse_prompts, sample_evenly
from flamingo_rt.processing.prompt import Part
from flamingo_rt.processing.tasks import caption_prompt
from flamingo_rt.processing.visuals import Image, Visual
from flamingo_rt.runtime.model import Model

CAPTIONS = 1000  # at most
FEWEST = 20  # fewer have no 5th percentile
SEED = 5
BATCH = 8


@dataclass(frozen=True)
class ValidationPrompts:
    """Prompts that ask for a caption; ``origin`` completes "1000 captions …" in records."""

    prompts: Sequence[list[Part]]
    origin: str


def scene_captions(config: FlamingoConfig, count: int = CAPTIONS) -> ValidationPrompts:
    """Ask for captions of drawn scenes that training has not seen. Raises `DependencyError` without scikit-learn, whose
    digits the scenes show."""
    from flamingo_rt.training import scenes

    pictures = (scenes.sample(SEED, index, "heldout").image for index in range(count))
    return ValidationPrompts([caption_prompt(config, Image(picture)) for picture in pictures], "about drawn scenes")


def file_captions(config: FlamingoConfig, file: Path) -> ValidationPrompts:
    """Read prompts as in `flamingo_rt.export.quantization.calibration.read_prompts`, keep those that end in a picture
    and its caption, and drop that caption. A long file is sampled evenly.

    Raises `DataError` for a file that cannot be read or holds fewer than `FEWEST` of them.
    """
    found = [asking for prompt in parse_prompts(file) if (asking := _asking(config, prompt.parts)) is not None]
    if len(found) < FEWEST:
        raise DataError(
            f"{file} holds {len(found)} prompts that end in a picture and {config.prompts.caption!r}: give {FEWEST} or "
            "more, for a 5th percentile"
        )
    return ValidationPrompts(sample_evenly(found, CAPTIONS), f"of {file.name}")


def _asking(config: FlamingoConfig, parts: Sequence[Part]) -> list[Part] | None:
    """Drop the caption at the end of a prompt; None for a prompt that ends in something else."""
    visuals = [index for index, part in enumerate(parts) if isinstance(part, Visual)]
    if not visuals:
        return None
    before = list(parts[: visuals[-1] + 1])
    text = "".join(part for part in parts[visuals[-1] + 1 :] if isinstance(part, str))
    return [*before, config.prompts.caption] if text.strip().startswith(config.prompts.caption.strip()) else None


def validate(
    model: Model, validation: ValidationPrompts, on_batch: Callable[[int], None] = lambda done: None
) -> Validation:
    """Caption the pictures greedily. ``on_batch`` is called with the number of captions of each batch."""
    probabilities: list[float] = []
    for start in range(0, len(validation.prompts), BATCH):
        results = model.generate_batch(validation.prompts[start : start + BATCH])
        probabilities += [result.probability for result in results]
        on_batch(len(results))
    return Validation(round(float(np.quantile(probabilities, QUANTILE)), 6), len(probabilities), validation.origin)
