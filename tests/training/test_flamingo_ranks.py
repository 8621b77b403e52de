"""Stage 3 in two ranks on CPUs, over gloo: the losses, the answers and the checkpoint of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_pairs import meeting
from safetensors.torch import load_file
from second_flamingo_rank import run
from small_model import TEXTS, small_config, small_flamingo

from flamingo_rt.checkpoints import save_checkpoint
from flamingo_rt.training.run_log import StepReport
from flamingo_rt.training.sharding import World
from flamingo_rt.training.tokenizer_training import train_tokenizer

HERE = Path(__file__).parent


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a checkpoint, ``small``."""
    return with_checkpoint(tmp_path)


def with_checkpoint(tmp_path: Path, first: int = 0, tied_head: bool = False) -> Path:
    """The folder, with a model whose cross-attention begins at layer ``first``."""
    small = small_config()
    config = replace(small, language=replace(small.language, context=512, tied_head=tied_head),
                     cross_attention=replace(small.cross_attention, first=first))
    tokenizer = train_tokenizer(TEXTS, config.language.vocab_size, config.tokens)
    save_checkpoint(tmp_path / "small", small_flamingo(config), tokenizer.to_str())
    return tmp_path


def together_and_alone(folder: Path, kind: str) -> tuple[list[StepReport], list[StepReport]]:
    """The reports of two ranks, which write ``folder/two``, and of one process, which writes ``folder/one``."""
    other = subprocess.Popen(
        [sys.executable, str(HERE / "second_flamingo_rank.py"), str(folder), kind], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
    )
    try:
        with meeting(folder, 0) as world:
            together = run(folder, "two", world, kind)
    finally:
        _, errors = other.communicate(timeout=60)
        assert other.returncode == 0, errors[-3000:]
    return together, run(folder, "one", World(), kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "output"])
def test_two_ranks_give_the_losses_answers_and_checkpoint_of_one_process(tmp_path, kind) -> None:
    # With output, no gradient reaches layers 0 and 1.
    folder = with_checkpoint(tmp_path, first=2, tied_head=True) if kind == "output" else with_checkpoint(tmp_path)
    together, alone = together_and_alone(folder, kind)
    assert [report.losses["scenes"] for report in together] == pytest.approx(
        [report.losses["scenes"] for report in alone], rel=1e-5
    )
    assert together[1].samples == alone[1].samples
    one, two = (load_file(folder / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():  # AdamW makes steps of 1e-3 of gradients that are nearly 0 too
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_two_ranks_train_an_unfrozen_embedding_with_bfloat16(folder) -> None:
    together, alone = together_and_alone(folder, "embedding")
    assert [report.losses["scenes"] for report in together] == pytest.approx(
        [report.losses["scenes"] for report in alone], rel=0.01
    )
    one, two = (load_file(folder / name / "model.safetensors") for name in ("one", "two"))
    assert list(one) == list(two)
    assert all(tensor.dtype == two[name].dtype == torch.float32 for name, tensor in one.items())
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items()
               if name.startswith(("vision", "language.layers")))
