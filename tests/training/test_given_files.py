"""Frozen weights that are replaced during a run: their result would hold another encoder than it was trained with."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
from captioned_run import captioned_run
from small_model import small_checkpoint

from flamingo_rt.errors import DataError
from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.loop import train
from flamingo_rt.training.sharding import World
from flamingo_rt.training.state import saved_step, state_path


def test_no_result_is_written_with_other_weights_than_the_run_was_trained_on(tmp_path) -> None:
    options = captioned_run(tmp_path / "made")
    options = replace(options, run=replace(options.run, steps=2))
    model, kept, out = tmp_path / "made" / "model", tmp_path / "kept", tmp_path / "out"

    def replace_model(report) -> None:
        if report.step == 1:
            model.rename(kept)
            small_checkpoint(model)

    with pytest.raises(DataError, match=r"model\.safetensors was replaced or changed while this run"):
        train(open_flamingo_stage(options, World()), options.run, out, World(), on_step=replace_model)
    assert not out.exists()
    assert saved_step(state_path(out)) == 2
    shutil.rmtree(model)
    kept.rename(model)
    train(open_flamingo_stage(options, World()), options.run, out, World(), resume=True)
    assert out.exists()


def test_a_file_that_is_written_again_in_its_place_is_another(tmp_path) -> None:
    options = captioned_run(tmp_path / "made")
    stage = open_flamingo_stage(options, World())
    file = tmp_path / "made" / "model" / "model.safetensors"
    changed = file.stat().st_mtime_ns + 1_000_000
    with file.open("r+b") as opened:
        opened.write(file.read_bytes())
    os.utime(file, ns=(changed, changed))
    with pytest.raises(DataError, match="was replaced or changed"):
        stage.write(tmp_path / "out", overwrite=False)
