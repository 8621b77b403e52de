"""Usage errors other than bad files: each ends in one line and an exit code, and no folder is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def own_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoint, tmp_path / "models" / "own")
    return tmp_path / "models" / "own"


def contents(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


@pytest.mark.parametrize("where", ["itself", "parent"])
def test_an_export_never_replaces_its_checkpoint(run, own_checkpoint: Path, where: str) -> None:
    out = own_checkpoint if where == "itself" else own_checkpoint.parent
    before = contents(own_checkpoint.parent)
    outcome = run("export", "--ckpt", own_checkpoint, "--out", out, "--overwrite")
    assert outcome.code == 2
    assert "choose another --out" in outcome.err
    assert contents(own_checkpoint.parent) == before


def test_overwrite_replaces_no_folder_of_the_users_own(run, checkpoint: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"cat")
    outcome = run("export", "--ckpt", checkpoint, "--out", photos, "--overwrite")
    assert outcome.code == 2
    assert "is not replaced" in outcome.err
    assert (photos / "cat.jpg").read_bytes() == b"cat"


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_an_output_that_is_a_link_is_refused_before_any_work(run, checkpoint: Path, tmp_path: Path, target) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / target)
    outcome = run("export", "--ckpt", checkpoint, "--out", tmp_path / "link", "--overwrite")
    assert outcome.code == 2
    assert "is a link" in outcome.err.splitlines()[0]


@pytest.mark.parametrize("tolerance", ["nan", "0", "-1", "inf"])
def test_a_tolerance_that_compares_nothing_is_refused(run, checkpoint: Path, tmp_path: Path, tolerance: str) -> None:
    outcome = run("export", "--ckpt", checkpoint, "--out", tmp_path / "out", "--tolerance", tolerance)
    assert outcome.code == 2
    assert "tolerance" in outcome.err


@pytest.mark.parametrize(
    ("where", "value"),
    [(("vision", "image_size"), 64), (("language", "layers"), 5), (("language", "vocab_size"), 600),
     (("cross_attention", "heads"), 7)],
)
def test_a_manifest_that_does_not_fit_its_graphs_is_refused(run, bundle: Path, tmp_path: Path, where, value) -> None:
    edited = tmp_path / "edited"
    shutil.copytree(bundle, edited)
    manifest = json.loads((edited / "manifest.json").read_text())
    manifest["config"][where[0]][where[1]] = value
    (edited / "manifest.json").write_text(json.dumps(manifest))
    outcome = run("infer", "--model", edited, "--prompt", "Output:")
    assert outcome.code == 1
    assert "does not fit the configuration" in outcome.err


def test_a_bundle_of_another_lowering_is_refused(run, bundle: Path, tmp_path: Path) -> None:
    edited = tmp_path / "edited"
    shutil.copytree(bundle, edited)
    text = (edited / "manifest.json").read_text().replace('"lowering": "ort"', '"lowering": "other"')
    (edited / "manifest.json").write_text(text)
    outcome = run("infer", "--model", edited, "--prompt", "Output:")
    assert outcome.code == 1
    assert "other" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--prompt", "broken \udcff"), "not valid Unicode"),
        (("--prompt", "x", "--choices", "yes,\udcff"), "not valid Unicode"),
        (("--prompt", "x", "--repetition-penalty", "1e-40"), "repetition_penalty"),
        (("--prompt", "x", "--repetition-penalty", "1e40"), "repetition_penalty"),
        (("--prompt", "x", "--threads", "1000000000000"), "--threads"),
        (("--question", ""), "--question is empty"),
        (("--video", "x.avi", "--frames", "1000000"), "1000000"),
    ],
)
def test_a_value_out_of_range_is_named(infer, arguments, named: str) -> None:
    outcome = infer(*arguments)
    assert outcome.code == 2
    assert named in outcome.err


def test_a_learning_rate_that_is_no_number_is_refused(run, tmp_path: Path) -> None:
    outcome = run("train", "flamingo", "--out", tmp_path / "out", "--learning-rate", "nan")
    assert outcome.code == 2
    assert "learning_rate is nan" in outcome.err
    assert "nan" in outcome.err


def test_the_doctors_table_shows_the_whole_remedy(run, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setenv("COLUMNS", "200")
    assert "flamingo-rt[export]" in run("doctor").out


@pytest.mark.parametrize("option", ["--image", "--video"])
@pytest.mark.parametrize("address", ["https://example.org/a.mp4", "rtsp://example.org/a", "data:image/png;base64,AAAA"])
def test_an_address_is_not_fetched(run, option: str, address: str) -> None:
    outcome = run("infer", option, address)
    assert outcome.code == 1
    assert "nothing is fetched: save it to a file first" in outcome.err
