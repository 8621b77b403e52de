"""``benchmarks.gpu_run`` without a GPU: the order of steps, budgets, failures, results, the peers."""

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
from made_up_gpu_run import DOCTOR, NO_GPU, RIGHT, Runner, bench, row, works
from small_model import small_config

from benchmarks import gpu_run
from benchmarks.comparison.shapes import SMALL, shape_of
from benchmarks.gpu_steps import gpu_measuring, gpu_plan, gpu_session, gpu_table, own_torch, random_graphs
from benchmarks.gpu_steps.gpu_plan import LARGE, SMOKE, Step, System
from benchmarks.gpu_steps.gpu_support import BACKENDS, TARGETS, GpuFacts
from benchmarks.processes import run
from flamingo_rt.bench.workload import Pictures, query_parts, shot_parts
from flamingo_rt.contract import Limits
from flamingo_rt.export.random_model import random_model
from flamingo_rt.model.cross_attention import one_after_the_other
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.processing.tokenizer import TextTokenizer

WORK = Path("work")


def systems() -> list[System]:
    return gpu_plan.gpu_systems(DOCTOR, BACKENDS)[0]


def names(steps: list[Step]) -> list[str]:
    return [step.name for step in steps]


def after(step: Step, option: str) -> str:
    return step.command[step.command.index(option) + 1]


def python(code: str, name: str = "a", share: float = 50.0) -> Step:
    """A step of this Python alone, which starts in no time."""
    return Step(name, "s", (sys.executable, "-I", "-S", "-c", code), share)


def session(folder: Path, seconds: float | None = 600.0) -> gpu_session.Session:
    return gpu_session.Session(folder / "results.jsonl", {"format": 3}, seconds)


