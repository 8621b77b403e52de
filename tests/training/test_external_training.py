"""Stage 3 on an external encoder: it stays as it is, with and without kept features, and a run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from captioned_run import reports_of
from made_data import captions
from made_encoders import Encoder, external_checkpoint, imported

from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.errors import UsageError
from flamingo_rt.presets import PRESETS
from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.loop import train
from flamingo_rt.training.options import DataOptions, FlamingoOptions, RunOptions
from flamingo_rt.training.run_log import StepReport
from flamingo_rt.training.sharding import World

RUN = RunOptions(steps=4, learning_rate=5e-4, warmup_steps=2, workers=0, save_seconds=1e9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, a checkpoint with another one, and captioned pictures."""
    folder = tmp_path_factory.mktemp("external")
    imported(folder)
    external_checkpoint(folder / "model", imported(folder, Encoder("tokens", seed=1), "other"))
    captions(folder / "pictures", 10)
    return folder


@pytest.fixture
def options(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FlamingoOptions:
    """Stage 3 on the imported encoder and the language model of a checkpoint."""
    monkeypatch.setitem(PRESETS, "small", lambda: open_checkpoint(folder / "model").config)
    return FlamingoOptions(
        run=RUN, data=(DataOptions(str(folder / "pictures"), batch=4),), preset="small", vision=str(folder / "encoder"),
        language=str(folder / "model"),
    )


def test_a_run_keeps_the_graph_and_one_with_kept_features_learns_the_same(
    options: FlamingoOptions, folder: Path, tmp_path: Path
) -> None:
    started = open_flamingo_stage(options, World())
    before = {name: values.clone() for name, values in started.model.model.state_dict().items()}
    plain = reports_of(options, tmp_path / "plain")
    kept = reports_of(replace(options, cache_features=str(tmp_path / "features")), tmp_path / "kept")
    assert list((tmp_path / "features").rglob("*.npy"))
    for one, other in zip(plain, kept, strict=True):
        assert other.losses == pytest.approx(one.losses, rel=2e-3)  # features are kept in float16
    for name in ("plain", "kept"):
        written = open_checkpoint(tmp_path / name)
        found = {name: tensor.read() for name, tensor in written.tensors.items()}
        graph = found["vision.graph"].numpy().tobytes()
        assert graph == before["vision.graph"].numpy().tobytes()
        assert (folder / "encoder" / "model.safetensors").read_bytes().endswith(graph)
        assert not torch.equal(found["resampler.latents"], before["resampler.latents"])


def test_a_run_goes_on_as_if_it_had_never_ended(options: FlamingoOptions, tmp_path: Path) -> None:
    def broken_off(report: StepReport) -> None:
        if report.step == 3:
            raise RuntimeError("broken off")

    whole = reports_of(options, tmp_path / "whole")
    run, out, seen = replace(options.run, save_seconds=1e-9), tmp_path / "broken", []
    with pytest.raises(RuntimeError, match="broken off"):
        train(open_flamingo_stage(options, World()), run, out, World(), on_step=broken_off)
    train(open_flamingo_stage(options, World()), options.run, out, World(), resume=True, on_step=seen.append)
    assert 0 < len(seen) < len(whole)
    assert [report.losses for report in seen] == [report.losses for report in whole[-len(seen):]]
    one, other = open_checkpoint(tmp_path / "whole"), open_checkpoint(out)
    assert all(torch.equal(tensor.read(), other.tensors[name].read()) for name, tensor in one.tensors.items())


def test_it_is_not_trained(options: FlamingoOptions, folder: Path) -> None:
    for start in (options, replace(options, vision=None, language=None, start_from=str(folder / "model"))):
        with pytest.raises(UsageError, match="external graph, which is not trained: leave vision out of unfreeze"):
            open_flamingo_stage(replace(start, unfreeze=("vision",)), World())
    stage = open_flamingo_stage(options, World())
    assert not [name for name, parameter in stage.model.named_parameters() if name.startswith("vision")]


def test_a_checkpoint_with_one_trains_on(options: FlamingoOptions, folder: Path, tmp_path: Path) -> None:
    start = replace(options, vision=None, language=None, start_from=str(folder / "model"), lora=2,
                    run=replace(RUN, precision="bf16", steps=2))
    assert len(reports_of(start, tmp_path / "out")) == 2
    one, other = (open_checkpoint(path).tensors["vision.graph"].read() for path in (folder / "model", tmp_path / "out"))
    assert torch.equal(one, other)
