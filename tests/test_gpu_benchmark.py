"""``benchmarks.gpu_run`` without a GPU: the order of steps, budgets, failures, results, the table, the peers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from small_model import small_config

from benchmarks import gpu_run
from benchmarks.comparison.shapes import SMALL, shape_of
from benchmarks.gpu_steps import gpu_plan, gpu_table, own_torch, random_graphs
from benchmarks.gpu_steps.gpu_plan import LARGE, SMOKE, Step, System
from benchmarks.processes import Finished, run
from flamingo_rt.bench.workload import Pictures, query_parts, shot_parts
from flamingo_rt.contract import Limits
from flamingo_rt.export.random_model import random_model
from flamingo_rt.model.cross_attention import one_after_the_other
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.processing.tokenizer import TextTokenizer

WORK = Path("work")


def works(*lowerings: str) -> dict[str, Any]:
    return {"works": True, "detail": "it runs", "lowerings": list(lowerings)}


def fails(why: str) -> dict[str, Any]:
    return {"works": False, "detail": why}


DOCTOR = {
    "backends": {"ort-cuda": works("ort", "tensorrt"), "ort-tensorrt-rtx": fails("no plugin"), "tensorrt": works()},
    "builders": {"tensorrt": works("tensorrt", "tensorrt-classic"), "tensorrt-rtx": fails("no library")},
}
NO_GPU = {
    "backends": dict.fromkeys(("ort-cuda", "ort-tensorrt-rtx", "tensorrt"), fails("no GPU")),
    "builders": DOCTOR["builders"],
}
VERIFIED = {
    "passed": False, "tokens": {"equal": 7, "compared": 8}, "differences": [{"where": "a picture", "position": 2}],
    "graphs": {
        "vision_encoder": {"deviation": None, "tolerance": 0.01, "where": "features | clip", "accepted": False},
        "resampler": {"deviation": 0.0, "tolerance": 0.01, "where": None, "accepted": True},
        "language_model": {"deviation": 0.005, "tolerance": 0.01, "where": "logits", "accepted": True},
    },
}


def systems() -> list[System]:
    return gpu_plan.gpu_systems(DOCTOR, gpu_plan.BACKENDS)[0]


def names(steps: list[Step]) -> list[str]:
    return [step.name for step in steps]


def after(step: Step, option: str) -> str:
    return step.command[step.command.index(option) + 1]


def python(code: str, name: str = "a", share: float = 50.0) -> Step:
    """A step of this Python alone, which starts in no time."""
    return Step(name, "s", (sys.executable, "-I", "-S", "-c", code), share)


class Runner:
    """In the place of `run`: a command takes so many seconds of a made-up clock, and prints what is given for it."""

    def __init__(self, seconds: float = 1.0, output: str = "", status: int = 0) -> None:
        self.now, self.commands, self.limits = 0.0, list[tuple[str, ...]](), list[float | None]()
        self._seconds, self._output, self._status = seconds, output, status

    def monotonic(self) -> float:
        return self.now

    def answer(self, command: tuple[str, ...]) -> tuple[int, str]:
        return self._status, self._output

    def __call__(self, command: tuple[str, ...], echo: bool, together: bool, limit: float | None) -> Finished:
        assert echo
        assert together  # what a step fails with is a part of its output
        self.commands.append(command)
        self.limits.append(limit)
        self.now += self._seconds
        status, output = self.answer(command)
        return Finished(command, status, self._seconds, 0, output, None)

    def takes_over(self, monkeypatch: pytest.MonkeyPatch) -> Runner:
        monkeypatch.setattr(gpu_run, "run", self)
        monkeypatch.setattr(gpu_run, "time", self)
        return self


def session(folder: Path, seconds: float | None = 600.0) -> gpu_run.Session:
    return gpu_run.Session(folder / "results.jsonl", {"format": 3}, seconds)


def written(folder: Path) -> list[dict[str, Any]]:
    """The result file's lines behind the first."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()][1:]