def written(folder: Path) -> list[dict[str, Any]]:
    """The result file's lines behind the first."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()][1:]


# The plan


def test_every_backend_s_best_graphs_in_fp16_come_first() -> None:
    found, missing = gpu_plan.gpu_systems(DOCTOR, BACKENDS)
    assert [each.name for each in found] == [
        "torch, fp16", "tensorrt, tensorrt graphs, fp16", "ort-cuda, ort graphs, fp16",
        "tensorrt, tensorrt-classic graphs, fp16", "ort-cuda, tensorrt graphs, fp16",
        "torch, bf16", "tensorrt, tensorrt graphs, bf16", "ort-cuda, ort graphs, bf16",
        "ort-cuda, tensorrt graphs, bf16",
    ], "opset 17 has no bf16"
    assert missing == {"tensorrt-rtx": "no library", "ort-tensorrt-rtx": "no plugin"}
    assert gpu_plan.gpu_systems(NO_GPU, BACKENDS) == ([], dict.fromkeys(BACKENDS, "no GPU"))


def test_a_bundle_has_engines_of_one_target() -> None:
    both = DOCTOR | {"builders": dict.fromkeys(TARGETS, works("tensorrt"))}
    found, missing = gpu_plan.gpu_systems(both, BACKENDS)
    assert {each.backend for each in found} == {"torch", "tensorrt", "ort-cuda"}
    assert "give --backends tensorrt-rtx" in missing["tensorrt-rtx"]
    found, _ = gpu_plan.gpu_systems(both, ["tensorrt-rtx"])
    assert {each.backend for each in found} == {"tensorrt-rtx"}


def test_pytorch_the_first_other_system_and_the_peers_come_before_the_others() -> None:
    steps = gpu_plan.steps_of(LARGE, systems(), WORK, "python")
    assert names(steps)[:21] == [
        "prompts",
        "export packaged", "verify packaged", f"weights {SMALL}", f"export {SMALL}", f"verify {SMALL}",
        "weights openflamingo-3b", "bench openflamingo-3b",
        "export packaged", "build packaged", "verify packaged", f"export {SMALL}", f"build {SMALL}", f"verify {SMALL}",
        "export openflamingo-3b", "build openflamingo-3b", "bench openflamingo-3b", "peer", "peer", "peer", "peer",
    ]
    large = [LARGE.model in step.name for step in steps[21:]]
    assert large == sorted(large)
    measured = [step.system for step in steps if step.name == "bench openflamingo-3b"]
    assert measured == [system.name for system in systems() if system.compute == "fp16"]
    assert len([step for step in steps if step.name.startswith("verify")]) == 2 * len(systems())
    assert not any(step.name.startswith("build") and step.system.startswith("ort") for step in steps)  # no engines
    outputs = [after(step, "--out") for step in steps if step.name.startswith("export")]
    assert len(outputs) == len(set(outputs)), "ort-cuda loads the graphs that were exported for the others"


def test_every_system_is_verified_before_any_of_its_times() -> None:
    done = [(step.system, step.name.split()[0]) for step in gpu_plan.steps_of(LARGE, systems(), WORK, "python")]
    for system in systems():
        tasks = [task for name, task in done if name == system.name and task in ("verify", "bench")]
        assert tasks == ["verify", "verify", "bench"][: 3 if system.compute == LARGE.compute else 2]


def test_the_steps_that_matter_have_the_whole_budget() -> None:
    steps = [gpu_plan.DOCTOR, *gpu_plan.steps_of(LARGE, systems(), WORK, "python")[:19]]
    assert steps[-1].system == "open_flamingo, fp16, compiled"
    assert sum(step.share for step in steps) == pytest.approx(100.0)


def test_steps_are_commands_of_the_product() -> None:
    packaged, build_packaged, verify, *_, export, build, bench = gpu_plan.system_steps(LARGE, systems()[1], WORK)
    bundle = str(WORK / "bundles" / "openflamingo-3b-tensorrt-fp16")
    assert "benchmarks.gpu_steps.random_graphs" in export.command
    assert after(export, "--out") == after(build, "--model") == after(bench, "--model") == bundle
    assert after(build_packaged, "--model") == after(verify, "--model") == after(packaged, "--out")
    for step, command in ((build, "build"), (bench, "bench"), (packaged, "export"), (verify, "verify")):
        assert step.command[step.command.index("flamingo_rt") + 1 :][:2] == (command, "--json")
    assert after(bench, "--shots") == "0,4,32"
    assert after(verify, "--backend") == after(bench, "--backend") == "tensorrt"


@pytest.mark.parametrize(("size", "device"), [(LARGE, "cuda"), (SMOKE, "cpu")], ids=["a GPU", "the CPU"])
def test_pytorch_runs_checkpoints_of_the_weights_that_the_graphs_have(size: gpu_plan.Size, device: str) -> None:
    system = System("torch", "ort", size.compute)
    steps = {step.name: step for step in gpu_plan.system_steps(size, system, WORK)}
    verify, bench = steps["verify packaged"], steps[f"bench {size.model}"]
    assert after(verify, "--ckpt") == after(steps["export packaged"], "--ckpt") == str(gpu_plan.CHECKPOINT)
    assert after(verify, "--model") == after(steps["export packaged"], "--out")
    weights = steps[f"weights {size.model}"]
    assert after(bench, "--model") == after(weights, "--checkpoint")
    assert after(bench, "--compute") == after(weights, "--compute") == size.compute
    assert {after(step, "--device") for step in (verify, bench)} == {device}
    assert "--trust-engines" not in bench.command


def test_the_measured_model_s_engines_hold_what_bench_asks_for() -> None:
    config, given = shape_of(LARGE.model), dict(zip(gpu_plan.LIMITS[::2], map(int, gpu_plan.LIMITS[1::2]), strict=True))
    limits = Limits.of(config, given["--max-batch"], given["--max-tokens"], given["--max-visuals"],
                       given["--max-frames"], given["--capacity"])
    assert limits.visuals > max(LARGE.shots)
    assert LARGE.context <= limits.tokens <= limits.capacity


def test_what_is_made_already_is_not_made_again(tmp_path: Path) -> None:
    system = systems()[1]
    bundle = tmp_path / "bundles" / "packaged-tensorrt-fp16"
    (bundle / "engines" / "tensorrt-8.9").mkdir(parents=True)
    (bundle / "manifest.json").touch()
    assert "build packaged" in names(gpu_plan.system_steps(LARGE, system, tmp_path))
    (bundle / "engines" / "tensorrt-8.9" / "engine.json").touch()
    steps = names(gpu_plan.system_steps(LARGE, system, tmp_path))
    assert "verify packaged" in steps
    assert not {"export packaged", "build packaged"} & set(steps)
    (tmp_path / "checkpoints" / f"{SMALL}-fp16").mkdir(parents=True)
    (tmp_path / "checkpoints" / f"{SMALL}-fp16" / "config.json").touch()
    assert f"weights {SMALL}" not in names(gpu_plan.system_steps(LARGE, systems()[0], tmp_path))


def test_the_peers_get_the_same_prompts_and_amounts() -> None:
    steps = gpu_plan.peer_steps(LARGE, WORK, "their-python")
    theirs = ("their-python", str(gpu_plan.PEER_SCRIPT))
    assert [step.command[:2] == theirs for step in steps] == [True, True, False, False]
    for step in steps:
        given = [after(step, option) for option in ("--work", "--shots", "--dtype", "--runs")]
        assert given == [str(WORK), "0,4,32", "fp16", "3"]
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
    monkeypatch.setattr(gpu_session, "LEAST", 0.0)
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


# The steps' own scripts


def test_the_peers_prompts_are_those_that_bench_measures(tmp_path: Path) -> None:
    stored, folder = random_model(shape_of(SMALL)), tmp_path / "workload"
    random_graphs.write_prompts(stored, (0, 1, 2), folder)
    described, config = json.loads((folder / "workload.json").read_text()), stored.config
    model = SimpleNamespace(
        config=config, tokenizer=TextTokenizer(folder / "tokenizer.json", config.tokens, config.language.vocab_size),
    )
    for case in described["cases"]:
        *examples, query = Pictures(0).take(case["shots"] + 1)
        parts = shot_parts(model, examples) + query_parts(model, query)
        assert case["input_ids"] == build_prompt(parts, model.tokenizer).input_ids.tolist()
    assert [case["pictures"] for case in described["cases"]] == [[0], [1, 0], [1, 2, 0]]
    assert len(described["pictures"]) == 3
    assert json.loads((folder / "shape.json").read_text())["interval"] == config.cross_attention.interval
    before = (folder / "workload.json").stat().st_mtime_ns
    random_graphs.write_prompts(stored, (0, 1, 2), folder)
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


H200 = GpuFacts("NVIDIA H200", (9, 0), "580.159.03")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Tells which GPU there is, whatever this machine has; none before it is called."""
    def has(facts: GpuFacts | None, mixed: str | None = None) -> None:
        monkeypatch.setattr(gpu_measuring, "asked_gpu", lambda: facts)
        monkeypatch.setattr(gpu_measuring, "mixed_cudas", lambda: mixed)

    monkeypatch.setattr(gpu_measuring, "find_gpu", lambda: None)
    has(None)
    return has


