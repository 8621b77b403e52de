"""A whole measurement of the packaged model: what was done, not how long it took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up_report import BUFFER, QUICK, RATES

from flamingo_rt.backend import HostGreedySteps
from flamingo_rt.bench import BenchOptions, measure
from flamingo_rt.bench.model_facts import model_facts
from flamingo_rt.bench.rates import RateProbe
from flamingo_rt.bench.workload import caption_tokens
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.loading import PACKAGED_BUNDLE, load
from flamingo_rt.runtime.model import Model

ROOT = Path(__file__).parents[2]


def test_every_stage_is_there_with_its_runs(measured, packaged) -> None:
    stages = [(stage.name, stage.tokens) for stage in measured.stages]
    query = caption_tokens(packaged, 0)
    assert stages == [
        ("images", None), ("vision", None), ("resampler", None), ("prefill", query), ("prefill", 5), ("prefill", 9),
    ]
    assert {stage.milliseconds.runs for stage in measured.stages} == {2}
    assert [stage.name for stage in measured.stages if stage.against is None] == ["images"]


def test_the_first_batch_decodes_at_every_context_and_the_others_at_the_first(measured) -> None:
    assert [(result.batch, result.context) for result in measured.decode] == [(1, 5), (1, 9), (2, 5)]
    for result in measured.decode:
        assert result.milliseconds.runs == 2 * 2  # runs, steps of each
        assert result.tokens_per_second == pytest.approx(result.batch / result.milliseconds.median * 1e3)


def test_shots_are_measured_cold_and_compiled(measured, packaged) -> None:
    none, two = measured.shots
    assert (none.shots, none.compiled, none.compiling) == (0, None, None)
    assert (two.shots, two.prompt_tokens) == (2, caption_tokens(packaged, 2))
    assert two.cold.runs == two.compiled.runs == 2
    assert measured.compiled_ratio > 0


def test_fractions_follow_from_work_and_rates(measured) -> None:
    rates = measured.rates
    for entry in (*measured.stages, *measured.decode):
        against = entry.against
        if against is None:
            continue
        seconds = max(against.flops / rates.flops, against.bytes / rates.bandwidth)
        assert against.ceiling == pytest.approx(seconds * 1e3)
        assert against.reached == pytest.approx(seconds * 1e3 / entry.milliseconds.median)
        computes = against.flops / rates.flops > against.bytes / rates.bandwidth
        assert against.bound == ("compute" if computes else "memory")
        assert against.intensity == against.flops / against.bytes


def test_the_report_names_the_model_and_is_json(measured, packaged) -> None:
    data = json.loads(json.dumps(measured.to_dict()))
    model = data["model"]
    assert (model["name"], model["identity"], model["backend"]) == ("tiny", packaged.identity, "ort")
    assert model["bytes"] == sum(file.stat().st_size for file in PACKAGED_BUNDLE.iterdir())
    assert model["dtype"]["language_model"] == "float32"
    assert model["threads"] == data["options"]["threads"] == 1
    assert data["options"]["shots"] == [0, 2]
    assert len(data["rates"]["bandwidths"]) >= 2  # before and after
    assert data["started"] <= data["finished"]
    assert measured.stage("prefill").tokens == data["stages"][3]["tokens"]


def test_no_picture_is_seen_twice_and_no_cold_prompt_continues_another(packaged, monkeypatch) -> None:
    seen, generate = [], Model.generate

    def recording(self, parts, *, prefix=None, **options):
        pictures = [part.source for part in parts if not isinstance(part, str)]
        seen.append((len(pictures), prefix is not None, pictures))
        return generate(self, parts, prefix=prefix, **options)

    monkeypatch.setattr(Model, "generate", recording)
    measure(packaged, QUICK, buffer_bytes=BUFFER)
    pictures = [picture for *_, listed in seen for picture in listed]
    assert len(set(pictures)) == len(pictures)
    assert sorted((count, behind) for count, behind, _ in seen) == [(1, False)] * 3 + [(1, True)] * 3 + [(3, False)] * 3


def test_every_run_decodes_at_the_same_context(packaged, monkeypatch) -> None:
    cached, enqueue = [], HostGreedySteps.enqueue

    def recording(self, lengths):
        cached.append(tuple(lengths.tolist()))
        enqueue(self, lengths)

    monkeypatch.setattr(HostGreedySteps, "enqueue", recording)
    measure(packaged, BenchOptions(shots=(0,), batch=(2,), context=(7,), tokens=3, runs=2), buffer_bytes=BUFFER)
    assert cached == [(7, 7), (8, 8), (9, 9)] * 3


def test_the_machine_is_measured_between_the_runs_too(packaged, monkeypatch) -> None:
    probes, now = [], [0.0]

    def clock() -> float:
        now[0] += 1.0  # every look at it is a second later
        return now[0]

    monkeypatch.setattr(RateProbe, "probe", lambda self: probes.append(now[0]))
    monkeypatch.setattr(RateProbe, "best", lambda self: RATES)
    measure(packaged, QUICK, buffer_bytes=BUFFER, clock=clock)
    assert len(probes) >= 6


def test_a_checkpoint_is_measured_through_pytorch() -> None:
    folder = ROOT / "models" / "tiny"
    options = BenchOptions(shots=(0,), batch=(1,), context=(5,), tokens=1, runs=1, warmup=0, threads=1)
    report = measure(load(folder), options, folder=folder, buffer_bytes=BUFFER)
    assert (report.model.backend, report.model.identity) == ("torch", None)
    assert report.model.threads is None  # they are ONNX Runtime's
    assert "PyTorch" in report.rates.flops_by
    assert report.compiled_ratio is None
    assert report.decode[0].against.bytes > report.model.weight_bytes["language_model"]


def test_what_does_not_fit_is_refused_before_anything_runs(packaged, monkeypatch) -> None:
    monkeypatch.setattr(Model, "generate", lambda *arguments, **options: pytest.fail("it ran"))
    with pytest.raises(UsageError, match="context 5000"):
        measure(packaged, BenchOptions(context=(5000,)), folder=PACKAGED_BUNDLE)


def test_a_manifest_without_its_graphs_is_named(packaged, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="is damaged"):
        model_facts(packaged, tmp_path, None)
