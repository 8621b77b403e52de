"""The comparison with peers: what is done with samples, records and prompts. No peer and no large model is needed."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from imported_names import imported
from made_up_comparison import MACHINE, PLAN, answer, case, compared, large_tokenizer, record

from benchmarks import compare, ours, processes, stand_ins
from benchmarks.comparison import (
    chart,
    compared_systems,
    comparison_tables,
    machine_names,
    result_file,
    shapes,
    workload_folder,
)
from benchmarks.peers.answer_timing import (
    Plan,
    add_plan_options,
    measure_beams,
    measure_case,
    plan_of,
    repeated,
    wanted_cases,
)
from flamingo_rt.errors import UsageError

ROOT = Path(__file__).parent.parent

# The package


def files_of(folder: str) -> list[Path]:
    return [file for file in sorted((ROOT / folder).rglob("*.py")) if ".venv" not in file.parts]


def test_what_runs_in_the_peers_environment_needs_neither_the_product_nor_other_benchmarks() -> None:
    for file in files_of("benchmarks/peers"):
        for name in imported(file):
            assert name.split(".")[0] != "flamingo_rt", f"{file} imports {name}"
            assert not name.startswith("benchmarks") or name.startswith("benchmarks.peers"), f"{file} imports {name}"
    shared = {name.split(".")[0] for name in imported(ROOT / "benchmarks" / "peers" / "answer_timing.py")}
    assert shared <= sys.stdlib_module_names


def test_no_benchmark_changes_where_modules_are_found() -> None:
    for file in files_of("benchmarks"):
        assert "sys.path" not in file.read_text(encoding="utf-8"), file


def test_no_benchmark_has_the_name_of_another_file_of_the_project() -> None:
    product = [file for folder in ("flamingo_rt", "export", "engines") for file in files_of(folder)]
    own = [file for file in files_of("benchmarks") if "torchvision_stand_in" not in file.parts]
    names = [file.name for file in (*product, *own) if file.name != "__init__.py"]
    assert [file.name for file in own if names.count(file.name) > 1] == []


# Samples


def test_the_first_token_and_the_gaps_come_from_the_same_answer() -> None:
    assert answer(100.0, 10.0, 20.0).first_ms == pytest.approx(100.0)
    assert answer(100.0, 10.0, 20.0).gaps_ms == pytest.approx([10.0, 20.0])


def test_a_case_keeps_every_sample_but_the_warm_up() -> None:
    answers = iter([answer(900.0), *(answer(first, 1.0, 2.0, 3.0) for first in (50.0, 60.0, 70.0))])
    kept = measure_case({"shots": 0, "pictures": [0], "input_ids": [1, 2]}, lambda tokens: next(answers), PLAN)
    assert kept["first_token_ms"] == pytest.approx([50.0, 60.0, 70.0])
    assert kept["token_ms"] == [pytest.approx([1.0, 2.0, 3.0])] * 3
    assert kept["tokens"] == [0, 1, 2, 3]
    assert kept["prompt_tokens"] == 2


def test_an_answer_of_another_length_ends_the_measurement() -> None:
    with pytest.raises(SystemExit, match="2 tokens came back, 4 were asked for"):
        measure_case({"shots": 0, "pictures": [], "input_ids": []}, lambda tokens: answer(1.0, 1.0), PLAN)


def test_repetitions_end_with_the_budget_but_one_is_always_made() -> None:
    spent = Plan(threads=1, tokens=2, repeats=5, budget=0.0, shots=None, beams=0, beam_tokens=1)
    assert repeated(lambda: 1, spent) == [1]
    assert repeated(lambda: 1, PLAN) == [1, 1, 1]


def test_beams_are_measured_beside_greedy_answers_of_the_same_length() -> None:
    asked: list[tuple[str, int]] = []
    measure_beams(lambda n: asked.append(("greedy", n)), lambda n: asked.append(("beams", n)), PLAN)
    assert [entry for entry in asked if entry[1] == PLAN.beam_tokens] == [("greedy", 5)] * 3 + [("beams", 5)] * 3


def test_the_time_per_token_is_the_median_and_its_spread_that_of_whole_answers() -> None:
    gaps = {"token_ms": [[1.0, 1.0, 90.0], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0]]}
    assert result_file.per_token(gaps) == result_file.Spread(2.0, 1.0, 3.0)


def test_answers_are_compared_place_by_place() -> None:
    assert result_file.first_difference([1, 2, 3], [1, 2, 3, 4]) is None
    assert result_file.first_difference([1, 2, 3], [1, 9, 9]) == 1
    assert result_file.differing([1, 2, 3], [1, 9, 9]) == 2


# The result file


def test_pieces_are_merged_into_one_file_and_a_run_made_again_replaces_its_record(tmp_path: Path) -> None:
    path = result_file.result_path(tmp_path / "new", "2026-01-02", "a-cpu", "openflamingo-3b")
    found = result_file.read_results(path, "2026-01-02", "openflamingo-3b", MACHINE)
    for name, number in (("peer-fp32", 1), ("ours-int8", 2), ("peer-fp32", 3)):
        found = result_file.merged(found, "runs", name, {"number": number})
        result_file.write_results(path, found)
        found = result_file.read_results(path, "2026-01-02", "openflamingo-3b", MACHINE)
    assert found["runs"] == {"peer-fp32": {"number": 3}, "ours-int8": {"number": 2}}
    assert path.name == "2026-01-02-a-cpu-openflamingo-3b.json"
    assert [line for line in path.read_text().splitlines() if "number" in line] == [
        '  "peer-fp32": {"number": 3},', '  "ours-int8": {"number": 2}',
    ]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_results_of_another_machine_or_preset_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    result_file.write_results(path, compared())
    with pytest.raises(SystemExit, match="was measured on A CPU, this is B"):
        result_file.read_results(path, "2026-01-02", "openflamingo-3b", MACHINE | {"cpu": "B"})
    with pytest.raises(SystemExit, match="another comparison"):
        result_file.read_results(path, "2026-01-02", "openflamingo-9b", MACHINE)


# Tables and chart


def test_ratios_are_against_open_flamingo() -> None:
    told = comparison_tables.systems_table(compared(
        peer_fp32=record(case(0, 900.0, 400.0)), peer_bf16=record(case(0, 500.0, 200.0)),
        ours_int8=record(case(0, 300.0, 50.0)),
    ))
    row = next(line for line in told.splitlines() if "flamingo-rt int8" in line)
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[1:6] == ["flamingo-rt int8", "50 (50 to 50)", "8.00", "4.00", "20.0 GB/s"]
    assert cells[6] == "301 (300 to 302)"


def test_what_was_not_measured_is_left_out() -> None:
    told = comparison_tables.report(compared(ours_int4=record(case(0, 300.0, 50.0))))
    assert "flamingo-rt int4" in told
    assert "beams" not in told
    assert "tokens against" not in told
    assert "with speculation" not in told


def test_prompts_read_before_have_a_line_of_their_own() -> None:
    told = comparison_tables.shots_table(compared(ours_fp32=record(
        case(0, 1000.0, 5.0), case(4, 8000.0, 5.0), compiled=[case(4, 1200.0, 5.0)],
    )))
    assert told.splitlines()[-2:] == [
        "| flamingo-rt fp32 | 1 | 8 |", "| flamingo-rt fp32, shots read before |  | 1.2 |",
    ]


def test_the_first_differing_token_is_named() -> None:
    told = comparison_tables.tokens_table(compared(
        peer_fp32=record(case(0, 1, 1), case(4, 1, 1)), idefics_fp32=record(case(0, 1, 1, [9, 9, 9, 9])),
        ours_int8=record(case(0, 1, 1), case(4, 1, 1, [1, 2, 7, 7])),
    ))
    assert told.splitlines()[-1] == "| flamingo-rt int8 | 2 of 8 | 4 shots: token 3 |"
    assert "IDEFICS" not in told


def test_the_table_of_speculation_compares_with_plain_decoding_and_with_the_peer() -> None:
    speculated = {"shots": 4, "speculation": 7, "steps": 2, "drafted": 2, "accepted": 1, "decode_ms": [10.0],
                  "tokens_equal": True}
    told = comparison_tables.speculation_table(compared(
        peer_fp32=record(case(4, 1, 40.0)), ours_fp32=record(case(4, 1, 5.0), speculation=[speculated]),
    ))
    assert told.splitlines()[-1] == "| flamingo-rt fp32 | 4 | 2 for 3 | 10 (10 to 10) | 1.50 | 12.00 | yes |"


def test_the_memory_of_a_process_stands_beside_the_size_of_its_bundle() -> None:
    infer = {"threads": 2, "seconds": [3.0, 1.0, 2.0], "peak_bytes": [3 * 10**9] * 3, "bundle_bytes": 2 * 10**9}
    start = {"threads": 2, "first_output_s": [0.3, 0.2, 0.4]}
    told = comparison_tables.processes_table(compared(infer_int4=infer, start=start))
    assert "| 2.00 s | 3.00 GB = 1.50 times the bundle |" in told
    assert "0.300 s (0.200 to 0.400)" in told


def test_labels_are_moved_apart_as_little_as_possible() -> None:
    assert chart.apart([0.0, 5.0], 1.0) == [0.0, 5.0]
    assert chart.apart([0.0, 0.0, 0.0, 9.0], 1.0) == pytest.approx([-1.0, 0.0, 1.0, 9.0])
    moved = chart.apart([0.0, 0.1, 0.9, 1.0, 1.05], 0.5)
    assert all(later - earlier >= 0.5 - 1e-9 for earlier, later in itertools.pairwise(moved))


def test_the_chart_is_drawn_from_whatever_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the chart needs matplotlib")
    chart.draw(compared(
        peer_fp32=record(case(0, 900.0, 400.0), case(4, 2000.0, 400.0)),
        ours_int8=record(case(0, 300.0, 50.0), case(4, 900.0, 50.0), compiled=[case(4, 300.0, 50.0)]),
    ), tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().count("<svg") == 1
    with pytest.raises(SystemExit, match="nothing to draw"):
        chart.draw(compared(), tmp_path / "none.svg")


def test_every_measured_system_has_a_colour() -> None:
    assert set(chart.SHADES) == {name for name, each in compared_systems.SYSTEMS.items()
                                 if each.kind in compared_systems.MEASURED and not each.captions}


# The workload


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The workload of the small model with up to four shots, and where it is."""
    folder = tmp_path_factory.mktemp("work")
    tokenizer = large_tokenizer(folder / "language")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload_folder, "SHOTS", (0, 1, 4))
        workload_folder.write_workload(shapes.shape_of(shapes.SMALL), tokenizer, folder)
    return json.loads((folder / "workload.json").read_text()) | {"folder": folder}