class Product(Runner):
    """Answers of the commands: what ``doctor`` finds, a bench that fails, a peer that is not installed."""

    def __init__(
        self, doctor: dict[str, Any] = NO_GPU, seconds: float = 1.0, bench: dict[str, Any] | None = None
    ) -> None:
        super().__init__(seconds)
        self._doctor, self._bench = doctor, bench

    def answer(self, command: tuple[str, ...]) -> tuple[int, str]:
        if "doctor" in command:
            return 0, json.dumps(self._doctor)
        if str(gpu_plan.PEER_SCRIPT) in command:
            return 0, '{"skipped": "no open_flamingo"}'
        if "bench" in command:
            return (0, json.dumps(self._bench)) if self._bench else (1, "Error: out of memory")
        return 0, json.dumps(RIGHT) if "verify" in command else ""


def test_the_plan_runs_with_the_commands_replaced(tmp_path: Path, capsys, monkeypatch, machine) -> None:
    runner = Product().takes_over(monkeypatch)
    assert gpu_run.main(["--smoke", "--work", str(tmp_path), "--peer-python", "/nowhere"]) == 1
    out = capsys.readouterr().out
    summary = json.loads(out.splitlines()[-1])
    about, *outcomes = map(json.loads, Path(summary["results"]).read_text().splitlines())
    assert Path(summary["results"]).parent == tmp_path
    assert (about["size"]["model"], summary["errors"], summary["steps"]) == (SMOKE.model, 3, len(outcomes))
    assert f"bench {SMALL}, ort, ort graphs, fp32: status 1: Error: out of memory" in out
    assert "peer, open_flamingo, fp32, eager: no open_flamingo" in out
    assert [each["system"] for each in outcomes if each["step"] == "backend"] == list(BACKENDS)
    assert {each["skipped"] for each in outcomes if each["step"] == "backend"} == {"no GPU"}
    assert sum("verify" in command for command in runner.commands) == 3


def test_on_a_gpu_the_rows_are_of_what_runs_there_and_the_others_say_why(
    tmp_path: Path, capsys, monkeypatch, machine
) -> None:
    """A Hopper with nothing but PyTorch and onnxruntime-gpu; TensorRT could not be carried."""
    machine(H200, "libraries for several CUDAs are side by side")
    notes = tmp_path / "notes.json"
    missing = {"tensorrt": "not carried: no wheels", "peer": "too old"}
    notes.write_text(json.dumps({"seconds": 40.0, "missing": missing, "notes": ["product: it does not fit"]}))
    Product(DOCTOR, bench=bench(2.0, 0.8, 10.0, 100.0, 12.0)).takes_over(monkeypatch)
    arguments = ["--work", str(tmp_path / "work"), "--results", str(tmp_path), "--notes", str(notes)]
    assert gpu_run.main([*arguments, "--peer-python", "/nowhere"]) == 0
    out = capsys.readouterr().out
    assert row(out, "torch, fp16")["of the bandwidth"] == row(out, "ort-cuda, ort graphs, fp16")["of the bandwidth"]
    assert row(out, "torch, fp16")["of the bandwidth"] == "0.80 (goal 0.78)"
    assert row(out, "tensorrt")[""] == row(out, "tensorrt-rtx")[""] == "not here"
    assert "backend, tensorrt: not carried: no wheels" in out
    assert "backend, tensorrt-rtx: TensorRT-RTX does not run on NVIDIA H200 (compute capability 9.0, Hopper)" in out
    assert "machine: libraries for several CUDAs are side by side" in out
    assert {"pack: peer: too old", "pack: product: it does not fit"} <= set(out.splitlines())
    [file] = tmp_path.glob("*-nvidia-h200-gpu.jsonl")
    about = json.loads(file.read_text().splitlines()[0])
    assert (about["driver"], about["date"]) == ("580.159.03", file.name[:10])


