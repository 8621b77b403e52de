"""Memory that a model would take, reckoned before it is made or loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

import flamingo_rt
from flamingo_rt import loading, model_memory
from flamingo_rt.bench.random_bundle import RandomBundle
from flamingo_rt.bundle import read_bundle
from flamingo_rt.errors import DataError
from flamingo_rt.loading import PACKAGED_BUNDLE
from flamingo_rt.memory_plan import GPU, JETSON, Workload, plan_memory
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


@pytest.fixture
def machine(monkeypatch):
    """Sets how much memory a bundle finds when it is loaded, in bytes; None is not known."""
    return lambda count: monkeypatch.setattr(loading, "available_bytes", lambda: count)


def test_a_bundle_is_not_loaded_where_it_cannot_answer_about_a_picture(machine):
    needed = plan_memory(read_bundle(PACKAGED_BUNDLE), Workload()).sure
    machine(needed - 1)
    with pytest.raises(DataError, match=r"at least \d\d\.\d MB of memory \(its weights 12\.\d MB; .*are available"):
        flamingo_rt.load(backend="ort")
    machine(needed)
    flamingo_rt.load(backend="ort", threads=1)
    machine(None)
    flamingo_rt.load(backend="ort", threads=1)


def test_a_bundle_is_not_loaded_where_what_it_is_loaded_for_does_not_fit(machine, monkeypatch):
    """Not a graph is opened. More pictures and tokens than the model allows are refused later, by the model."""
    workload, bundle = Workload(rows=8, pictures=30, tokens=900, answer=100), read_bundle(PACKAGED_BUNDLE)
    monkeypatch.setattr("flamingo_rt.engines.ort.OrtBackend", None)
    machine(plan_memory(bundle, Workload(rows=3, pictures=30, tokens=900, answer=100)).sure)
    with pytest.raises(DataError, match=r"for 8 rows of 900 tokens and 30 pictures .*: 3 rows or beams would fit"):
        flamingo_rt.load(backend="ort", workload=workload)
    machine(1)
    with pytest.raises(DataError, match=r"of 1,024 tokens and 40 pictures"):
        flamingo_rt.load(backend="ort", workload=Workload(pictures=50, tokens=3000, answer=2000))


class Shown:
    """A GPU as the driver shows it."""

    def __init__(self, memory_bytes: int, integrated: bool) -> None:
        self.memory_bytes, self.integrated = memory_bytes, integrated


def test_a_gpu_is_asked_for_its_own_memory_and_one_without_for_the_machine_s(machine):
    bundle, workload = read_bundle(PACKAGED_BUNDLE), Workload(tokens=300)
    own, shared = (plan_memory(bundle, workload, device).sure for device in (GPU, JETSON))
    machine(shared)
    loading._require_gpu_memory(bundle, Shown(own, integrated=False), workload)
    loading._require_gpu_memory(bundle, Shown(1, integrated=True), workload)
    with pytest.raises(DataError, match="on the GPU needs"):
        loading._require_gpu_memory(bundle, Shown(own - 1, integrated=False), workload)
    machine(shared - 1)
    with pytest.raises(DataError, match="on the GPU needs"):
        loading._require_gpu_memory(bundle, Shown(10**12, integrated=True), workload)


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