def test_a_query_has_31_tokens_and_each_shot_32(written: dict) -> None:
    assert [len(each["input_ids"]) for each in written["cases"]] == [31, 31 + 32, 31 + 4 * 32]


def test_there_is_an_image_token_for_each_picture_and_an_end_for_each_shot(written: dict) -> None:
    tokens = written["tokens"]
    for each in written["cases"]:
        assert each["input_ids"].count(tokens["image"]) == len(each["pictures"]) == each["shots"] + 1
        assert each["input_ids"].count(tokens["end_of_chunk"]) == each["shots"]
        assert each["pictures"][-1] == 0
        assert len(set(each["pictures"])) == each["shots"] + 1
        assert max(each["input_ids"]) < tokens["rows"]


def test_pictures_have_the_encoders_size_and_differ(written: dict) -> None:
    pixels = np.load(written["folder"] / written["pixels"])
    assert pixels.shape == (5, 3, 224, 224)
    assert pixels.dtype == np.float32
    assert np.abs(pixels[0] - pixels[1]).max() > 0.1


def test_numbers_of_shots_that_are_not_there_are_refused(written: dict) -> None:
    plan = Plan(1, 2, 1, 1.0, (4, 0), 0, 1)
    assert [each["shots"] for each in wanted_cases(written, plan)] == [0, 4]
    with pytest.raises(SystemExit, match="--shots 3 is not in the workload, which has 0, 1, 4"):
        wanted_cases(written, Plan(1, 2, 1, 1.0, (3,), 0, 1))


