"""`flamingo-rt verify`: what is said, the exit code, and bundles that cannot be verified."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flamingo_rt.bundle import read_bundle, read_description, write_manifest
from flamingo_rt.contract import GRAPHS
from flamingo_rt.runtime.reference_outputs import read_reference, write_reference


@pytest.fixture
def verify(run: Callable, bundle: Path) -> Callable:
    """`flamingo-rt verify` of a folder, by default the small bundle."""
    return lambda *arguments, folder=bundle: run("verify", "--model", folder, "--threads", 1, *arguments)


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "copied")


def test_a_bundle_is_verified_where_it_was_exported(verify, bundle: Path) -> None:
    outcome = verify()
    assert outcome.code == 0
    first, reference, head, *graphs, tokens, verdict = outcome.out.splitlines()
    assert first == "model small, backend ort"
    assert reference.startswith("reference: onnxruntime ")
    assert head.split() == ["graph", "deviation", "tolerance", "PyTorch"]
    assert [(line.split()[0], line.split()[-1]) for line in graphs] == [(name, "ok") for name in GRAPHS]
    assert "greedy tokens are the reference's" in tokens
    assert verdict == "verified"


def test_the_packaged_model_is_the_default(run) -> None:
    found = json.loads(run("verify", "--backend", "ort", "--threads", 1, "--json").out)
    assert found["model"] == "tiny"
    assert found["license"] == "apache-2.0"
    assert found["passed"] is True


def test_the_json_has_every_figure(verify, bundle: Path) -> None:
    found = json.loads(verify("--json").out)
    assert set(found) == {
        "model", "bundle", "license", "source", "backend", "passed", "reference", "graphs", "tokens", "differences",
        "left_out",
    }
    described = read_description(bundle)
    for name in GRAPHS:
        graph = found["graphs"][name]
        assert graph["accepted"] is True
        assert graph["tolerance"] == described.reference.tolerance[name]
        assert graph["parity"] == described.parity[name]
    assert found["tokens"]["equal"] <= found["tokens"]["compared"]


def test_a_deviation_is_named_and_ends_with_1(verify, copied: Path) -> None:
    described = read_bundle(copied)
    file = copied / described.reference.file
    reference = read_reference(file, described.config)
    write_reference(file, replace(reference, media=reference.media + np.float32(0.5)))
    write_manifest(copied, replace(described, license="\x1b[2J"))
    outcome = verify(folder=copied)
    assert outcome.code == 1
    resampler = next(line for line in outcome.out.splitlines() if line.startswith("resampler"))
    assert "beyond the tolerance: media_key_values." in resampler
    assert outcome.out.splitlines()[-1] == "not verified"
    assert "\x1b" not in outcome.out
    assert json.loads(verify("--json", folder=copied).out)["graphs"]["resampler"]["accepted"] is False


def test_a_token_that_differs_is_named(verify, copied: Path) -> None:
    described = read_bundle(copied)
    file = copied / described.reference.file
    reference = read_reference(file, described.config)
    first = reference.prompts[0]
    other = (first.answer + 1) % described.config.language.vocab_size
    write_reference(file, replace(reference, prompts=(replace(first, answer=other), *reference.prompts[1:])))
    write_manifest(copied, described)
    outcome = verify(folder=copied)
    assert outcome.code == 1
    assert f"'text': token 1 is {first.answer[0]}, not {other[0]}; they are " in outcome.out


def test_a_bundle_without_reference_outputs_says_how_to_get_some(verify, copied: Path) -> None:
    described = read_bundle(copied)
    (copied / described.reference.file).unlink()
    write_manifest(copied, replace(described, reference=None))
    outcome = verify(folder=copied)
    assert (outcome.code, outcome.out) == (1, "")
    assert "has no reference outputs to compare with: export the model again (flamingo-rt export" in outcome.err


def test_a_damaged_reference_is_one_line(verify, copied: Path) -> None:
    described = read_bundle(copied)
    (copied / described.reference.file).write_bytes(b"PK nothing")
    write_manifest(copied, described)
    outcome = verify(folder=copied)
    assert (outcome.code, outcome.out) == (1, "")
    assert "reference.npz is damaged" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize("kind", ["checkpoint", "nothing"])
def test_a_folder_that_is_no_bundle_is_named(verify, checkpoint: Path, tmp_path: Path, kind: str) -> None:
    folder = checkpoint if kind == "checkpoint" else tmp_path / "nothing"
    outcome = verify(folder=folder)
    assert (outcome.code, outcome.out) == (1, "")
    assert str(folder) in outcome.err
    assert "flamingo-rt export" in outcome.err
