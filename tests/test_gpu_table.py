"""The table of ``benchmarks.gpu_run``, from outcomes that are made up."""

from __future__ import annotations

import json

import pytest
from made_up_gpu_run import DOCTOR, RIGHT, WRONG, bench, outcome, peer, row

from benchmarks import gpu_run
from benchmarks.gpu_steps import gpu_table


def test_the_table_sets_times_beside_the_peer_s_and_only_the_peer_has_targets() -> None:
    outcomes = [
        outcome("verify m", "tensorrt, fp16", RIGHT),
        outcome("bench m", "tensorrt, fp16", bench(2.0, 0.75, 10.0, 100.0, 12.0)),
        peer("open_flamingo, fp16, eager", 21.0, 30.0, 600.0), peer("open_flamingo, fp16, compiled", 3.0, 30.0, 600.0),
        peer("own PyTorch model, fp16, eager", 30.0, 30.0, 600.0),
    ]
    told = gpu_table.printed(outcomes, judged=True)
    assert row(told, "tensorrt, fp16") == {
        "system": "tensorrt, fp16", "verify m": "met: 8 of 8 tokens", "bench m": "9 s", "memory": "1500 GB/s",
        "of the bandwidth": "0.75 (goal 0.78)", "each token": "2 ms, 75% (10.5)",
        "each token, context 1500": "1502 ms, 75%", "first token, 0 shots": "10 ms (3)",
        "first token, 32 shots": "100 ms (6)", "first token, 32 shots, compiled": "12 ms (50)", "peer": "",
    }
    assert row(told, "open_flamingo, fp16, compiled")["each token"] == "3 ms (7)"
    lines = told.splitlines()
    assert "tensorrt, fp16: each token at 75% of the memory's bandwidth (wanted 0.78: MISSED)" in lines
    assert "tensorrt, fp16: each token 10.5 times as fast as open_flamingo, fp16, eager (wanted 10: met)" in lines
    assert "tensorrt, fp16: each token 1.5 times as fast as open_flamingo, fp16, compiled (wanted 2: MISSED)" in lines
    assert "tensorrt, fp16: each token 15 times as fast as own PyTorch model, fp16, eager" in lines
    assert "wanted" not in gpu_table.printed(outcomes, judged=False)


def test_a_peer_that_was_ended_keeps_the_cases_it_measured() -> None:
    ended = peer("open_flamingo, fp16, eager", 21.0, 30.0, 600.0, error="ended after its 60 s")
    ended["records"] = ended["records"][:2]
    told = gpu_table.printed([outcome("bench m", "s", bench(2.0, 0.5, 10.0, 100.0, 12.0)), ended], judged=True)
    assert row(told, ended["system"])["peer"] == "ERROR"
    assert row(told, ended["system"])["first token, 0 shots"] == "30 ms (1)"
    assert row(told, "s")["first token, 32 shots"] == "100 ms, not verified"
    assert "peer, open_flamingo, fp16, eager: ended after its 60 s" in told.splitlines()


@pytest.mark.parametrize(
    ("verifications", "mark"),
    [([RIGHT, RIGHT], ""), ([RIGHT, WRONG], ", not verified"), ([WRONG, RIGHT], ", not verified"),
     ([], ", not verified")],
    ids=["right", "wrong at the end", "wrong at first", "never"],
)
def test_times_of_what_was_not_verified_say_so(verifications: list[dict], mark: str) -> None:
    steps = [outcome(f"verify {number}", "s", record) for number, record in enumerate(verifications)]
    told = gpu_table.printed([*steps, outcome("bench m", "s", bench(2.0, 0.5, 10.0, 100.0, 12.0))], judged=True)
    assert row(told, "s")["each token"] == f"2 ms, 50%{mark}"


def test_every_step_is_in_the_table_whatever_became_of_it() -> None:
    told = gpu_table.printed([
        outcome("doctor", "", DOCTOR), {"step": "backend", "system": "x", "records": [], "skipped": "no | library"},
        outcome("export m", "s", {"bytes": 5 * 10**9}), outcome("build m", "s", {"bytes": {"a": 10**9, "b": 10**9}}),
        outcome("verify m", "s", WRONG, error="status 1: it told nothing"),
    ], judged=True)
    assert row(told, "s") == {
        "system": "s", "": "", "export m": "9 s, 5 GB", "build m": "9 s, 2 GB",
        "verify m": "MISSED: 7 of 8 tokens; a picture: token 3; vision_encoder no number of 1.0e-02 at features / "
                    "clip; resampler not run; language_model 5.0e-03 of 1.0e-02",
    }
    assert row(told, "x")[""] == "not here"
    assert len([line for line in told.splitlines() if line.startswith("|")]) == 4
    assert [line for line in told.splitlines() if line and line[0] != "|"] == [
        "backend, x: no | library", "verify m, s: status 1: it told nothing",
    ]


def test_what_bench_prints_is_read() -> None:
    file = next((gpu_run.HERE / "results").glob("*-bench-int4.json"))
    found = gpu_table.figures([json.loads(file.read_text(encoding="utf-8"))])
    assert {"each token", "each token, context 1500", "vision", "resampler", "first token, 0 shots"} <= set(found)
    assert found["each token"][0] < found["each token, context 1500"][0]
    assert found["each token"][1] == pytest.approx(0.55, abs=0.01)


