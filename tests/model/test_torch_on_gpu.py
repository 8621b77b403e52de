"""The torch backend on a real NVIDIA GPU, skipped elsewhere. PyTorch alone is needed."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import small_checkpoint

import flamingo_rt
from flamingo_rt import Image
from flamingo_rt.runtime.model import Model

pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no NVIDIA GPU here")
]
PICTURE = Image(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("gpu") / "checkpoint")


def answers(model: Model) -> list[tuple[int, ...]]:
    """Tokens of a batch behind a prefix, of beams, of guessed tokens and of a second answer like the first."""
    prefix = model.prompt([PICTURE, "Output: a red circle"])
    found = []
    for _ in range(2):
        found += model.generate_batch(["Output:", [PICTURE, "how many? Answer:"]], prefix=prefix, max_new_tokens=8)
    for options in ({"beams": 3}, {"speculation": 4}):
        found.append(model.generate([PICTURE, "Output:"], max_new_tokens=8, **options).result())
    return [result.tokens for result in found]


def test_float32_gives_the_tokens_of_the_cpu_captured_or_not(checkpoint, caplog) -> None:
    expected = answers(flamingo_rt.load(checkpoint, "torch"))
    with caplog.at_level(logging.WARNING):
        for cuda_graphs in (True, False):
            model = flamingo_rt.load(checkpoint, "torch", device="cuda", compute="fp32", cuda_graphs=cuda_graphs)
            assert answers(model) == expected
    assert not caplog.messages, "every step was captured"


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_half_precision_replays_what_it_computes(checkpoint, compute) -> None:
    """Tokens may differ from float32's, and not between a step that is computed and one that is replayed."""
    captured, plain = (
        answers(flamingo_rt.load(checkpoint, "torch", device="cuda", compute=compute, cuda_graphs=cuda_graphs))
        for cuda_graphs in (True, False)
    )
    assert captured == plain


def test_memory_is_given_back_with_the_model(checkpoint) -> None:
    model = flamingo_rt.load(checkpoint, "torch", device="cuda")
    answers(model)
    held = torch.cuda.memory_allocated()
    del model
    assert torch.cuda.memory_allocated() < held
