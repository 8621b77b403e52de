"""`flamingo-rt export --quantize`: a bundle that answers and says what it cost, or a refusal that names the remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flamingo_rt.bundle import Bundle, read_bundle
from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.contract import GRAPHS
from flamingo_rt.errors import ParityError
from flamingo_rt.export.quantization.calibration import read_prompts
from flamingo_rt.export.quantization.quantization_options import RANDOM_PROMPTS

QUALITY = {
    "graphs": {name: {"cosine": 0.987654, "lowest_cosine": 0.91234, "norm_ratio": 1.00321} for name in GRAPHS},
    "tokens": 321, "changed": 7,
}
RECORD = {
    "scheme": "int4", "blocks": {}, "rounding": "gptq", "calibration": "3 prompts of prompts.jsonl",
    "measured_on": "1 prompts of prompts.jsonl", "quality": QUALITY,
}


@pytest.fixture(scope="module")
def calibration(pictures, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("calibration") / "prompts.jsonl"
    lines = [[{"image": str(pictures[number % 3])}, f"Output: a red circle and {number}"] for number in range(6)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.fixture
def asked(monkeypatch, checkpoint) -> list[dict]:
    """Options of the exports, which are not done: each writes an empty folder and gives `RECORD`."""
    options: list[dict] = []

    def exported(model, out, **wanted) -> Bundle:
        options.append(wanted)
        out.mkdir()
        return Bundle(out, model.config, {}, {}, RECORD if wanted["quantize"] else None)

    monkeypatch.setattr("flamingo_rt.export.pipeline.export_model", exported)
    return options


def test_a_quantized_bundle_answers_and_says_what_it_cost(run, checkpoint, calibration, pictures, tmp_path) -> None:
    out = tmp_path / "bundle"
    outcome = run("export", "--ckpt", checkpoint, "--out", out, "--quantize", "int4", "--calibration", calibration,
                  "--min-cosine", "-1", "--max-changed", "1", "--json")
    assert outcome.code == 0
    report = json.loads(outcome.out)
    record = read_bundle(out).quantization
    assert report["quantization"] == record is not None
    assert (record["scheme"], record["rounding"]) == ("int4", "gptq")
    assert record["calibration"] == "4 prompts of prompts.jsonl"
    assert set(record["quality"]["graphs"]) == set(GRAPHS)
    assert report["deviation"] == {}
    assert report["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert "error-aware rounding" in outcome.err
    assert "comparison" in outcome.err
    answer = run("infer", "--model", out, "--image", pictures[0], "--prompt", "Output:", "--max-new-tokens", 4)
    assert answer.code == 0


def test_the_cost_is_printed_a_graph_a_line(run, checkpoint, calibration, asked, tmp_path) -> None:
    outcome = run("export", "--ckpt", checkpoint, "--out", tmp_path / "out", "--quantize", "int4",
                  "--calibration", calibration)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0] == f"wrote {tmp_path / 'out'} (0.0 MB), int4, rounded by gptq"
    assert lines[1] == "cost, measured on 1 prompts of prompts.jsonl:"
    assert lines[2:5] == [
        f"{name}: cosine with PyTorch's output 0.98765 (lowest of a prompt 0.91234), norm ratio 1.0032"
        for name in GRAPHS
    ]
    assert lines[5:] == ["greedy tokens that changed: 7 of 321"]


def test_a_cost_that_was_measured_on_random_prompts_says_so(run, checkpoint, asked, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(RECORD, "measured_on", RANDOM_PROMPTS)
    outcome = run("export", "--ckpt", checkpoint, "--out", tmp_path / "out", "--quantize", "int8")
    assert asked[0]["quantize"].calibration is None
    assert outcome.out.splitlines()[1] == "cost, measured on random prompts, since there is no --calibration:"


def test_the_accuracy_is_printed_where_it_was_measured(run, checkpoint, asked, tmp_path, monkeypatch) -> None:
    accuracy = {"scenes": 50, "before": {"captions": 0.98, "questions": 0.945},
                "after": {"captions": 0.96, "questions": 0.93}}
    monkeypatch.setitem(RECORD, "accuracy", accuracy)
    outcome = run("export", "--ckpt", checkpoint, "--out", tmp_path / "out", "--quantize", "int4",
                  "--calibration", "scenes")
    assert outcome.out.splitlines()[6:] == [
        "right captions about 50 drawn scenes: 98.0% before, 96.0% after",
        "right questions about 50 drawn scenes: 94.5% before, 93.0% after",
    ]


def test_options_reach_the_export(run, checkpoint, calibration, asked, tmp_path) -> None:
    run("export", "--ckpt", checkpoint, "--out", tmp_path / "out", "--quantize", "mixed", "--rounding", "nearest",
        "--calibration", calibration, "--min-cosine", "0.5", "--max-changed", "0.25", "--evaluate", "3",
        "--block", "32")
    wanted = asked[0]["quantize"]
    assert (wanted.scheme, wanted.rounding) == ("mixed", "nearest")
    read, expected = wanted.calibration, read_prompts(calibration)
    assert (read.origin, read.source, read.measured_source) == (
        expected.origin, expected.source, expected.measured_source,
    )
    assert [prompt.place for prompt in read.calibrate] == [prompt.place for prompt in expected.calibrate]
    assert (wanted.min_cosine, wanted.max_changed, wanted.evaluate, wanted.block) == (0.5, 0.25, 3, 32)


@pytest.mark.parametrize(("options", "evaluated"), [((), 50), (("--evaluate", "7"), 7), (("--evaluate", "0"), 0)])
def test_a_model_of_drawn_scenes_is_calibrated_on_them_and_asked_about_some(
    run, checkpoint, asked, tmp_path, options: tuple, evaluated: int
) -> None:
    run("export", "--ckpt", checkpoint, "--out", tmp_path / "out", "--quantize", "int4", "--calibration", "scenes",
        *options)
    wanted = asked[0]["quantize"]
    assert wanted.calibration.source == "64 prompts about drawn scenes"
    assert wanted.evaluate == evaluated


def test_a_file_called_scenes_is_given_by_its_path(
    run, checkpoint, calibration, asked, tmp_path, monkeypatch
) -> None:
    (tmp_path / "scenes").write_bytes(calibration.read_bytes())
    monkeypatch.chdir(tmp_path)
    run("export", "--ckpt", checkpoint, "--out", tmp_path / "out", "--quantize", "int4", "--calibration", "./scenes")
    wanted = asked[0]["quantize"]
    assert wanted.calibration.source == "4 prompts of scenes"
    assert wanted.evaluate == 0


@pytest.mark.parametrize("name", ["tiny", "openflamingo-3b"])
def test_no_model_is_taken_for_one_of_drawn_scenes_by_its_name(run, checkpoint, asked, tmp_path, name: str) -> None:
    named = shutil.copytree(checkpoint, tmp_path / "named")
    config = json.loads((named / "config.json").read_text())
    (named / "config.json").write_text(json.dumps(config | {"name": name}))
    assert open_checkpoint(named).config.name == name
    run("export", "--ckpt", named, "--out", tmp_path / "out", "--quantize", "int8")
    assert (asked[0]["quantize"].evaluate, asked[0]["quantize"].calibration) == (0, None)


# Refusals


@pytest.mark.parametrize("scheme", ["mixed", "int4"])
@pytest.mark.parametrize("rounding", [(), ("--rounding", "gptq")])
def test_4_bit_matrices_without_calibration_prompts_are_refused_before_anything_is_read(
    run, tmp_path, scheme: str, rounding: tuple
) -> None:
    outcome = run("export", "--ckpt", tmp_path / "absent", "--out", tmp_path / "out", "--quantize", scheme, *rounding)
    assert outcome.code == 2
    for way in ("--calibration FILE", "--calibration scenes", "--rounding nearest"):
        assert way in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scheme", "said"), [(None, "exported already"), ("int4", "exported and quantized (int4) already")]
)
def test_a_bundle_is_not_quantized_again(run, bundle, tmp_path, scheme, said) -> None:
    again = shutil.copytree(bundle, tmp_path / "again")
    manifest = json.loads((again / "manifest.json").read_text())
    for entry in manifest["graphs"].values():
        entry["quantization"] = scheme
    (again / "manifest.json").write_text(json.dumps(manifest))
    outcome = run("export", "--ckpt", again, "--out", tmp_path / "out", "--quantize", "int8")
    assert outcome.code == 2
    assert f"{again} is a bundle, {said}: give the checkpoint it was made from" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"graphs": {"language_model": null}}'])
def test_a_damaged_bundle_is_no_checkpoint_either(run, tmp_path, content) -> None:
    (tmp_path / "manifest.json").write_text(content)
    outcome = run("export", "--ckpt", tmp_path, "--out", tmp_path / "out", "--quantize", "int8")
    assert outcome.code == 2
    assert "is a bundle, exported already" in outcome.err


@pytest.mark.parametrize("option", [
    ("--calibration", "prompts"), ("--min-cosine", "0.9"), ("--max-changed", "0"), ("--evaluate", "0"),
    ("--block", "32"),
])
def test_an_option_of_quantization_alone_is_refused(run, checkpoint, asked, tmp_path, option) -> None:
    outcome = run("export", "--ckpt", checkpoint, "--out", tmp_path / "out", *option)
    assert (outcome.code, asked) == (2, [])
    assert f"{option[0]} goes with --quantize int8, fp8, mixed or int4" in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "code", "message"), [
    (["--quantize", "int3"], 2, "'int3' is not one of 'int8', 'fp8', 'mixed', 'int4'"),
    (["--quantize", "int8", "--rounding", "up"], 2, "'up' is not one of 'gptq', 'nearest'"),
    (["--quantize", "int4", "--block", "48"], 2, "'48' is not one of '32', '64', '128', '256'"),
    (["--quantize", "int8", "--min-cosine", "2"], 2, "'--min-cosine': 2.0 is not in the range -1<=x<=1"),
    (["--quantize", "int8", "--max-changed", "-1"], 2, "'--max-changed': -1.0 is not in the range 0<=x<=1"),
    (["--quantize", "int8", "--dtype", "bf16"], 2, "bf16 and quantization int8 exclude each other"),
    (["--quantize", "int8", "--calibration", "absent"], 1, "cannot read prompts from absent"),
])
def test_options_that_cannot_be_met_are_refused_before_any_work(
    run, checkpoint, tmp_path, monkeypatch, options, code, message
) -> None:
    monkeypatch.setattr("flamingo_rt.export.pipeline._write_graphs", None)
    outcome = run("export", "--ckpt", checkpoint, "--out", tmp_path / "out", *options)
    assert outcome.code == code
    assert message in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_cost_beyond_the_limits_ends_with_the_remedy_and_nothing_written(
    run, checkpoint, calibration, tmp_path, monkeypatch
) -> None:
    def costly(export, paths) -> dict:
        raise ParityError("graph language_model: no bundle was written: take --quantize mixed or int8")

    monkeypatch.setattr("flamingo_rt.export.pipeline._write_graphs", lambda *arguments: dict.fromkeys(GRAPHS))
    monkeypatch.setattr("flamingo_rt.export.quantization.quantized_export.QuantizedExport.record", costly)
    outcome = run("export", "--ckpt", checkpoint, "--out", tmp_path / "out", "--quantize", "int4", "--rounding",
                  "nearest", "--calibration", calibration)
    assert outcome.code == 1
    assert "take --quantize mixed or int8" in outcome.err
    assert outcome.out == ""
    assert not list(tmp_path.iterdir())