@pytest.mark.parametrize(
    ("facts", "why"),
    [(GpuFacts("NVIDIA H100", (9, 0), "535.54.03"), "the driver 535.54.03 has CUDA 12, libraries for CUDA 13 need 580"),
     (GpuFacts("Tesla V100", (7, 0), "580.65.06"), "begins with compute capability 7.5, this is Tesla V100 (compute "
      "capability 7.0, Volta)")],
    ids=["a driver that is too old", "a GPU that is too old"],
)
def test_a_gpu_or_driver_that_rules_backends_out_is_named_in_their_rows(
    tmp_path: Path, capsys, monkeypatch, machine, facts: GpuFacts, why: str
) -> None:
    machine(facts)
    Product(DOCTOR, bench=bench(2.0, 0.8, 10.0, 100.0, 12.0)).takes_over(monkeypatch)
    arguments = ["--work", str(tmp_path), "--results", str(tmp_path), "--peer-python", "/nowhere"]
    assert gpu_run.main(arguments) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("backend, ort-cuda: "))
    assert why in line
    assert row(out, "ort-cuda")[""] == "not here"


def test_notes_that_are_not_of_unpacking_are_refused(tmp_path: Path, capsys, monkeypatch, machine) -> None:
    Product().takes_over(monkeypatch)
    (tmp_path / "notes.json").write_text("[]")
    assert gpu_run.main(["--work", str(tmp_path), "--notes", str(tmp_path / "notes.json")]) == 1
    assert "is not what --unpack-and-run writes" in capsys.readouterr().err


def test_only_some_steps_are_run_where_they_are_named(tmp_path: Path, capsys, monkeypatch, machine) -> None:
    runner = Product().takes_over(monkeypatch)
    assert gpu_run.main(["--smoke", "--work", str(tmp_path), "--only", "verify,peer"]) == 0
    assert ["doctor" in command for command in runner.commands] == [True, *[False] * 7]


def test_preparing_makes_prompts_and_bundles_alone(tmp_path: Path, capsys, monkeypatch, machine) -> None:
    runner = Product(seconds=1e4).takes_over(monkeypatch)
    arguments = ["--prepare", "--work", str(tmp_path), "--lowerings", "tensorrt-classic,ort"]
    assert gpu_run.main(arguments) == 0
    made = [Path(command[command.index("--out") + 1]).name for command in runner.commands[1:]]
    assert "--prompts" in runner.commands[0]
    assert sorted(made) == sorted([
        "openflamingo-3b-tensorrt-classic-fp16", "packaged-tensorrt-classic-fp16", f"{SMALL}-tensorrt-classic-fp16",
        "openflamingo-3b-ort-fp16", "packaged-ort-fp16", f"{SMALL}-ort-fp16", "packaged-ort-bf16", f"{SMALL}-ort-bf16",
    ])


@pytest.mark.parametrize(
    ("given", "error"),
    [(["--smoke", "--backends", "opencl"], "--backends opencl is unknown; known: torch, tensorrt, tensorrt-rtx"),
     ([], "--work FOLDER is needed"), (["--smoke", "--minutes", "0"], "--minutes is 0: give more than 0"),
     (["--pack", "p", "--piece-mb", "0"], "--piece-mb is 0: give 0.001 or more")],
    ids=["backends", "no folder", "minutes", "pieces"],
)
def test_options_that_mean_nothing_are_refused(capsys, given: list[str], error: str) -> None:
    with pytest.raises(SystemExit):
        gpu_run.main(given)
    assert error in capsys.readouterr().err


@pytest.mark.slow
def test_every_step_works_small_on_the_cpu(tmp_path: Path, capsys) -> None:
    assert gpu_run.main(["--smoke", "--work", str(tmp_path), "--minutes", "30", "--peer-python", sys.executable]) == 0
    outcomes = [json.loads(line) for line in next(tmp_path.glob("*-gpu.jsonl")).read_text().splitlines()][1:]
    done = {each["step"].split()[0] for each in outcomes if "skipped" not in each}
    assert done == {"doctor", "prompts", "weights", "export", "bench", "verify", "peer"}
    told = capsys.readouterr().out
    assert "met: " in row(told, "ort, ort graphs, fp32")["verify packaged"]
    assert "(" in row(told, "ort, tensorrt graphs, fp32")["each token"], "a ratio to PyTorch"
