"""Prompts for quantization: some to calibrate with, others to measure its cost on.

They come from a file, or are captions of and questions about drawn scenes, for a model trained on those.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from flamingo_rt.bounded_files import read_text
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError
from flamingo_rt.processing.prompt import Part
from flamingo_rt.processing.tasks import caption_shot, question_shot
from flamingo_rt.processing.visuals import Image

CALIBRATED = 64  # most prompts to calibrate with: all are in memory at once, with PyTorch's activations for them
MEASURED = 16  # most prompts to measure on
MEASURE_EVERY = 4  # every fourth prompt of a file is measured on
MOST_BYTES = 100_000_000  # of a file of prompts; pictures are in files of their own
SEED = 4
T = TypeVar("T")


@dataclass(frozen=True)
class CalibrationPrompt:
    """A prompt with its answer; ``place`` names its file and line in messages."""

    parts: list[Part]
    place: str


@dataclass(frozen=True)
class Calibration:
    """Prompts to calibrate with, and others to measure on; ``origin`` completes "64 prompts …" in records."""

    calibrate: list[CalibrationPrompt]
    measure: list[CalibrationPrompt]
    origin: str

    @property
    def source(self) -> str:
        """Describe the calibration prompts."""
        return f"{len(self.calibrate)} prompts {self.origin}"

    @property
    def measured_source(self) -> str:
        """Describe the prompts to measure on."""
        return f"{len(self.measure)} prompts {self.origin}"


def drawn_scenes(config: FlamingoConfig) -> Calibration:
    """Draw prompts of one or two scenes, each with a caption, or a question and its answer: for models of `flamingo-rt
    train`. Raises `DependencyError` without scikit-learn, whose digits the scenes show."""
    return Calibration(
        _scenes(config, "train", CALIBRATED), _scenes(config, "heldout", MEASURED), "about drawn scenes"
    )


def _scenes(config: FlamingoConfig, split: Literal["train", "heldout"], count: int) -> list[CalibrationPrompt]:
    from flamingo_rt.training import scenes

    rng = np.random.default_rng(SEED)
    prompts = []
    for index in range(count):
        parts: list[Part] = []
        for shot in range(1 + index % 2):
            sample = scenes.sample(SEED, 2 * index + shot, split)
            if (index // 2) % 2:
                question = scenes.questions(sample.scene, rng, 1)[0]
                parts += question_shot(config, Image(sample.image), question.text, question.answer)
            else:
                parts += caption_shot(config, Image(sample.image), sample.caption)
        prompts.append(CalibrationPrompt(parts, f"drawn scenes, prompt {index + 1}"))
    return prompts


def read_prompts(file: Path) -> Calibration:
    """Read a file of JSON lines, one prompt each: a list of texts and of pictures, ``{"image": "a.png"}``, with paths
    relative to the file's folder. A prompt should end with its answer. A long file is sampled evenly.

    Raises `DataError` for a file that cannot be read, one with fewer than two prompts, and a line that is not such a
    list.
    """
    prompts = parse_prompts(file)
    if len(prompts) < 2:
        raise DataError(
            f"{file} holds {len(prompts)} calibration prompts: give two or more, one to measure with, each on a line "
            f"such as {_EXAMPLE}"
        )
    measure = prompts[::MEASURE_EVERY]
    calibrate = [prompt for index, prompt in enumerate(prompts) if index % MEASURE_EVERY]
    return Calibration(
        sample_evenly(calibrate, CALIBRATED), sample_evenly(measure, MEASURED), f"of {file.name}"
    )


def parse_prompts(file: Path) -> list[CalibrationPrompt]:
    """Read all prompts of a file. Raises `DataError` when it cannot be read, or for a line that is not a prompt."""
    lines = read_text(file, MOST_BYTES, "prompts").split("\n")
    return [_prompt(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def sample_evenly(prompts: list[T], most: int) -> list[T]:
    """Pick at most ``most`` prompts at even distances."""
    return [prompts[index * len(prompts) // most] for index in range(most)] if len(prompts) > most else prompts


_EXAMPLE = '[{"image": "a.png"}, "Output: a red star<|endofchunk|>"]'


def _prompt(file: Path, number: int, line: str) -> CalibrationPrompt:
    place = f"{file}, line {number}"
    try:
        listed = json.loads(line)
        if not isinstance(listed, list) or not listed:
            raise ValueError("not a list")
        return CalibrationPrompt([_part(file, part) for part in listed], place)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: {error}; a prompt is a list such as {_EXAMPLE}") from error


def _part(file: Path, part: Any) -> Part:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and list(part) == ["image"] and isinstance(part["image"], str):
        return Image(file.parent / part["image"])
    raise ValueError(f"{json.dumps(part)[:80]} is neither a text nor a picture")
