"""`flamingo-rt describe --model`: the memory of a bundle by part, and what fits."""

from __future__ import annotations

import json
import shutil

import click
import pytest

from flamingo_rt.bundle import read_description
from flamingo_rt.cli.describe_memory import LABELS, QUESTION
from flamingo_rt.cli.numbers import Size
from flamingo_rt.loading import PACKAGED_BUNDLE
from flamingo_rt.memory_plan import Workload, plan_memory

MODEL = ("describe", "--model", PACKAGED_BUNDLE)


@pytest.mark.parametrize(("text", "size"), [
    ("8GB", 8 * 10**9), ("7.4GiB", round(7.4 * 2**30)), ("500 mb", 5 * 10**8), ("1kB", 1000), ("3KiB", 3072),
    ("2TB", 2 * 10**12), ("123B", 123), (" 0.5gb ", 5 * 10**8), (17, 17),
])
def test_a_size_has_a_number_and_a_unit(text, size) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["8", "GB", "8G", "8gbit", "-1GB", "0GB", "1e9B", "8,5GB", "8GBGB", "1" * 17 + "GB"])
def test_other_sizes_are_refused(text) -> None:
    with pytest.raises(click.BadParameter, match=r"8GB or 7\.4GiB|is not within"):
        Size().convert(text, None, None)


def test_the_json_holds_the_plan_and_what_fits(run) -> None:
    outcome = run(*MODEL, "--memory", "200MB", "--shots", 3, "--batch", 2, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    workload = Workload(rows=2, pictures=4, tokens=3 * 16 + QUESTION + 64, answer=64)
    plan = plan_memory(read_description(PACKAGED_BUNDLE), workload)
    assert found["parts"] == plan.parts
    assert (found["needed"], found["loading"]) == (plan.total, plan.loading)
    assert found["workload"] == {"shots": 3, **vars(workload)}
    assert (found["memory"], found["fits"], found["device"]) == (200_000_000, True, "cpu")
    assert set(found["largest"]) == {"shots", "pictures", "rows", "tokens"}
    assert found["largest"]["rows"]["most"] >= 2


def test_without_a_size_nothing_is_judged(run) -> None:
    found = json.loads(run(*MODEL, "--json").out)
    assert (found["memory"], found["fits"], found["largest"]) == (None, None, None)


def test_the_table_names_every_part_and_the_most_that_fits(run) -> None:
    outcome = run(*MODEL, "--memory", "0.3GB", "--shots", 8, "--batch", 2)
    assert outcome.code == 0
    for label in LABELS.values():
        assert label.format(at_once=4) in outcome.out
    assert "2 rows, each of 8 shots and a query, 224 tokens of which 64 are the answer's" in outcome.out
    assert "It fits into 300.0 MB." in outcome.out
    row = next(line for line in outcome.out.splitlines() if "shots" in line and "the model" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["shots", "8", "39", "the model"]


def test_too_little_memory_is_said(run) -> None:
    outcome = run(*MODEL, "--memory", "20MB")
    assert outcome.code == 0
    assert "It does not fit into 20.0 MB." in outcome.out
    assert "none" in outcome.out


def test_the_context_holds_the_answer(run) -> None:
    found = json.loads(run(*MODEL, "--context", 300, "--max-new-tokens", 100, "--json").out)["workload"]
    assert (found["tokens"], found["answer"]) == (300, 100)
    outcome = run(*MODEL, "--context", 64)
    assert outcome.code == 2
    assert "--context 64 holds no prompt beside --max-new-tokens 64" in outcome.err


def test_a_device_s_buffers_are_in_the_type_it_computes_in(run) -> None:
    cpu, jetson = (json.loads(run(*MODEL, "--device", device, "--json").out) for device in ("cpu", "jetson"))
    assert cpu["parts"]["cache"] == jetson["parts"]["cache"], "this bundle computes in float32"
    assert "Not compared with a Jetson" in run(*MODEL, "--device", "jetson").out


def test_a_bundle_for_gpus_is_reckoned_for_one(run, tmp_path) -> None:
    shutil.copytree(PACKAGED_BUNDLE, tmp_path / "bundle")
    manifest = tmp_path / "bundle" / "manifest.json"
    described = json.loads(manifest.read_text())
    for entry in described["graphs"].values():
        entry |= {"lowering": "tensorrt", "compute": "float16", "dtype": "float16"}
    manifest.write_text(json.dumps(described))
    assert json.loads(run("describe", "--model", tmp_path / "bundle", "--json").out)["device"] == "gpu"


@pytest.mark.parametrize(("options", "said"), [
    ((), "give --preset NAME for parameters, or --model BUNDLE for its memory"),
    (("--model", PACKAGED_BUNDLE, "--preset", "tiny"), "exclude each other"),
    (("--preset", "tiny", "--shots", "3"), "--shots goes with --model BUNDLE"),
    (("--preset", "tiny", "--shot-tokens", "16"), "--shot-tokens goes with --model BUNDLE"),
    (("--model", PACKAGED_BUNDLE, "--memory", "8"), "8GB or 7.4GiB"),
    (("--model", PACKAGED_BUNDLE, "--shots", "40"), "41 pictures a row: this model allows 40"),
    (("--model", PACKAGED_BUNDLE, "--context", "2000"), "2,000 tokens a row: the model's context is 1,024"),
])
def test_options_that_cannot_be_met_end_with_2_and_a_remedy(run, options, said) -> None:
    outcome = run("describe", *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err


def test_a_folder_that_is_no_bundle_is_refused(run, tmp_path) -> None:
    outcome = run("describe", "--model", tmp_path)
    assert outcome.code == 1
    assert "is not a bundle" in outcome.err
