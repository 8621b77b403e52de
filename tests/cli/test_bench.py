"""``flamingo-rt bench``: what it prints, what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flamingo_rt.bench import measuring, random_bundle
from flamingo_rt.errors import DataError
from flamingo_rt.loading import PACKAGED_BUNDLE, load

QUICK = ["--threads", 1, "--shots", "0,2", "--batch", "1,2", "--context", "5,9", "--tokens", 2, "--runs", 2]


@pytest.fixture
def bench(run, monkeypatch):
    """The command, with little memory to measure bandwidth with."""
    monkeypatch.setattr(measuring, "BUFFER_BYTES", 1 << 20)
    return lambda *arguments: run("bench", *arguments)


@pytest.fixture
def unmeasured(bench, monkeypatch):
    """The command, where measuring anything fails the test."""
    for name in ("flamingo_rt.bench.measure", "flamingo_rt.export.pipeline.export_model"):
        monkeypatch.setattr(name, lambda *arguments, **options: pytest.fail("it began"))
    return bench


def test_the_packaged_model_is_measured_and_reported(bench) -> None:
    outcome = bench(*QUICK)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].startswith("tiny, float32, 12.8"), lines[0]
    assert "MB, backend ort, 1 thread" in lines[0]
    for word in ("Theory", "decode, context 9", "Measured", "tokens/s", "First token", "2 shots cost"):
        assert word in outcome.out
    assert "2 shots, cold" in outcome.err  # the progress
    assert max(len(line) for line in lines if "─" in line) <= 120


def test_json_is_one_line_with_everything(bench) -> None:
    outcome = bench(*QUICK, "--json")
    assert outcome.code == 0
    data = json.loads(outcome.out.splitlines()[-1])
    assert len(outcome.out.splitlines()) == 1
    assert data["model"]["identity"] == load().identity
    assert data["model"]["folder"] == str(PACKAGED_BUNDLE)
    assert data["options"]["batch"] == [1, 2]
    assert {"machine", "rates", "stages", "decode", "shots", "compiled_ratio", "memory", "started"} <= set(data)


@pytest.mark.parametrize("ending", ["svg", "html"])
def test_a_plot_is_drawn_beside_the_report(bench, bundle: Path, tmp_path: Path, ending: str) -> None:
    plot = tmp_path / "new" / f"bench.{ending}"
    small = ["--model", bundle, "--shots", 1, "--batch", 1, "--context", 5, "--tokens", 1, "--runs", 1, "--json"]
    outcome = bench(*small, "--plot", plot)
    assert outcome.code == 0
    assert "<svg" in plot.read_text()
    assert json.loads(outcome.out)["model"]["name"] == "small"
    assert f"wrote {plot}" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "tpu"], "unknown backend 'tpu'; known: auto, ort, ort-cuda, ort-tensorrt-rtx, tensorrt, torch"),
        (["--backend", "torch"], "is a bundle and the torch backend runs a checkpoint"),
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--preset", "tiny", "--backend", "torch"], "leave --backend out"),
        (["--preset", "tiny", "--backend", "tensorrt"], "without engines: build them (flamingo-rt build)"),
        (["--preset", "tiny", "--model", "x"], "exclude each other"),
        (["--preset", "photos"], "the vision encoder of the preset photos is another project's graph"),
        (["--dtype", "fp16"], "--dtype goes with --preset"),
        (["--quantize", "int8"], "--quantize goes with --preset"),
        (["--work", "x"], "--work goes with --preset"),
        (["--shots", "4,many"], "'4,many' is not a list of integers"),
        (["--shots", ""], "is not a list of integers"),
        (["--shots", "-1"], "shots holds -1"),
        (["--batch", "1,0"], "batch holds 0"),
        (["--context", "1.5"], "'1.5' is not a list of integers"),
        (["--tokens", "0"], "tokens holds 0"),
        (["--runs", "0"], "runs holds 0"),
        (["--warmup", "-1"], "warmup holds -1"),
        (["--seconds", "nan"], "seconds is nan"),
        (["--threads", "0"], "0"),
        (["--plot", "bench.png"], "give a name that ends in .svg or .html"),
        (["--plot", "bench"], "give a name that ends in .svg or .html"),
    ],
)
def test_a_command_line_that_makes_no_sense_ends_with_2_before_anything_runs(unmeasured, arguments, said) -> None:
    outcome = unmeasured(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shots", "0,6"], "the model takes 6 pictures in a prompt, one of them the query's; give 5 or fewer"),
        (["--context", "90"], "context is 96: give a context of at most 64"),
        (["--tokens", "96"], "give 95 or fewer"),
    ],
)
def test_what_does_not_fit_the_model_ends_with_2_and_the_limit(bench, bundle: Path, arguments, said: str) -> None:
    outcome = bench("--model", bundle, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err


def test_a_model_that_is_not_there_ends_with_1(unmeasured, tmp_path: Path) -> None:
    outcome = unmeasured("--model", tmp_path / "none")
    assert outcome.code == 1
    assert "there is no model at" in outcome.err


def test_a_plot_that_cannot_be_written_is_refused_before_anything_runs(unmeasured, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "there.svg").write_text("mine")
    for name, code, said in (("file/a.svg", 1, "is a file, not a folder; choose another --plot"),
                             ("folder.svg", 2, "is a folder"), ("there.svg", 2, "already exists")):
        outcome = unmeasured("--plot", tmp_path / name)
        assert (outcome.code, outcome.out) == (code, "")
        assert said in outcome.err
    assert (tmp_path / "there.svg").read_text() == "mine"


def test_without_matplotlib_a_plot_names_its_extra(unmeasured, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    outcome = unmeasured("--plot", tmp_path / "a.svg")
    assert outcome.code == 1
    assert "pip install 'flamingo-rt[bench]'" in outcome.err


def test_an_interrupt_ends_with_130(bench, monkeypatch) -> None:
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("flamingo_rt.runtime.model.Model.prompt", interrupt)
    outcome = bench(*QUICK)
    assert (outcome.code, outcome.out, outcome.err.splitlines()[-1]) == (130, "", "interrupted: nothing was printed")


def test_a_presets_bundle_is_made_once_and_then_reused(bench, bundle: Path, monkeypatch, tmp_path: Path) -> None:
    made = []

    def make(self, say, progress) -> None:
        say("writing about 1 GB")
        made.append(self)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.symlink_to(bundle)

    monkeypatch.setattr(random_bundle.RandomBundle, "make", make)
    for _ in range(2):
        outcome = bench("--preset", "tiny", "--compute", "fp16", "--work", tmp_path / "work", "--shots", 0,
                        "--batch", 1, "--context", 5, "--tokens", 1, "--runs", 1, "--json")
        assert outcome.code == 0
        assert json.loads(outcome.out)["model"]["name"] == "small"
    assert [(entry.preset, entry.dtype, entry.compute) for entry in made] == [("tiny", "fp16", "fp16")]
    assert "writing about 1 GB" not in outcome.err


@pytest.mark.parametrize(("backend", "lowering"), [("ort-cuda", "ort"), ("ort-tensorrt-rtx", "tensorrt")])
def test_a_presets_bundle_has_the_lowering_that_the_backend_runs(
    bench, monkeypatch, tmp_path: Path, backend: str, lowering: str
) -> None:
    made = []

    def stop(self, say, progress) -> None:
        made.append((self.lowering, self.path.name))
        raise DataError("made no bundle")

    monkeypatch.setattr(random_bundle.RandomBundle, "make", stop)
    assert bench("--preset", "tiny", "--backend", backend, "--work", tmp_path).code == 1
    ((found, name),) = made
    assert (found, name.startswith("tiny-tensorrt-fp32")) == (lowering, lowering == "tensorrt")


def test_a_damaged_bundle_of_a_preset_is_named_with_the_command_that_makes_it_again(
    bench, bundle: Path, tmp_path: Path
) -> None:
    folder = random_bundle.RandomBundle("tiny", work=tmp_path).path
    shutil.copytree(bundle, folder)
    (folder / "tokenizer.json").unlink()
    outcome = bench("--preset", "tiny", "--work", tmp_path)
    assert outcome.code == 1
    assert f"lacks tokenizer.json: copy it again, or export the model again; or remove {folder}" in outcome.err


def test_a_preset_without_the_exporter_names_its_extra(bench, monkeypatch, tmp_path: Path) -> None:
    def missing(self, *arguments) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(random_bundle.RandomBundle, "make", missing)
    outcome = bench("--preset", "tiny", "--work", tmp_path)
    assert outcome.code == 1
    assert "pip install 'flamingo-rt[export]'" in outcome.err
