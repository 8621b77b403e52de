"""The benchmark of half precision: its model computes what the model computes, but for what it rounds."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import small_checkpoint

from benchmarks import half_precision
from benchmarks.rounded_model import KINDS, SOFTMAX, RoundedBackend, Rounding, mean, model_in, total
from flamingo_rt import Image
from flamingo_rt.checkpoints import StoredModel, open_checkpoint
from flamingo_rt.model import vit
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.runtime.model import Model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("rounded") / "small")


@pytest.fixture(scope="module")
def stored(checkpoint: Path) -> StoredModel:
    return open_checkpoint(checkpoint)


def shown(stored: StoredModel) -> tuple[torch.Tensor, ...]:
    """A text behind a clip: ids, media_index, pixel values, rows."""
    generator, side = torch.Generator().manual_seed(0), stored.config.vision.image_size
    pixels = torch.randn(1, 2, 3, side, side, generator=generator)
    ids = torch.randint(stored.config.language.vocab_size, (1, 12), generator=generator)
    return ids, torch.ones_like(ids), pixels, torch.zeros(1, 1, dtype=torch.int64)


def logits(stored: StoredModel, dtype: torch.dtype, kept: tuple[str, ...] | None) -> torch.Tensor:
    """``kept`` None: without rounding of our own."""
    model, (ids, index, pixels, rows) = model_in(stored, dtype), shown(stored)
    with torch.no_grad(), contextlib.nullcontext() if kept is None else Rounding(model, dtype, kept):
        return model(ids, index, pixels.to(dtype), rows)[0].float()


def test_norms_and_softmax_written_out_are_those_of_pytorch(stored: StoredModel) -> None:
    exact = logits(stored, torch.float32, None)
    torch.testing.assert_close(exact, stored.load()(*shown(stored))[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(stored, torch.float32, ()), exact, rtol=0, atol=1e-4)


def rounded_engine(stored: StoredModel) -> RoundedBackend:
    """Of a model whose layers are written out, and rounded to float32 alone."""
    model = model_in(stored, torch.float32)
    mode = Rounding(model, torch.float32, KINDS)
    return RoundedBackend(model, torch.float32, lambda: mode)


@pytest.mark.parametrize("speculation", [0, 7])
def test_a_model_without_rounding_answers_as_the_model(checkpoint: Path, stored: StoredModel, speculation: int) -> None:
    tokenizer = TextTokenizer(checkpoint / "tokenizer.json", stored.config.tokens, stored.config.language.vocab_size)
    picture = Image(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    found, expected = (
        Model(engine, stored.config, tokenizer)
        .generate([picture, "Output:"], max_new_tokens=6, speculation=speculation).result().tokens
        for engine in (
            rounded_engine(stored),
            TorchBackend(stored.load()),
        )
    )
    assert found == expected


def test_every_kind_of_layer_is_found(stored: StoredModel) -> None:
    nothing = logits(stored, torch.bfloat16, ())
    for kind in (kind for kind in KINDS if kind != SOFTMAX[vit.Block]):  # this encoder has no attention
        assert not torch.equal(logits(stored, torch.bfloat16, (kind,)), nothing), kind


def test_sums_are_rounded_at_every_pair() -> None:
    ones = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
    assert total(ones).item() == 4096
    assert mean(ones).item() == 1
    uneven = torch.tensor([256.0, 1.0, 1.0], dtype=torch.bfloat16)  # 257 is no number of bfloat16
    assert total(uneven).item() == 256 + 1 - 1


def test_every_row_of_the_table_has_its_figures() -> None:
    costs = [half_precision.Cost(name, 0.99, 0.98, 0.5, 3, None) for name in half_precision.variants()]
    lines = half_precision.table("fp16", costs, 40, 0).splitlines()
    assert len(lines) == 2 + len(costs)
    assert lines[2] == "| nothing | 0.990000 (0.980000) | 0.500 | 3 of 40 |  |"
