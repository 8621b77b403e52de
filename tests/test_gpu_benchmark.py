"""``benchmarks.gpu_run`` without a GPU: the order of steps, budgets, results, tables, and the peer's stand-in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from small_model import small_config

from benchmarks import gpu_run
from benchmarks.gpu_steps import gpu_plan, gpu_session, gpu_table, own_torch, random_graphs
from benchmarks.gpu_steps.gpu_plan import LARGE, SMOKE, Skipped, Step, System
from benchmarks.processes import Finished, run
from flamingo_rt.bundle import read_bundle
from flamingo_rt.errors import DependencyError
from flamingo_rt.loading import PACKAGED_BUNDLE, load
from flamingo_rt.model.cross_attention import one_after_the_other
from flamingo_rt.processing.prompt import build_prompt

WORK = Path("work")
WORKS, FAILS = {"works": True, "detail": "it runs"}, {"works": False, "detail": "no libraries"}
DOCTOR = {
    "backends": {"ort-cuda": WORKS, "ort-tensorrt-rtx": {"works": False, "detail": "no plugin"}},
    "builders": {"tensorrt": WORKS, "tensorrt-rtx": FAILS}, "cuda": WORKS,
}
LOWERINGS = {
    "tensorrt": ("tensorrt", "tensorrt-classic"), "tensorrt-rtx": ("tensorrt",), "ort-cuda": ("ort", "tensorrt"),
}

VERIFIED = {
    "passed": False, "tokens": {"equal": 7, "compared": 8}, "differences": [{"where": "a picture", "position": 2}],
    "graphs": {"language_model": {"deviation": 0.5, "tolerance": 0.01, "where": "logits", "accepted": False}},
}


def systems() -> list[System]:
    return gpu_plan.gpu_systems(DOCTOR, lowerings=LOWERINGS.__getitem__)[0]


def names(steps: list) -> list[str]:
    return [step.name for step in steps]


def step(name: str = "a", share: float = 10.0, least: float = 1.0, **more: Any) -> Step:
    return Step(name, "", ("command",), share, least, **more)


class Runner:
    """Takes so many seconds of a made-up clock for each step, and prints what it is told to."""

    def __init__(self, seconds: float, lines: tuple[str, ...] = (), status: int = 0) -> None:
        self.now, self.limits = 0.0, []
        self._seconds, self._lines, self._status = seconds, lines, status

    def __call__(self, command, echo, together, limit, on_line) -> Finished:
        self.limits.append(limit)
        for line in self._lines:
            on_line(line)
        self.now += self._seconds
        return Finished(tuple(command), self._status, self._seconds, 0, "", None)


def session(runner: Runner, folder: Path, seconds: float | None = 600.0) -> gpu_session.Session:
    return gpu_session.Session(folder / "results.jsonl", {"format": 2}, seconds, lambda: runner.now, runner)


# The plan


def test_the_first_backend_and_the_peer_come_before_other_backends() -> None:
    found, missing = gpu_plan.gpu_systems(DOCTOR, lowerings=LOWERINGS.__getitem__)
    assert [each.name for each in found[:4]] == [
        "tensorrt, fp16", "ort-cuda, fp16", "tensorrt, classic graphs, fp16", "ort-cuda, tensorrt graphs, fp16",
    ]
    assert {each.compute for each in found[4:]} == {"bf16"}
    assert missing == [Skipped("backend", "tensorrt-rtx", "no libraries"),
                       Skipped("backend", "ort-tensorrt-rtx", "no plugin")]
    order = gpu_plan.steps_of(LARGE, found, WORK, "python", "not installed")
    assert names(order)[:9] == ["export", "build", "bench", "export", "build", "verify", "peer", "peer", "peer"]
    benches = [each.system for each in order if each.name == "bench"]
    assert benches == [each.name for each in found if each.compute == "fp16"]
    assert len([each for each in order if each.name == "verify"]) == 2 * len(found)
    assert not any(each.name == "build" and each.system.startswith("ort-cuda") for each in order)  # it has no engines


def test_a_bundle_has_engines_of_one_target() -> None:
    both = {**DOCTOR, "builders": {"tensorrt": WORKS, "tensorrt-rtx": WORKS}}
    found, missing = gpu_plan.gpu_systems(both, lowerings=LOWERINGS.__getitem__)
    assert {each.target for each in found} == {"tensorrt", None}
    assert "give --backends tensorrt-rtx" in missing[0].why
    found, _ = gpu_plan.gpu_systems(both, ["tensorrt-rtx"], LOWERINGS.__getitem__)
    assert {each.name for each in found} == {"tensorrt-rtx, fp16", "tensorrt-rtx, bf16"}


def test_a_backend_does_not_run_where_doctor_or_its_library_says_so() -> None:
    def missing(name: str) -> tuple[str, ...]:
        raise DependencyError(f"no {name}")

    _, why = gpu_plan.gpu_systems(DOCTOR, ["tensorrt"], missing)
    assert why == [Skipped("backend", "tensorrt", "no tensorrt")]
    found, why = gpu_plan.gpu_systems({**DOCTOR, "cuda": FAILS}, lowerings=LOWERINGS.__getitem__)
    assert (found, {each.why for each in why}) == ([], {"no libraries"})
    assert gpu_plan.gpu_systems({})[1][0].why == "doctor says nothing of it"


def test_the_steps_that_matter_have_the_whole_budget() -> None:
    steps = gpu_plan.steps_of(LARGE, systems(), WORK, "python", "not installed")[:9]
    before = gpu_plan.first_steps("python")
    assert sum(each.share for each in [*before, *steps] if isinstance(each, Step)) == gpu_session.WHOLE


def test_steps_are_commands_of_the_product() -> None:
    export, build, bench, packaged, _, verify = gpu_plan.steps_of(LARGE, systems(), WORK, "python", "none")[:6]
    bundle = str(WORK / "bundles" / "openflamingo-3b-tensorrt-fp16")
    assert "benchmarks.gpu_steps.random_graphs" in export.command
    assert export.command[-4:] == ("--prompts", str(WORK / "workload"), "--shots", "32")
    for each, command in ((build, "build"), (bench, "bench"), (packaged, "export"), (verify, "verify")):
        words = each.command[each.command.index("flamingo_rt") + 1 :]
        assert words[0] == command
        assert words[-1] == "--json"
    assert build.command[build.command.index("--model") + 1] == bundle
    assert build.command[build.command.index("--capacity") + 1] == "2048"
    assert bench.needs == (Path(bundle) / "manifest.json",)
    assert verify.command[verify.command.index("--backend") + 1] == "tensorrt"


def test_without_a_peer_our_own_model_stands_in_and_is_named_so(tmp_path: Path) -> None:
    skipped, eager, compiled = gpu_plan.peer_steps(LARGE, tmp_path, "python", "no module named open_flamingo")
    assert skipped == Skipped("peer", "open_flamingo", "no module named open_flamingo")
    assert "a stand-in" in eager.system
    assert "a stand-in" in compiled.system
    assert "benchmarks.gpu_steps.own_torch" in eager.command
    eager, compiled = gpu_plan.peer_steps(LARGE, tmp_path, "python", None)
    assert eager.command[:2] == ("python", str(gpu_plan.PEER_SCRIPT))
    assert compiled.command[-2:] == ("--compile", "inductor")
    assert json.loads((tmp_path / "peer-openflamingo-3b.json").read_text())["interval"] == 1


def test_without_any_backend_the_peer_still_has_its_prompts() -> None:
    assert names(gpu_plan.steps_of(LARGE, [], WORK, "python", "none")) == ["bench", "export", "peer", "peer", "peer"]


def test_preparing_makes_bundles_and_engines_ahead_of_time() -> None:
    steps = gpu_plan.prepared_steps(LARGE, WORK, ["tensorrt", "ort"], ["86", "89"])
    assert names(steps).count("build") == 1
    assert steps[1].command[-3:] == ("--compute-capability", "86,89", "--json")
    assert [each.system for each in steps if each.name == "export"][:3] == [
        "openflamingo-3b, tensorrt graphs, fp16", "packaged, tensorrt graphs, fp16", "packaged, tensorrt graphs, bf16",
    ]
    assert set(names(gpu_plan.prepared_steps(LARGE, WORK, ["tensorrt"], []))) == {"export"}


# Running


def test_what_an_early_step_leaves_is_there_for_later_ones(tmp_path: Path) -> None:
    runner = Runner(seconds=5.0)
    found = session(runner, tmp_path)
    found.run([step(share=10.0)])
    found.run([step(share=20.0), step(share=90.0)])
    assert runner.limits == [60.0, 180.0 - 5.0, 600.0 - 10.0]  # never beyond the budget


def test_a_step_for_which_time_is_short_is_skipped_with_the_reason(tmp_path: Path) -> None:
    found = session(Runner(seconds=590.0), tmp_path)
    found.run([step("a", share=100.0), step("b", least=15.0)])
    assert found.outcomes[-1] == {"step": "b", "system": "", "skipped": "10 s are left for it, it needs 15"}


def test_a_step_whose_needs_were_not_made_or_that_is_done_is_skipped(tmp_path: Path) -> None:
    found = session(Runner(1.0), tmp_path)
    found.run([step(needs=(tmp_path / "bundle",)), step(done=True), Skipped("peer", "x", "not here")])
    assert [each["skipped"].split(":")[0] for each in found.outcomes] == [
        f"there is no {tmp_path / 'bundle'}", "it is there already", "not here",
    ]


def test_every_step_is_in_the_file_at_once_and_a_crash_is_a_line(tmp_path: Path) -> None:
    found = session(Runner(2.0, ("noise", "{no json", '{"value": 1.5}', "the reason"), status=-11), tmp_path)
    found.run([step("bench")])
    about, written = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert about == {"format": 2, "elapsed": 2.0}
    assert written == found.outcomes[0] == {
        "step": "bench", "system": "", "status": -11, "seconds": 2.0, "records": [{"value": 1.5}],
        "error": "status -11: the reason",
    }
    assert found.record("bench") == {"value": 1.5}
    assert found.record("build") == {}
    assert [file.name for file in tmp_path.iterdir()] == ["results.jsonl"]


def test_a_step_that_says_it_is_skipped_has_not_failed(tmp_path: Path) -> None:
    found = session(Runner(1.0, ('{"skipped": "no module"}',)), tmp_path)
    found.run([step("peer")])
    assert found.outcomes[0]["skipped"] == "no module"
    assert "error" not in found.outcomes[0]


def test_a_step_that_takes_longer_is_ended_and_what_it_told_stays() -> None:
    code = "import time; print('{\"case\": 1}', flush=True); time.sleep(60)"
    told: list[str] = []
    finished = run([sys.executable, "-c", code], limit=5.0, on_line=told.append)
    assert finished.status == -9
    assert told == ['{"case": 1}']


def test_an_error_is_part_of_the_output_where_it_is_asked_for() -> None:
    code = "import sys; print('one', flush=True); sys.exit('why')"
    assert run([sys.executable, "-c", code], together=True).output == "one\nwhy"
    assert run([sys.executable, "-c", code], quiet=True).output == "one"


# The tables


def bench(token: float, first: float, cold: float, compiled: float) -> dict[str, Any]:
    def spread(median: float) -> dict[str, float]:
        return {"median": median, "runs": 3}

    return {"records": [{
        "decode": [{"context": context, "milliseconds": spread(token + context)} for context in (1500, 0)],
        "shots": [{"shots": 0, "cold": spread(first), "compiled": None},
                  {"shots": 32, "cold": spread(cold), "compiled": spread(compiled)}],
    }]}


def peer(system: str, token: float, first: float, behind: float) -> dict[str, Any]:
    cases = [{"case": {"shots": shots, "prompt_tokens": 9, "first_token_ms": [time], "token_ms": [[token, token]]}}
             for shots, time in ((0, first), (32, behind))]
    return {"step": "peer", "system": system, "seconds": 9.0, "records": [{"torch": "2"}, *cases]}


def test_ratios_are_the_peers_time_over_ours_and_only_the_peer_has_targets() -> None:
    outcomes = [
        {"step": "bench", "system": "tensorrt, fp16", **bench(2.0, 10.0, 100.0, 12.0)},
        peer("open_flamingo, fp16, eager", 21.0, 30.0, 600.0), peer("open_flamingo, fp16, compiled", 3.0, 30.0, 600.0),
        peer("own PyTorch model, a stand-in, fp16, eager", 30.0, 30.0, 600.0),
    ]
    eager, compiled, stand_in = gpu_table.ratios(outcomes, gpu_table.TARGETS)
    assert eager == ("open_flamingo, fp16, eager", "tensorrt, fp16", "10.50 (>= 10: met)", "3.00", "6.00", "50.00")
    assert compiled[2] == "1.50 (>= 2: MISSED)"
    assert stand_in[2] == "15.00"
    unmeasured = {"step": "bench", "system": "x", "skipped": "no time"}
    assert gpu_table.ratios([unmeasured, outcomes[1]], gpu_table.TARGETS) == []


def test_every_step_has_its_lines_whatever_became_of_it() -> None:
    told = [
        {"step": "doctor", "system": "", "seconds": 1.0, "records": [DOCTOR]},
        {"step": "peer", "system": "y", "skipped": "too | late"}, {"step": "peer", "system": "z", "error": "e" * 500},
        {"step": "export", "system": "m", "seconds": 3.0, "records": [{"bytes": 5 * 10**9}]},
        {"step": "build", "system": "m", "seconds": 3.0, "records": [{"bytes": {"a": 10**9, "b": 10**9}}]},
        {"step": "verify", "system": "m", "seconds": 3.0, "records": [VERIFIED], "error": "status 1"},
    ]
    lines = gpu_table.printed(told, {}).splitlines()
    assert "| doctor |  | tensorrt-rtx | does not work |  | no libraries |" in lines
    assert "| peer | y | skipped |  |  | too / late |" in lines
    assert "| export | m | bytes | 5 GB |  |  |" in lines
    assert "| build | m | bytes | 2 GB |  |  |" in lines
    assert "| verify | m | language_model, deviation | 5.0e-01 | MISSED | tolerance 1.0e-02; logits |" in lines
    assert "| verify | m | greedy tokens as the reference | 7 of 8 | MISSED | a picture: token 3 |" in lines
    assert "| verify | m | ERROR |  |  | status 1 |" in lines
    assert max(map(len, lines)) < 200


def test_what_bench_prints_is_read() -> None:
    file = next((gpu_run.HERE / "results").glob("*-bench-int4.json"))
    record = json.loads(file.read_text(encoding="utf-8"))
    lines = {line[0]: line for line in gpu_table.lines_of({"step": "bench", "seconds": 1.0, "records": [record]})}
    assert {"memory", "products", "vision", "resampler", "the whole step"} <= set(lines)
    assert any("share of the bandwidth" in name for name in lines)
    assert gpu_table.TOKEN in gpu_table.bench_times(record)


# The steps' own scripts


def test_the_peers_prompts_are_those_that_bench_measures(tmp_path: Path) -> None:
    from flamingo_rt.bench.workload import Pictures, query_parts, shot_parts

    model = load(threads=1)
    random_graphs.write_prompts(read_bundle(PACKAGED_BUNDLE), 2, tmp_path / "workload")
    written = json.loads((tmp_path / "workload" / "workload.json").read_text())
    for case in written["cases"]:
        *examples, query = Pictures(0).take(case["shots"] + 1)
        parts = shot_parts(model, examples) + query_parts(model, query)
        assert case["input_ids"] == build_prompt(parts, model.tokenizer).input_ids.tolist()
    assert [case["pictures"] for case in written["cases"]] == [[0], [1, 2, 0]]
    assert len(written["pictures"]) == 3


def test_a_peer_that_is_not_there_is_named() -> None:
    finished = run([sys.executable, str(gpu_plan.PEER_SCRIPT), "--check"])
    assert finished.status == 0
    assert "open_flamingo" in json.loads(finished.last_line)["skipped"]


def test_what_stands_in_for_the_peer_gives_the_models_own_tokens(tmp_path: Path) -> None:
    config = small_config()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "picture.png")
    workload = {"pictures": [str(tmp_path / "picture.png")], "tokens": {"image": 7}}
    loop = own_torch.Loop(config, "cpu", torch.float32)
    answer = loop.answer({"input_ids": [7, 20, 30, 40], "pictures": [0]}, workload, 5)
    assert len(answer.times) == 5
    picture = torch.from_numpy(own_torch.visual_pixels(own_torch.Image(pixels), config))[None]
    ids = [7, 20, 30, 40]
    with torch.no_grad():
        parts = loop.model.cross_attention.keys_values(loop.model.encode(picture))
        media = [[one_after_the_other(layer[None]) for layer in part] for part in parts]
        for token in answer.tokens:
            positions, index = torch.arange(len(ids))[None], torch.ones(1, len(ids), dtype=torch.long)
            assert int(loop.model.decode(torch.tensor([ids]), positions, index, *media)[0, -1].argmax()) == token
            ids.append(token)


# From end to end


def test_the_plan_runs_with_the_commands_replaced(tmp_path: Path, capsys, monkeypatch) -> None:
    commands: list[list[str]] = []

    def runner(command, echo, together, limit, on_line) -> Finished:
        commands.append(command)
        if "doctor" in command:
            on_line(json.dumps({**DOCTOR, "cuda": FAILS}))
        if "--check" in command:
            on_line('{"skipped": "no open_flamingo"}')
        return Finished(tuple(command), 0, 1.0, 0, "", None)

    monkeypatch.setattr(gpu_session.Session.__init__, "__defaults__", (gpu_session.time.monotonic, runner))
    arguments = ["--smoke", "--work", str(tmp_path), "--date", "2026-01-02", "--peer-python", "/nowhere"]
    assert gpu_run.main(arguments) == 0
    out = capsys.readouterr().out
    summary = json.loads(out.splitlines()[-1])
    about, *outcomes = map(json.loads, Path(summary["results"]).read_text().splitlines())
    assert Path(summary["results"]).parent == tmp_path
    assert (about["date"], about["size"]["model"], summary["errors"]) == ("2026-01-02", SMOKE.model, 0)
    assert "| peer | open_flamingo | skipped |  |  | no open_flamingo |" in out
    assert names([Skipped(each["step"], "", "") for each in outcomes])[:2] == ["doctor", "look"]
    assert sum("doctor" in command for command in commands) == 1


def test_unknown_backends_are_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        gpu_run.main(["--smoke", "--backends", "opencl"])
    assert "--backends opencl is unknown; known: tensorrt, tensorrt-rtx" in capsys.readouterr().err


@pytest.mark.slow
def test_every_step_works_small_on_the_cpu(tmp_path: Path, capsys) -> None:
    assert gpu_run.main(["--smoke", "--work", str(tmp_path), "--minutes", "30", "--peer-python", sys.executable]) == 0
    outcomes = [json.loads(line) for line in next(tmp_path.glob("*-gpu.jsonl")).read_text().splitlines()][1:]
    done = {each["step"] for each in outcomes if "skipped" not in each}
    assert done == {"doctor", "export", "bench", "verify", "peer"}
    assert "times as fast as" in capsys.readouterr().out
