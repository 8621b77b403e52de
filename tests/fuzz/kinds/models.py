"""The models behind several kinds: the one in the package, and a small one with random weights."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

import flamingo_rt
from flamingo_rt import Image
from flamingo_rt.loading import PACKAGED_BUNDLE
from flamingo_rt.runtime.model import Model

from ..kind import WrongAnswer

FILES = sorted(file.name for file in PACKAGED_BUNDLE.iterdir())
PICTURE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)


@functools.cache
def packaged() -> Model:
    """The model in the package, opened once in a child."""
    return flamingo_rt.load(backend="ort", threads=1)


def answer(model: Model, prefix: object = None) -> None:
    """Let a model write two tokens about a picture, and check what its answer promises."""
    result = model.generate([Image(PICTURE), "Output:"], prefix=prefix, max_new_tokens=2).result()
    if not all(0 <= token < model.config.language.vocab_size for token in result.tokens):
        raise WrongAnswer(f"tokens {result.tokens} of {model.config.language.vocab_size}")
    if not all(value <= 1e-6 for value in result.logprobs):  # NaN too
        raise WrongAnswer(f"log-probabilities {result.logprobs}")


def packaged_files(*names: str) -> dict[str, bytes]:
    """Files of the bundle in the package."""
    return {name: (PACKAGED_BUNDLE / name).read_bytes() for name in names}


def copied(folder: Path) -> Path:
    """A copy of the bundle in the package."""
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes((PACKAGED_BUNDLE / name).read_bytes())
    return folder