# The plan


def test_every_backend_s_best_graphs_in_fp16_come_first() -> None:
    found, missing = gpu_plan.gpu_systems(DOCTOR, gpu_plan.BACKENDS)
    assert [each.name for each in found] == [
        "tensorrt, tensorrt graphs, fp16", "ort-cuda, ort graphs, fp16",
        "tensorrt, tensorrt-classic graphs, fp16", "ort-cuda, tensorrt graphs, fp16",
        "tensorrt, tensorrt graphs, bf16", "ort-cuda, ort graphs, bf16", "ort-cuda, tensorrt graphs, bf16",
    ], "opset 17 has no bf16"
    assert missing == {"tensorrt-rtx": "no library", "ort-tensorrt-rtx": "no plugin"}
    assert gpu_plan.gpu_systems(NO_GPU, gpu_plan.BACKENDS) == ([], dict.fromkeys(gpu_plan.BACKENDS, "no GPU"))


def test_a_bundle_has_engines_of_one_target() -> None:
    both = DOCTOR | {"builders": dict.fromkeys(gpu_plan.TARGETS, works("tensorrt"))}
    found, missing = gpu_plan.gpu_systems(both, gpu_plan.BACKENDS)
    assert {each.backend for each in found} == {"tensorrt", "ort-cuda"}
    assert "give --backends tensorrt-rtx" in missing["tensorrt-rtx"]
    found, _ = gpu_plan.gpu_systems(both, ["tensorrt-rtx"])
    assert {each.backend for each in found} == {"tensorrt-rtx"}


def test_the_first_system_and_the_peers_come_before_other_systems_of_which_all_are_verified_first() -> None:
    steps = gpu_plan.steps_of(LARGE, systems(), WORK, "python")
    assert names(steps)[:16] == [
        "prompts", "export openflamingo-3b", "build openflamingo-3b", "bench openflamingo-3b", "export packaged",
        "build packaged", "verify packaged", f"export {SMALL}", f"build {SMALL}", f"verify {SMALL}",
        "peer", "peer", "peer", "peer", "export packaged", "verify packaged",
    ]
    large = [LARGE.model in step.name for step in steps[14:]]
    assert large == sorted(large)
    measured = [step.system for step in steps if step.name == "bench openflamingo-3b"]
    assert measured == [system.name for system in systems() if system.compute == "fp16"]
    assert len([step for step in steps if step.name.startswith("verify")]) == 2 * len(systems())
    assert not any(step.name.startswith("build") and step.system.startswith("ort") for step in steps)  # no engines
    outputs = [after(step, "--out") for step in steps if step.name.startswith("export")]
    assert len(outputs) == len(set(outputs)), "ort-cuda loads the graphs that were exported for tensorrt"


def test_the_steps_that_matter_have_the_whole_budget() -> None:
    steps = [gpu_plan.DOCTOR, *gpu_plan.steps_of(LARGE, systems(), WORK, "python")[:12]]
    assert steps[-1].system == "open_flamingo, fp16, compiled"
    assert sum(step.share for step in steps) == pytest.approx(100.0)


def test_steps_are_commands_of_the_product() -> None:
    _, export, build, bench, packaged, _, verify = gpu_plan.steps_of(LARGE, systems(), WORK, "python")[:7]
    bundle = str(WORK / "bundles" / "openflamingo-3b-tensorrt-fp16")
    assert "benchmarks.gpu_steps.random_graphs" in export.command
    assert after(export, "--out") == after(build, "--model") == after(bench, "--model") == bundle
    for step, command in ((build, "build"), (bench, "bench"), (packaged, "export"), (verify, "verify")):
        assert step.command[step.command.index("flamingo_rt") + 1 :][:2] == (command, "--json")
    assert after(bench, "--shots") == "0,32"
    assert after(verify, "--backend") == "tensorrt"


