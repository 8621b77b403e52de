"""``benchmarks/gpu.py`` without a GPU: the order of parts, budgets, rows, tables, and what stands in for the peer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from small_model import small_config

from benchmarks import gpu
from benchmarks.gpu_parts import correct, facts, own_torch, plan, rows, running, systems, table
from benchmarks.gpu_parts.plan import LARGE, SMOKE, Part, Skipped
from benchmarks.processes import Finished, run
from flamingo_rt import load
from flamingo_rt.errors import DataError, DependencyError
from flamingo_rt.model.cross_attention import one_after_the_other

WORK = Path("work")
AVAILABLE = {
    "ort": ["ort", "tensorrt", "tensorrt-classic"], "tensorrt": ["tensorrt", "tensorrt-classic"],
    "tensorrt-rtx": "no libraries", "ort-cuda": ["ort", "tensorrt"], "ort-tensorrt-rtx": "no plugin",
}


def names(parts: list) -> list[tuple[str, str]]:
    return [(part.name, part.system) for part in parts]


def part(name: str = "a", share: float = 10.0, least: float = 1.0, **more) -> Part:
    return Part(name, "", ("command",), share, least, **more)


class Runner:
    """Takes so many seconds of a made-up clock for each part, and says what it is told to."""

    def __init__(self, seconds: float, lines: tuple[str, ...] = (), status: int = 0) -> None:
        self.now, self.limits = 0.0, []
        self._seconds, self._lines, self._status = seconds, lines, status

    def __call__(self, command, environment, echo, limit, on_line) -> Finished:
        self.limits.append(limit)
        for line in self._lines:
            on_line(line)
        self.now += self._seconds
        return Finished(tuple(command), self._status, self._seconds, 0, "", None)


def session(runner: Runner, folder: Path, seconds: float | None = 600.0) -> running.Session:
    return running.Session(folder / "results.json", {"format": 1}, seconds, lambda: runner.now, runner)


# The plan


def test_the_first_backend_and_the_peer_come_before_other_backends() -> None:
    found, missing = plan.gpu_systems(AVAILABLE)
    assert [each.name for each in found[:4]] == [
        "tensorrt, fp16", "ort-cuda, fp16", "tensorrt, classic graphs, fp16", "ort-cuda, tensorrt graphs, fp16",
    ]
    assert {each.compute for each in found[4:]} == {"bf16"}
    assert missing == [Skipped("backend", "tensorrt-rtx", "no libraries"),
                       Skipped("backend", "ort-tensorrt-rtx", "no plugin")]
    order = names(plan.parts_of(LARGE, found, WORK, None, "not installed"))
    assert [name for name, _ in order[:8]] == [
        "export", "build", "speed", "correct", "correct", "peer", "peer", "peer",
    ]
    assert order.index(("speed", "ort-cuda, fp16")) > order.index(("correct", "ort-cuda, fp16: packaged")) > 7
    assert ("build", "ort-cuda, fp16") not in order  # it has no engines


def test_the_parts_that_matter_have_the_whole_budget() -> None:
    found, _ = plan.gpu_systems(AVAILABLE)
    parts = plan.parts_of(LARGE, found, WORK, None, "not installed")[:8]
    shares = sum(each.share for each in parts if isinstance(each, Part))
    assert plan.facts_part(None).share + shares == running.WHOLE


def test_without_a_peer_our_own_model_stands_in_and_is_named_so(tmp_path: Path) -> None:
    skipped, eager, compiled = plan.peer_parts(LARGE, tmp_path, "python", "no module named open_flamingo")
    assert skipped == Skipped("peer", "open_flamingo", "no module named open_flamingo")
    assert "a stand-in" in eager.system
    assert "a stand-in" in compiled.system
    assert "benchmarks.gpu_parts.own_torch" in eager.command
    eager, compiled = plan.peer_parts(LARGE, tmp_path, "python", "")
    assert eager.command[:2] == ("python", str(plan.PEER_SCRIPT))
    assert compiled.command[-2:] == ("--compile", "inductor")
    assert json.loads((tmp_path / "peer-openflamingo-3b.json").read_text())["interval"] == 1


def test_without_any_backend_the_peer_still_has_its_prompts() -> None:
    order = [name for name, _ in names(plan.parts_of(LARGE, [], WORK, None, "not installed"))]
    assert order == ["speed", "export", "peer", "peer", "peer"]


def test_preparing_makes_bundles_and_engines_ahead_of_time() -> None:
    parts = plan.prepared_parts(LARGE, WORK, ["tensorrt", "ort"], ["86", "89"])
    assert [part.name for part in parts].count("build") == 1
    assert parts[1].command[-2:] == ("--compute-capability", "86,89")
    assert [part.system for part in parts if part.name == "export"][:3] == [
        "openflamingo-3b, tensorrt graphs, fp16", "packaged, tensorrt graphs, fp16", "packaged, tensorrt graphs, bf16",
    ]
    assert {part.name for part in plan.prepared_parts(LARGE, WORK, ["tensorrt"], [])} == {"export"}


def test_a_systems_slug_is_read_back() -> None:
    for system in (systems.System("tensorrt", "tensorrt-classic", "bf16", "tensorrt-rtx"),
                   systems.System("ort-cuda", "ort", "fp16")):
        assert systems.System.named(system.slug) == system


# Running


def test_what_an_early_part_leaves_is_there_for_later_ones(tmp_path: Path) -> None:
    runner = Runner(seconds=5.0)
    session(runner, tmp_path).run([part(share=10.0), part(share=20.0), part(share=90.0)])
    assert runner.limits == [60.0, 180.0 - 5.0, 600.0 - 10.0]  # never beyond the budget


def test_a_part_for_which_time_is_short_is_skipped_with_the_reason(tmp_path: Path) -> None:
    runner = Runner(seconds=590.0)
    found = session(runner, tmp_path)
    found.run([part("a", share=100.0), part("b", least=15.0)])
    assert found.rows[-1] == {"part": "b", "system": "", "skipped": "10 s are left for it, it needs 15"}


def test_a_part_whose_needs_were_not_made_or_that_is_done_is_skipped(tmp_path: Path) -> None:
    found = session(Runner(1.0), tmp_path)
    found.run([part(needs=(tmp_path / "bundle",)), part(done=True), Skipped("peer", "x", "not here")])
    assert [row["skipped"].split(":")[0] for row in found.rows] == [
        f"there is no {tmp_path / 'bundle'}", "it is there already", "not here",
    ]


def test_rows_are_in_the_file_at_once_and_a_crash_is_a_row(tmp_path: Path) -> None:
    line = json.dumps({"measure": "each token", "value": 1.5, "unit": "ms"})
    found = session(Runner(2.0, ("noise", "{no json", line), status=-11), tmp_path)
    found.run([part("speed")])
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["rows"] == found.rows
    assert written["format"] == 1
    assert written["rows"][0] == {"part": "speed", "system": "", "measure": "each token", "value": 1.5, "unit": "ms"}
    assert "status -11" in written["rows"][1]["error"]
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_part_that_takes_longer_is_ended_and_what_it_told_stays() -> None:
    code = "import time; print('{\"measure\": 1}', flush=True); time.sleep(60)"
    told: list[str] = []
    finished = run([sys.executable, "-c", code], limit=5.0, on_line=told.append)
    assert finished.status == -9
    assert finished.seconds < 30
    assert told == ['{"measure": 1}']


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(DependencyError("no tensorrt"), 0, {"skipped": "no tensorrt"}), (DataError("damaged"), 1, {"error": "damaged"}),
     (MemoryError("much"), 1, {"error": "MemoryError: much"})],
)
def test_a_parts_end_says_why(capsys, error: Exception, code: int, said: dict) -> None:
    with pytest.raises(SystemExit) as ended, rows.reporting():
        raise error
    assert ended.value.code == code
    assert rows.parsed(capsys.readouterr().out.strip()) == said


# The table


def timed(name: str, system: str, key: str, value: float, shots: int = 0) -> dict:
    return {"part": name, "system": system, "measure": key, "value": value, "unit": "ms", "key": key, "shots": shots}


def test_ratios_are_the_peers_time_over_ours_and_only_the_peer_has_targets() -> None:
    told = [
        timed("speed", "tensorrt, fp16", "token", 2.0), timed("speed", "tensorrt, fp16", "first_token", 10.0),
        timed("speed", "tensorrt, fp16", "first_token", 100.0, 32),
        timed("speed", "tensorrt, fp16", "first_token_compiled", 12.0, 32),
        *(entry for system, each in (("open_flamingo, fp16, eager", 21.0), ("open_flamingo, fp16, compiled", 3.0),
                                     ("own PyTorch model, a stand-in, fp16, eager", 30.0))
          for entry in (timed("peer", system, "token", each), timed("peer", system, "first_token", 600.0, 32))),
    ]
    eager, compiled, stand_in = table.ratios(told, table.TARGETS)
    assert eager[2:] == ("10.50 (>= 10: met)", "", "6.00", "50.00")
    assert compiled[2] == "1.50 (>= 2: MISSED)"
    assert stand_in[2] == "15.00"
    assert "met" not in table.printed(told, {})


def test_every_row_has_its_line_whatever_became_of_it() -> None:
    told = [
        {"part": "speed", "system": "x", "measure": "share", "value": 0.71234, "unit": "", "target": ">= 0.7"},
        {"part": "peer", "system": "y", "skipped": "too | late"}, {"part": "peer", "system": "z", "error": "e" * 500},
        {"part": "peer", "system": "z", "measure": "the whole part", "value": 3, "unit": "s", "key": "time"},
    ]
    lines = table.printed(told, {}).splitlines()
    assert lines[2] == "| speed | x | share | 0.7123 | >= 0.7: met |  |"
    assert lines[3] == "| peer | y | skipped |  |  | too / late |"
    assert lines[4].startswith("| peer | z | ERROR |")
    assert len(lines[4]) < 200
    assert len(lines) == 5


# The parts


def test_facts_are_told_where_there_is_no_gpu(capsys) -> None:
    facts.describe()
    told = [rows.parsed(line) for line in capsys.readouterr().out.splitlines()]
    assert {"processor", "GPU", "libraries"} <= {row["measure"] for row in told}
    found = facts.available()
    assert found["ort"] == ["ort", "tensorrt", "tensorrt-classic"]
    assert isinstance(found["ort-cuda"], str)


def test_an_engine_that_takes_few_pictures_at_once_is_compared_on_all(capsys) -> None:
    model = load(threads=1)
    sizes: list[int] = []

    class Few(correct.InPieces):
        """Refuses more than the runtime gives at once."""

        def bind(self, graph, inputs, outputs, constant=()):
            sizes.append(len(next(iter(inputs.values()))))
            return model.backend.bind(graph, inputs, outputs, constant)

    held, exact = correct.compared_weights(systems.stored_model(systems.PACKAGED), "fp32")
    reference = correct.compute_reference(correct.streamed_model(exact.config, exact.tensors))
    correct.tell_deviations(Few(model.backend), reference, held, "fp32")
    told = [rows.parsed(line) for line in capsys.readouterr().out.splitlines()]
    assert len(told) == 3
    assert all(row["value"] <= float(row["target"].split()[1]) for row in told)
    assert max(sizes) == 4


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


def test_facts_alone_run_from_end_to_end(tmp_path: Path, capsys) -> None:
    arguments = ["--smoke", "--work", str(tmp_path), "--only", "nothing", "--date", "2026-01-02", "--peer-python",
                 "/nowhere"]
    assert gpu.main(arguments) == 0
    out = capsys.readouterr().out
    assert "| facts |  | processor |" in out
    summary = json.loads(out.splitlines()[-1])
    assert Path(summary["results"]).parent == tmp_path
    assert summary["errors"] == 0
    assert json.loads(Path(summary["results"]).read_text())["date"] == "2026-01-02"


@pytest.mark.slow
def test_every_part_works_small_on_the_cpu(tmp_path: Path, capsys) -> None:
    assert gpu.main(["--smoke", "--work", str(tmp_path), "--minutes", "30", "--peer-python", sys.executable]) == 0
    written = json.loads(next(tmp_path.glob("*-gpu.json")).read_text())
    done = {row["part"] for row in written["rows"] if "measure" in row}
    assert done == {"facts", "export", "speed", "correct", "peer"}
    assert written["size"]["model"] == SMOKE.model
    assert "times as fast as" in capsys.readouterr().out