def test_our_answers_have_a_piece_of_text_for_each_token_and_never_end_early() -> None:
    class Tokenizer:
        stop_ids, image_id = frozenset({1}), 5

    stand_in = stand_ins.OneLetterTokens(Tokenizer())
    assert (stand_in.stop_ids, stand_in.image_id, stand_in.decode([1, 2, 1])) == (frozenset(), 5, "xxx")


def test_keys_and_values_of_pictures_are_not_read_for_a_token() -> None:
    names = ("language.layers.0.attention.key.weight", "cross_attention.layers.0.query.weight",
             "cross_attention.layers.0.key.weight", "resampler.latents", "vision.class_token")
    assert [ours.read_for_a_token(name) for name in names] == [True, True, False, False, False]


# Commands


def test_the_small_model_is_not_checked_against_a_preset() -> None:
    small = compared_systems.build_command("bundle-int4", Path("work"), shapes.SMALL)
    large = compared_systems.build_command("checkpoint", Path("work"), "openflamingo-3b")
    assert "--preset" not in small
    assert small[small.index("--quantize") + 1] == "int4"
    assert large[large.index("--preset") + 1] == "openflamingo-3b"
    assert "import" in large
    assert "--quantize" not in compared_systems.build_command("bundle-fp32", Path("work"), shapes.SMALL)