def test_the_measured_model_s_engines_hold_what_bench_asks_for() -> None:
    config, given = shape_of(LARGE.model), dict(zip(gpu_plan.LIMITS[::2], map(int, gpu_plan.LIMITS[1::2]), strict=True))
    limits = Limits.of(config, given["--max-batch"], given["--max-tokens"], given["--max-visuals"],
                       given["--max-frames"], given["--capacity"])
    assert limits.visuals > LARGE.shots
    assert LARGE.context <= limits.tokens <= limits.capacity


def test_what_is_made_already_is_not_made_again(tmp_path: Path) -> None:
    system = systems()[0]
    bundle = tmp_path / "bundles" / "packaged-tensorrt-fp16"
    (bundle / "engines" / "tensorrt-8.9").mkdir(parents=True)
    (bundle / "manifest.json").touch()
    assert "build packaged" in names(gpu_plan.system_steps(LARGE, system, tmp_path))
    (bundle / "engines" / "tensorrt-8.9" / "engine.json").touch()
    steps = names(gpu_plan.system_steps(LARGE, system, tmp_path))
    assert "verify packaged" in steps
    assert not {"export packaged", "build packaged"} & set(steps)


def test_the_peers_get_the_same_prompts_and_amounts() -> None:
    steps = gpu_plan.peer_steps(LARGE, WORK, "their-python")
    theirs = ("their-python", str(gpu_plan.PEER_SCRIPT))
    assert [step.command[:2] == theirs for step in steps] == [True, True, False, False]
    for step in steps:
        given = [after(step, option) for option in ("--work", "--shots", "--dtype", "--runs")]
        assert given == [str(WORK), "0,32", "fp16", "3"]
        assert ("--compile" in step.command) == step.system.endswith("compiled")


# Running


def test_what_an_early_step_leaves_is_there_for_later_ones(tmp_path: Path, monkeypatch) -> None:
    runner, found = Runner(seconds=5.0).takes_over(monkeypatch), session(tmp_path)
    for share in (10.0, 20.0, 90.0):
        found.run(Step("a", "", ("command",), share))
    assert runner.limits == [60.0, 180.0 - 5.0, 600.0 - 10.0]  # never beyond the budget


def test_a_step_for_which_no_time_is_left_is_skipped(tmp_path: Path, monkeypatch) -> None:
    runner, found = Runner(seconds=596.0).takes_over(monkeypatch), session(tmp_path)
    for _ in range(2):
        found.run(Step("a", "", ("command",), 100.0))
    assert len(runner.commands) == 1
    assert written(tmp_path)[1]["skipped"] == "no time was left for it"


def test_without_a_budget_no_step_is_ended(tmp_path: Path, monkeypatch) -> None:
    runner = Runner(seconds=1e6).takes_over(monkeypatch)
    session(tmp_path, seconds=None).run(Step("a", "", ("command",), 1.0))
    assert runner.limits == [None]


def test_a_step_that_is_too_long_is_ended_and_the_next_one_runs(tmp_path: Path, monkeypatch) -> None:
    """With its children, as `processes.run` kills it: a shell starts in no time, and waits for what it starts."""
    monkeypatch.setattr(gpu_run, "LEAST", 0.0)
    found = session(tmp_path, seconds=30.0)
    found.run(Step("bench", "s", ("sh", "-c", """echo '{"case": 1}'; sleep 600; echo '{"case": 2}'"""), 10.0))
    found.run(python("print('{\"case\": 3}')", share=90.0))
    ended, after_it = written(tmp_path)
    assert ended["records"] == [{"case": 1}]
    assert ended["error"] == "ended after its 3 s; what it told before stands"
    assert (after_it["records"], "error" in after_it) == ([{"case": 3}], False)


