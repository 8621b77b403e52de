"""Bundles of a preset's shape: where they are kept, and that they are made once."""

from __future__ import annotations

from pathlib import Path

import pytest

import flamingo_rt.export.pipeline as pipeline
from flamingo_rt import __version__
from flamingo_rt.bench import random_bundle
from flamingo_rt.bench.random_bundle import RandomBundle, default_work, stored_bytes
from flamingo_rt.bundle import FORMAT_VERSION
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.model.parameters import count_parameters
from flamingo_rt.presets import preset


def test_every_form_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = {
        RandomBundle(name, dtype, quantize, tmp_path).path.name
        for name in ("tiny", "flamingo-3b") for dtype in ("fp32", "bf16") for quantize in (None, "int8")
    }
    folders |= {RandomBundle("tiny", compute, None, tmp_path, compute).path.name for compute in ("fp16", "bf16")}
    assert len(folders) == 10
    assert RandomBundle("tiny", work=tmp_path).path == tmp_path / f"tiny-fp32-{__version__}-{FORMAT_VERSION}"


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown preset 'huge'; known: tiny"):
        RandomBundle("huge")


@pytest.mark.parametrize(
    ("platform", "variable", "end"),
    [("linux", "XDG_CACHE_HOME", "flamingo-rt/bench"), ("win32", "LOCALAPPDATA", "flamingo-rt/bench")],
)
def test_the_users_cache_is_the_default(monkeypatch, tmp_path: Path, platform: str, variable: str, end: str) -> None:
    monkeypatch.setattr(random_bundle.sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert default_work() == tmp_path / end
    monkeypatch.delenv(variable)
    assert default_work().is_relative_to(Path.home())
    monkeypatch.setattr(random_bundle.sys, "platform", "darwin")
    assert default_work() == Path.home() / "Library" / "Caches" / end


def test_the_size_is_reported_and_checked_before_anything_is_written(monkeypatch, tmp_path: Path) -> None:
    told, made = [], []
    monkeypatch.setattr(pipeline, "export_model", lambda model, out, **options: made.append((model, out, options)))
    bundle = RandomBundle("openflamingo-3b", "bf16", work=tmp_path / "work", lowering="tensorrt")
    bundle.make(told.append)
    assert f"about {stored_bytes(preset('openflamingo-3b'), 'bf16') / 1e9:.2f} GB" in told[0]
    assert str(bundle.path) in told[0]
    ((model, out, options),) = made
    assert (model.config.name, out) == ("openflamingo-3b", bundle.path)
    assert (options["dtype"], options["compute"], options["lowering"]) == ("bf16", "fp32", "tensorrt")
    assert not list(tmp_path.iterdir())


def test_the_stored_size_is_that_of_all_parameters() -> None:
    assert stored_bytes(preset("flamingo-3b"), "fp16") == 2 * count_parameters(preset("flamingo-3b"))["total"]


def test_too_little_disk_space_is_reported_with_the_option_that_helps(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(DataError, match=r"tiny-fp32.* 1\.0 MB left; .*--work"):
        RandomBundle("tiny", work=tmp_path).make(lambda text: None)


def test_a_file_in_place_of_the_folder_is_reported_with_the_option_that_helps(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"is a file, not a folder; choose another --work"):
        RandomBundle("tiny", work=tmp_path / "file").make(lambda text: None)
