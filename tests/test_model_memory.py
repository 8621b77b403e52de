"""Memory that a model would take, reckoned before it is made or loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import flamingo_rt
from flamingo_rt import model_memory
from flamingo_rt.bench.random_bundle import RandomBundle
from flamingo_rt.bundle import read_bundle
from flamingo_rt.errors import DataError
from flamingo_rt.loading import PACKAGED_BUNDLE, weights_bytes
from flamingo_rt.model_memory import TRAINING, require_memory
from flamingo_rt.presets import preset
from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.loop import train
from flamingo_rt.training.options import DataOptions, FlamingoOptions, RunOptions
from flamingo_rt.training.sharding import World


@pytest.fixture
def available(monkeypatch):
    """Sets how much memory there is, in bytes; None is not known."""
    return lambda count: monkeypatch.setattr(model_memory, "available_bytes", lambda: count)


def test_a_model_that_does_not_fit_is_refused_with_both_figures(available):
    available(24_000_000_000)
    with pytest.raises(DataError, match=r"training needs at least 51.\d GB .*3,2\d\d.\dM .*24.0 GB are available"):
        require_memory(preset("flamingo-3b"), TRAINING, "training")
    available(52_000_000_000)
    require_memory(preset("flamingo-3b"), TRAINING, "training")


def test_nothing_is_refused_where_it_is_not_known_how_much_there_is(available):
    available(None)
    require_memory(preset("flamingo-80b"), TRAINING, "training")


def test_a_bundle_is_not_loaded_where_its_weights_do_not_fit(available):
    needed = weights_bytes(read_bundle(PACKAGED_BUNDLE))
    available(needed - 1)
    with pytest.raises(DataError, match=r"12\.\d MB of memory \(its weights.*are available"):
        flamingo_rt.load(backend="ort")
    available(needed)
    flamingo_rt.load(backend="ort", threads=1)


def test_weights_in_half_precision_take_twice_their_file(tmp_path: Path):
    shutil.copytree(PACKAGED_BUNDLE, tmp_path / "bundle")
    bundle = read_bundle(tmp_path / "bundle")
    stored = sum(file.stat().st_size for file in bundle.path.glob("*.data"))
    assert weights_bytes(bundle) == stored
    for entry in bundle.graphs.values():
        object.__setattr__(entry, "dtype", "bfloat16")
    assert weights_bytes(bundle) == 2 * stored
    for entry in bundle.graphs.values():
        object.__setattr__(entry, "compute", "bfloat16")
    assert weights_bytes(bundle) == stored


def test_a_training_step_that_does_not_fit_is_refused_before_it_begins(available, tmp_path: Path, monkeypatch):
    free = [10_000_000_000, 90_000_000]  # for the model's parameters, then for a step
    monkeypatch.setattr("flamingo_rt.model_memory.available_bytes", lambda: free.pop(0))
    options = FlamingoOptions(RunOptions(steps=1, workers=0), (DataOptions("scenes", questions=16),),
                              unfreeze=("vision", "language"))
    stage = open_flamingo_stage(options, World())
    with pytest.raises(DataError, match=r"a training step needs at least .* of activations, .*lower the batch"):
        train(stage, options.run, tmp_path / "out", World())
    assert not list(tmp_path.iterdir())


def test_a_random_bundle_that_could_not_be_run_is_not_made(available, tmp_path: Path):
    available(1_000_000_000)
    with pytest.raises(DataError, match=r"running flamingo-3b needs at least 1.6 GB"):
        RandomBundle("flamingo-3b", quantize="int4", work=tmp_path / "work").make(print)
    assert not (tmp_path / "work").exists()