@pytest.mark.parametrize(
    ("code", "error"),
    [("import sys; print('{\"a\": 1}'); sys.exit('the reason')", "status 1: the reason"),
     ("print('{\"a\": 1}', flush=True); import os; os.kill(os.getpid(), 11)", "status -11: it told nothing")],
    ids=["an error", "a crash"],
)
def test_a_step_that_fails_is_a_row_with_its_error_and_the_next_one_runs(tmp_path: Path, code: str, error: str) -> None:
    found = session(tmp_path, seconds=None)
    found.run(python(code, "bench"))
    assert [(each["error"], each["records"]) for each in written(tmp_path)] == [(error, [{"a": 1}])], "at once"
    found.run(python("print('fine')", "verify"))
    assert "error" not in written(tmp_path)[1]
    told = gpu_table.printed(found.outcomes, judged=False)
    assert "| s | ERROR |" in told
    assert f"bench, s: {error}" in told
    assert [file.name for file in tmp_path.iterdir()] == ["results.jsonl"]


def test_a_command_that_cannot_be_started_is_a_row_too(tmp_path: Path) -> None:
    found = session(tmp_path)
    found.run(Step("peer", "p", ("/nowhere/python", "script"), 50.0))
    assert written(tmp_path)[0]["error"].startswith("/nowhere/python cannot be started: ")


def test_a_step_that_says_it_is_skipped_has_not_failed(tmp_path: Path, monkeypatch) -> None:
    Runner(output='noise\n{no json\n{"skipped": "no module"}').takes_over(monkeypatch)
    outcome = session(tmp_path).run(Step("peer", "p", ("command",), 50.0))
    assert outcome["skipped"] == "no module"
    assert "error" not in outcome


def test_an_error_is_part_of_the_output_where_it_is_asked_for() -> None:
    code = "import sys; print('one', flush=True); sys.exit('why')"
    assert run([sys.executable, "-c", code], together=True).output == "one\nwhy"
    assert run([sys.executable, "-c", code], quiet=True).output == "one"


# The table


def bench(token: float, reached: float, first: float, cold: float, compiled: float) -> dict[str, Any]:
    def spread(median: float) -> dict[str, float]:
        return {"median": median, "runs": 3}

    return {
        "rates": {"bandwidth": 1.5e12}, "machine": {"gpus": None}, "stages": [],
        "decode": [{"context": context, "milliseconds": spread(token + context), "against": {"reached": reached}}
                   for context in (1500, 0)],
        "shots": [{"shots": 0, "cold": spread(first), "compiled": None},
                  {"shots": 32, "cold": spread(cold), "compiled": spread(compiled)}],
    }


def outcome(step: str, system: str, *records: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"step": step, "system": system, "records": records, "seconds": 9.0, **more}


def peer(system: str, token: float, first: float, behind: float, **more: Any) -> dict[str, Any]:
    cases = [{"case": {"shots": shots, "first_token_ms": [time], "token_ms": [[token, token]]}}
             for shots, time in ((0, first), (32, behind))]
    return outcome("peer", system, {"torch": "2"}, *cases, **more)


