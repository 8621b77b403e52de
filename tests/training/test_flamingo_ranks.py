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
from flamingo_rt.training.sharding import World
from flamingo_rt.training.tokenizer_training import train_tokenizer

HERE = Path(__file__).parent


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a checkpoint, ``small``."""
    config = replace(small_config(), language=replace(small_config().language, context=512))
    tokenizer = train_tokenizer(TEXTS, config.language.vocab_size, config.tokens)
    save_checkpoint(tmp_path / "small", small_flamingo(config), tokenizer.to_str())
    return tmp_path


@pytest.mark.slow
def test_two_ranks_give_the_losses_answers_and_checkpoint_of_one_process(folder) -> None:
    other = subprocess.Popen(
        [sys.executable, str(HERE / "second_flamingo_rank.py"), str(folder)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
    )
    try:
        with meeting(folder, 0) as world:
            together = run(folder, "two", world)
    finally:
        _, errors = other.communicate(timeout=60)
        assert other.returncode == 0, errors[-3000:]
    alone = run(folder, "one", World())
    assert [report.losses["scenes"] for report in together] == pytest.approx(
        [report.losses["scenes"] for report in alone], rel=1e-5
    )
    assert together[1].samples == alone[1].samples
    one, two = (load_file(folder / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():  # AdamW makes steps of 1e-3 of gradients that are nearly 0 too
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-4)