def test_only_exports_with_4_bit_matrices_name_a_rounding() -> None:
    int8, int4 = (
        compared_systems.build_command(f"bundle-{name}", Path("work"), shapes.SMALL) for name in ("int8", "int4")
    )
    assert "--rounding" in int4
    assert "--rounding" not in int8


def test_captions_are_measured_behind_the_cases_of_the_same_model() -> None:
    names = list(compared_systems.SYSTEMS)

    def command(name: str) -> list[str]:
        system = compared_systems.SYSTEMS[name]
        return compared_systems.measure_command(system, Path("work"), shapes.SMALL, "peer-python", [])

    for name in compared_systems.CAPTIONED:
        assert names[names.index(name) + 1] == f"captions-{name}"
        assert "--captions" in command(f"captions-{name}")
        assert "--captions" not in command(name)


def test_only_what_the_peer_can_be_built_as_is_compared() -> None:
    with pytest.raises(UsageError, match="openflamingo-4b"):
        shapes.comparable("openflamingo-4b")
    for name in shapes.SHAPES:
        assert shapes.comparable(name).name == name


def test_peers_run_in_their_environment_and_we_in_ours() -> None:
    def command(name: str) -> list[str]:
        system = compared_systems.SYSTEMS[name]
        return compared_systems.measure_command(system, Path("work"), shapes.SMALL, "peer-python", [])

    assert command("peer-bf16")[0] == command("idefics-fp32")[0] == "peer-python"
    assert command("ours-int8")[0] == sys.executable
    assert command("idefics-fp32")[-1] == "small"


def test_the_plan_reaches_the_scripts_unchanged() -> None:
    parser = argparse.ArgumentParser()
    add_plan_options(parser)
    for plan in (PLAN, Plan(1, 8, 2, 9.5, (0, 4), 0, 1, 3, (4, 8))):
        assert plan_of(parser.parse_args(compare.plan_options(plan))) == plan


def test_steps_are_done_in_their_order_and_unknown_ones_refused() -> None:
    assert compare.chosen("chart,ours-int8, peer-fp32") == ["peer-fp32", "ours-int8", "chart"]
    assert compare.chosen(None) == list(compare.STEPS)
    with pytest.raises(SystemExit, match="--only ours-int3 is unknown; known: sources, peer-fp32"):
        compare.chosen("ours-int3")


def test_a_plan_of_nothing_is_refused() -> None:
    with pytest.raises(SystemExit, match="--tokens is 1: give 2 or more"):
        Plan(threads=1, tokens=1, repeats=1, budget=1.0, shots=None, beams=0, beam_tokens=1)


def test_a_machine_is_named_for_files() -> None:
    for cpu, cores, name in (
        ("AMD EPYC 7B13 64-Core Processor", 2, "amd-epyc-7b13-2-cores"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", 4, "intel-xeon-4-cores"),
    ):
        assert machine_names.machine_name({"cpu": cpu, "cores": cores}) == name


# Processes


def test_a_finished_process_has_its_status_and_output_and_the_time_of_the_first_output() -> None:
    code = "import sys; print('one', flush=True); print('{}'); sys.exit(3)"
    finished = processes.run([sys.executable, "-c", code])
    assert (finished.status, finished.output, finished.last_line) == (3, "one\n{}", "{}")
    assert 0 < finished.first_output <= finished.seconds
    assert finished.peak_bytes > 1_000_000


def test_a_process_sees_the_environment_it_is_given() -> None:
    code = "import os; print(os.environ['OMP_NUM_THREADS'])"
    assert processes.run([sys.executable, "-c", code], {"OMP_NUM_THREADS": "7"}).output == "7"
    assert processes.run([sys.executable, "-c", ""]).first_output is None


def test_json_is_not_echoed(capsys: pytest.CaptureFixture[str]) -> None:
    processes.run([sys.executable, "-c", "print('shown'); print('{\"hidden\": 1}')"], echo=True)
    assert "shown" in capsys.readouterr().out
    processes.run([sys.executable, "-c", "print('{\"hidden\": 1}')"], echo=True)
    assert "hidden" not in capsys.readouterr().out