def row(told: str, system: str) -> dict[str, str]:
    """A row of the table by its columns."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line.startswith("|")]
    return next(dict(zip(lines[0], line, strict=True)) for line in lines if line[0] == system)


def test_the_table_sets_times_beside_the_peer_s_and_only_the_peer_has_targets() -> None:
    outcomes = [
        outcome("bench m", "tensorrt, fp16", bench(2.0, 0.75, 10.0, 100.0, 12.0)),
        peer("open_flamingo, fp16, eager", 21.0, 30.0, 600.0), peer("open_flamingo, fp16, compiled", 3.0, 30.0, 600.0),
        peer("own PyTorch model, fp16, eager", 30.0, 30.0, 600.0),
    ]
    told = gpu_table.printed(outcomes, judged=True)
    assert row(told, "tensorrt, fp16") == {
        "system": "tensorrt, fp16", "bench m": "9 s", "memory": "1500 GB/s", "each token": "2 ms, 75% (10.5)",
        "each token, context 1500": "1502 ms, 75%", "first token, 0 shots": "10 ms (3)",
        "first token, 32 shots": "100 ms (6)", "first token, 32 shots, compiled": "12 ms (50)", "peer": "",
    }
    assert row(told, "open_flamingo, fp16, compiled")["each token"] == "3 ms (7)"
    lines = told.splitlines()
    assert "tensorrt, fp16: each token at 75% of the ceiling (wanted 0.7: met)" in lines
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
    assert row(told, "s")["first token, 32 shots"] == "100 ms"
    assert "peer, open_flamingo, fp16, eager: ended after its 60 s" in told.splitlines()


def test_every_step_is_in_the_table_whatever_became_of_it() -> None:
    told = gpu_table.printed([
        outcome("doctor", "", DOCTOR), {"step": "backend", "system": "x", "records": [], "skipped": "no | library"},
        outcome("export m", "s", {"bytes": 5 * 10**9}), outcome("build m", "s", {"bytes": {"a": 10**9, "b": 10**9}}),
        outcome("verify m", "s", VERIFIED, error="status 1: it told nothing"),
    ], judged=True)
    assert row(told, "s") == {
        "system": "s", "export m": "9 s, 5 GB", "build m": "9 s, 2 GB",
        "verify m": "MISSED: 7 of 8 tokens; a picture: token 3; vision_encoder no number of 1.0e-02 at features / "
                    "clip; resampler not run; language_model 5.0e-03 of 1.0e-02",
    }
    assert len([line for line in told.splitlines() if line.startswith("|")]) == 3, "of a missing backend, the reason"
    assert [line for line in told.splitlines() if line and line[0] != "|"] == [
        "backend, x: no | library", "verify m, s: status 1: it told nothing",
    ]


def test_what_bench_prints_is_read() -> None:
    file = next((gpu_run.HERE / "results").glob("*-bench-int4.json"))
    found = gpu_table.figures([json.loads(file.read_text(encoding="utf-8"))])
    assert {"each token", "each token, context 1500", "vision", "resampler", "first token, 0 shots"} <= set(found)
    assert found["each token"][0] < found["each token, context 1500"][0]
    assert found["each token"][1] == pytest.approx(0.55, abs=0.01)


# The steps' own scripts


def test_the_peers_prompts_are_those_that_bench_measures(tmp_path: Path) -> None:
    stored, folder = random_model(shape_of(SMALL)), tmp_path / "workload"
    random_graphs.write_prompts(stored, 2, folder)
    described, config = json.loads((folder / "workload.json").read_text()), stored.config
    model = SimpleNamespace(
        config=config, tokenizer=TextTokenizer(folder / "tokenizer.json", config.tokens, config.language.vocab_size),
    )
    for case in described["cases"]:
        *examples, query = Pictures(0).take(case["shots"] + 1)
        parts = shot_parts(model, examples) + query_parts(model, query)
        assert case["input_ids"] == build_prompt(parts, model.tokenizer).input_ids.tolist()
    assert [case["pictures"] for case in described["cases"]] == [[0], [1, 2, 0]]
    assert len(described["pictures"]) == 3
    assert json.loads((folder / "shape.json").read_text())["interval"] == config.cross_attention.interval
    before = (folder / "workload.json").stat().st_mtime_ns
    random_graphs.write_prompts(stored, 2, folder)
    assert (folder / "workload.json").stat().st_mtime_ns == before, "a folder that is whole stays"


def test_a_peer_that_is_not_there_is_named_and_skipped(tmp_path: Path) -> None:
    """Also where it is to be measured: there are no prompts in the folder, which comes later."""
    for more in (["--check"], ["--work", str(tmp_path)]):
        finished = run([sys.executable, str(gpu_plan.PEER_SCRIPT), *more])
        assert finished.status == 0
        assert "open_flamingo" in json.loads(finished.last_line)["skipped"]


def test_the_loop_in_pytorch_gives_the_model_s_own_tokens(tmp_path: Path) -> None:
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


class Product(Runner):
    """Answers of the commands: no GPU works, the bench fails, the peer is not installed."""

    def answer(self, command: tuple[str, ...]) -> tuple[int, str]:
        if "doctor" in command:
            return 0, json.dumps(NO_GPU)
        if str(gpu_plan.PEER_SCRIPT) in command:
            return 0, '{"skipped": "no open_flamingo"}'
        return (1, "Error: out of memory") if "bench" in command else (0, "")


def test_the_plan_runs_with_the_commands_replaced(tmp_path: Path, capsys, monkeypatch) -> None:
    runner = Product().takes_over(monkeypatch)
    assert gpu_run.main(["--smoke", "--work", str(tmp_path), "--peer-python", "/nowhere"]) == 1
    out = capsys.readouterr().out
    summary = json.loads(out.splitlines()[-1])
    about, *outcomes = map(json.loads, Path(summary["results"]).read_text().splitlines())
    assert Path(summary["results"]).parent == tmp_path
    assert (about["size"]["model"], summary["errors"], summary["steps"]) == (SMOKE.model, 2, len(outcomes))
    assert f"bench {SMALL}, ort, ort graphs, fp32: status 1: Error: out of memory" in out
    assert "peer, open_flamingo, fp32, eager: no open_flamingo" in out
    assert [each["system"] for each in outcomes if each["step"] == "backend"] == list(gpu_plan.BACKENDS)
    assert sum("verify" in command for command in runner.commands) == 2, "after a bench that failed"


def test_only_some_steps_are_run_where_they_are_named(tmp_path: Path, capsys, monkeypatch) -> None:
    runner = Product().takes_over(monkeypatch)
    assert gpu_run.main(["--smoke", "--work", str(tmp_path), "--only", "verify,peer"]) == 0
    assert ["doctor" in command for command in runner.commands] == [True, *[False] * 6]


def test_preparing_makes_prompts_and_bundles_alone(tmp_path: Path, capsys, monkeypatch) -> None:
    runner = Product(seconds=1e4).takes_over(monkeypatch)
    arguments = ["--prepare", "--work", str(tmp_path), "--lowerings", "tensorrt-classic,ort"]
    assert gpu_run.main(arguments) == 0
    made = [Path(command[command.index("--out") + 1]).name for command in runner.commands[1:]]
    assert "--prompts" in runner.commands[0]
    assert sorted(made) == sorted([
        "openflamingo-3b-tensorrt-classic-fp16", "packaged-tensorrt-classic-fp16", f"{SMALL}-tensorrt-classic-fp16",
        "openflamingo-3b-ort-fp16", "packaged-ort-fp16", f"{SMALL}-ort-fp16", "packaged-ort-bf16", f"{SMALL}-ort-bf16",
    ])


def test_unknown_backends_are_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        gpu_run.main(["--smoke", "--backends", "opencl"])
    assert "--backends opencl is unknown; known: tensorrt, tensorrt-rtx" in capsys.readouterr().err


@pytest.mark.slow
def test_every_step_works_small_on_the_cpu(tmp_path: Path, capsys) -> None:
    assert gpu_run.main(["--smoke", "--work", str(tmp_path), "--minutes", "30", "--peer-python", sys.executable]) == 0
    outcomes = [json.loads(line) for line in next(tmp_path.glob("*-gpu.jsonl")).read_text().splitlines()][1:]
    done = {each["step"].split()[0] for each in outcomes if "skipped" not in each}
    assert done == {"doctor", "prompts", "export", "bench", "verify", "peer"}
    told = capsys.readouterr().out
    assert "met: " in row(told, "ort, ort graphs, fp32")["verify packaged"]
    assert "(" in row(told, "ort, tensorrt graphs, fp32")["each token"], "a ratio to PyTorch"
