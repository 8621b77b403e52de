"""The benchmarks of the trainer: what they compute from logs, answers and pictures, and what the ablations change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import small_config, small_flamingo

from benchmarks import ablations, finetune_pictures, training_chart, training_kills, training_speed
from benchmarks.chosen_names import chosen_names
from benchmarks.dated_result import write_result
from benchmarks.drawn_charts import COLORS, NUMBERS, Chart, draw_chart, write_chart_folder
from benchmarks.scene_folders import write_scene_folder
from benchmarks.starting_checkpoints import scene_tokenizer, write_random_checkpoint
from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.model.flamingo import IGNORED_LABEL
from flamingo_rt.model.naive import generate_naively
from flamingo_rt.model.resampler import Resampler
from flamingo_rt.parameter_count import reckon_parameters
from flamingo_rt.presets import PRESETS, preset
from flamingo_rt.training import flamingo_start, language_stage, vision_stage
from flamingo_rt.training.config_file import read_options
from flamingo_rt.training.data.document_batches import FlamingoBatch
from flamingo_rt.training.data.samples import Said
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.options import DataOptions, FlamingoOptions

# What several of them share


def test_a_result_says_what_it_depends_on(tmp_path) -> None:
    path = write_result(tmp_path / "results", "made-up", {"steps": 3}, {"loss": [1.0, 2.0]})
    found = json.loads(path.read_text())
    assert path.name.startswith(found["date"])
    assert path.name.endswith("-made-up.json")
    assert found["machine"]["cpu"]
    assert found["libraries"]["torch"] == torch.__version__
    assert (found["settings"], found["loss"]) == ({"steps": 3}, [1.0, 2.0])


def test_a_folder_of_scenes_holds_what_was_asked_for(tmp_path) -> None:
    folder = write_scene_folder(tmp_path / "scenes", 6, ("captions", "questions"), size=32, most_objects=1)
    source = open_source(DataOptions(str(folder)))
    samples = [source.sample(index) for index in range(len(source))]
    assert (len(samples), len(list(folder.glob("*.png")))) == (12, 6)
    captions = [sample.segments[1].text for sample in samples[::2]]
    assert not any(" and " in caption or "handwritten" in caption for caption in captions)
    asked, answered = samples[1].segments[1:]
    assert asked.text.endswith("?")
    assert (asked.learnt, answered.learnt) == (False, True)


def test_a_checkpoint_to_start_from_keeps_the_tensors_that_are_given(tmp_path) -> None:
    config = small_config()
    tokenizer = scene_tokenizer(config, count=20).to_str()
    first = open_checkpoint(write_random_checkpoint(tmp_path / "first", config, tokenizer, seed=1))
    given = {name: tensor for name, tensor in first.tensors.items() if name.startswith("language.")}
    second = open_checkpoint(write_random_checkpoint(tmp_path / "second", config, tokenizer, seed=2, given=given))
    same = {name for name, tensor in second.tensors.items() if torch.equal(tensor.read(), first.tensors[name].read())}
    assert given.keys() <= same
    assert "resampler.latents" not in same


# Kills


def test_kills_come_at_moments_that_the_seed_draws_and_before_the_end() -> None:
    planned = training_kills.moments(20, seed=3, startup=4.0, training=60.0)
    assert planned == training_kills.moments(20, 3, 4.0, 60.0) != training_kills.moments(20, 4, 4.0, 60.0)
    late = [moment.seconds for moment in planned if moment.steps]
    assert len(planned) == 20
    assert 0 < len(late) < 20
    assert sum(late) <= 60.0
    assert all(moment.seconds <= 4.0 for moment in planned if not moment.steps)


LINE = {
    "step": 4, "loss": {"a": 2.0, "b": 1.0}, "gradient_norm": 3.0, "learning_rate": 0.1, "tokens": 7, "seconds": 1.0,
    "scalars": {"gate": 0.5},
}


@pytest.mark.parametrize(("change", "expected"), [
    ({}, 0.0),
    ({"seconds": 9.0, "waiting_share": 0.5, "mfu": 0.1}, 0.0),
    ({"loss": {"a": 2.0, "b": 1.0 - 1e-6}}, pytest.approx(1e-6, rel=1e-3)),
    ({"scalars": {"gate": 0.25}}, 0.5),
    ({"gradient_norm": 6.0}, 0.5),
    ({"tokens": 14}, 0.5),
    ({"loss": {"a": 2.0}}, float("inf")),
    ({"loss": {"a": 2.0, "b": None}}, float("inf")),
    ({"step": 5}, float("inf")),
])
def test_lines_of_a_log_differ_by_the_number_that_differs_most(change, expected) -> None:
    assert training_kills.largest_difference({4: LINE}, [LINE, LINE | change]) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process group")
def test_a_process_is_killed_with_its_children_after_its_first_step(tmp_path) -> None:
    log = tmp_path / "out.log.jsonl"
    log.write_text('{"step": 1}\n')
    code = ("import pathlib, subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
            f"pathlib.Path({str(log)!r}).write_text('{{\"step\": 1}}\\n{{\"step\": 2}}\\n')\n"
            "time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    moment = training_kills.Moment(0.0, steps=True)
    assert training_kills.kill_at(process, tmp_path / "out", moment) == -signal.SIGKILL
    assert training_kills.last_step(tmp_path / "out") == 2
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 60
    while _is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    """Whether a process is there and does not only wait to be collected."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().split()[2] == "Z")


# Speed


def step(seconds: float, waiting: float, mfu: float | None, tokens: int = 100) -> dict:
    return {"seconds": seconds, "waiting_share": waiting, "mfu": mfu, "tokens": tokens}


def test_throughput_is_that_of_the_steps_after_the_warm_up() -> None:
    lines = [step(9.0, 0.9, 0.01), step(1.0, 0.0, 0.4), step(2.0, 0.5, 0.2), step(1.0, 0.1, 0.3)]
    found = training_speed.summary(lines, warmup=1)
    assert (found["steps"], found["seconds"], found["mfu"], found["waiting_share"]) == (3, 1.0, 0.3, 0.1)
    assert found["waiting_share_of_all"] == pytest.approx(1.1 / 4.0)
    assert found["tokens_per_second"] == 100.0
    assert training_speed.summary(lines[:1], warmup=3)["steps"] == 1
    assert training_speed.summary([step(1.0, 0.0, None)], 0)["mfu"] is None


def test_the_measured_models_have_the_sizes_that_they_are_named_for() -> None:
    assert reckon_parameters(training_speed.flamingo_10m())["total"] == pytest.approx(10e6, rel=0.1)
    wide = training_speed.flamingo_768()
    assert {wide.vision.width, wide.resampler.width, wide.language.width} == {768}
    assert reckon_parameters(training_speed.flamingo_vit_b())["vision"] == pytest.approx(86e6, rel=0.01)


def test_an_unknown_case_or_arm_is_named() -> None:
    with pytest.raises(SystemExit, match="fast is unknown"):
        chosen_names("--cases", "vision,fast", training_speed.CASES)
    with pytest.raises(SystemExit, match="gateless is unknown"):
        chosen_names("--arms", "gateless", ablations.ARMS)


def test_the_speed_of_the_packaged_models_bridge_is_that_of_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[FlamingoOptions] = []
    monkeypatch.setattr(training_speed, "trained", lambda options, folder, name: tried.append(options))
    monkeypatch.setattr(training_speed, "summary", lambda lines, warmup: {})
    training_speed.Measuring(tmp_path, training_speed.Settings(batch=8)).packaged()
    (options,) = tried
    recipe = read_options(FlamingoOptions, Path(__file__).parent.parent / "recipes" / "tiny" / "flamingo.toml", {})
    assert [(entry.kind, entry.batch) for entry in options.data] == [("auto", 8), ("tasks", 4), ("videos", 6)]
    assert [(entry.weight, entry.by_place) for entry in options.data] == [
        (entry.weight, entry.by_place) for entry in recipe.data]
    assert (options.run.gradient_clip, options.run.beta2) == (recipe.run.gradient_clip, recipe.run.beta2)
    assert open_checkpoint(Path(str(options.start_from))).config.language == preset("tiny").language


# Ablations


@pytest.fixture(scope="module")
def decoded():
    """A batch of two documents, of one and of two pictures, whose answers are what greedy decoding gives, and the
    model."""
    config, model, end = small_config(), small_flamingo(), 7
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(3, 1, 3, 32, 32, generator=generator)
    rows = []
    for pictures in ([0], [1, 2]):
        ids, places, labels, seen = [1], [0], [IGNORED_LABEL], []
        for number, picture in enumerate(pictures, start=1):
            prompt = torch.randint(10, 300, (4,), generator=generator).tolist()
            seen.append(pixels[picture])
            ids, places, labels = ids + prompt, places + [number] * 4, labels + [IGNORED_LABEL] * 4
            answer = generate_naively(model, ids, places, seen, 5)
            ids, places, labels = ids + answer, places + [number] * 5, labels + answer
        rows.append(([*ids, end], [*places, places[-1]], [*labels, end]))
    length = max(len(ids) for ids, _, _ in rows)
    padded = [[torch.tensor(each + [fill] * (length - len(each))) for each, fill in zip(row, (0, 0, IGNORED_LABEL),
                                                                                        strict=True)] for row in rows]
    ids, places, labels = (torch.stack(each) for each in zip(*padded, strict=True))
    batch = FlamingoBatch(ids, places, labels, torch.tensor([[0, 0], [1, 2]]), pixels, None, torch.arange(3), ("",) * 3)
    assert config.language.vocab_size == 300
    return model, batch, end


def exact(model, batch: FlamingoBatch, end: int) -> list[bool]:
    with torch.no_grad():
        logits = model(batch.input_ids, batch.media_index, batch.pixel_values, batch.rows)[0]
    return list(ablations.answers_of(logits, batch, end))


def test_an_answer_is_exact_when_greedy_decoding_gives_it(decoded) -> None:
    model, batch, end = decoded
    assert exact(model, batch, end) == [True, True, True]


@pytest.mark.parametrize(("row", "place", "expected"), [
    (0, 9, [False, True, True]), (1, 6, [True, False, True]), (1, -2, [True, True, False]),
])
def test_an_answer_with_another_token_is_not_exact(decoded, row, place, expected) -> None:
    model, batch, end = decoded
    labels = batch.labels.clone()
    assert labels[row, place] != IGNORED_LABEL
    labels[row, place] = (labels[row, place] + 1) % 300
    assert exact(model, batch._replace(labels=labels), end) == expected


def test_the_resampler_without_attention_has_the_same_form_and_about_as_many_parameters() -> None:
    for config in (small_config(), PRESETS["tiny"]()):
        torch.manual_seed(0)
        ours = Resampler(config.resampler, config.vision.width, config.vision.feature_count)
        other = ablations.MlpResampler(config)
        features = torch.randn(2, 1, config.vision.feature_count, config.vision.width)
        latents = other(features)
        assert latents.shape == ours(features).shape
        latents.square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in other.parameters())
        sizes = [sum(entry.numel() for entry in model.parameters()) for model in (ours, other)]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def record(arm: str, seed: int, loss: float) -> dict:
    return {"arm": arm, "seed": seed, **{kind: {"loss": loss, "exact": 0.5} for kind in ablations.MEASURED}}


def test_the_table_has_mean_and_deviation_over_the_seeds() -> None:
    rows = ablations.table([record("mlp", 1, 3.0), record("mlp", 0, 1.0), record("baseline", 0, 2.0)])
    assert list(rows) == ["baseline", "mlp"]
    assert rows["mlp"]["seeds"] == [0, 1]
    assert rows["mlp"]["captions loss"] == (2.0, pytest.approx(2**0.5, abs=1e-4))
    assert rows["baseline"]["questions loss"] == (2.0, None)
    assert "2.000 ± 1.414" in ablations.shown(rows)


def test_records_that_are_there_are_kept_and_other_settings_refused(tmp_path) -> None:
    path, settings = tmp_path / "results" / "ablations.jsonl", ablations.Settings(steps=3)
    assert ablations.open_results(path, settings) == []
    with path.open("a") as file:
        file.write(json.dumps(record("mlp", 0, 1.0)) + "\n")
    assert ablations.open_results(path, settings) == [record("mlp", 0, 1.0)]
    with pytest.raises(SystemExit, match="other settings"):
        ablations.open_results(path, ablations.Settings(steps=4))


@pytest.fixture(scope="module")
def small_parts(tmp_path_factory):
    """Data and both parts of a toy run, of the sizes of `small_config`."""
    config = replace(small_config(), language=replace(small_config().language, context=512))
    settings = ablations.Settings(vision_steps=1, language_steps=1, steps=2, scenes=12, held_out=8, captions_batch=4,
                                  questions_batch=2, workers=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", lambda: config)
        for module in (flamingo_start, language_stage, vision_stage):
            patch.setattr(module, "TOKENIZER_SCENES", 20)
        yield ablations.prepare(tmp_path_factory.mktemp("ablations"), settings), settings


@pytest.fixture(scope="module")
def baseline(small_parts, tmp_path_factory) -> Path:
    """The checkpoint from which the baseline starts."""
    return ablations.write_start(ablations.Arm(), small_parts[0], 0, tmp_path_factory.mktemp("baseline") / "start")


@pytest.mark.parametrize("name", ablations.ARMS)
def test_every_arm_changes_what_its_name_says(small_parts, baseline, tmp_path, name) -> None:
    parts, settings = small_parts
    arm = ablations.ARMS[name]
    start_from = ablations.write_start(arm, parts, 0, tmp_path / "start")
    options = ablations.arm_options(arm, parts, start_from, 0, settings)
    started = open_checkpoint(start_from)
    differing = {key for key, tensor in open_checkpoint(baseline).tensors.items()
                 if not torch.equal(tensor.read(), started.tensors[key].read())}
    assert bool(differing) == (name == "language-scratch")
    assert all(key.startswith("language.") for key in differing)
    stage, reports = ablations.trained_stage(arm, options, tmp_path / "out")
    trained = {key for key, entry in stage.model.named_parameters() if entry.requires_grad}
    gates = [key for key in trained if key.endswith(("attention_gate", "ff_gate"))]
    assert started.config.cross_attention.attend == ("all" if name == "attend-all" else "last")
    assert bool(gates) == (name != "no-gate")
    assert isinstance(stage.model.model.resampler, ablations.MlpResampler) == (name == "mlp")
    assert ("model.language.layers.0.ff_norm.weight" in trained) == name.startswith("language-")
    assert [len(report.losses) for report in reports] == ([1] * 4 if name == "round-robin" else [2] * 2)
    assert not (tmp_path / "out").exists()


def test_an_arm_is_measured_on_held_out_scenes(small_parts) -> None:
    parts, settings = small_parts
    found = ablations.measure("mlp", 0, parts, settings)
    assert [found[kind]["answers"] for kind in ablations.MEASURED] == [8, 8]
    assert 0 < found["captions"]["loss"] < 8


def test_every_held_out_document_is_read_once() -> None:
    assert [ablations.largest_divisor(number, 16) for number in (200, 50, 7, 34)] == [10, 10, 7, 2]


def test_parts_made_with_other_settings_are_refused(small_parts) -> None:
    parts, settings = small_parts
    assert ablations.prepare(parts.work, replace(settings, steps=99)) == parts
    with pytest.raises(SystemExit, match=r"was made with .* give another --work"):
        ablations.prepare(parts.work, replace(settings, vision_steps=99))


# Pictures of one's own


def test_charts_are_the_same_in_every_process_and_another_stream_has_others() -> None:
    first, again, other = draw_chart(1, 3), draw_chart(1, 3), draw_chart(2, 3)
    assert np.array_equal(first.image, again.image)
    assert (first.caption, first.image.shape, first.image.dtype) == (again.caption, (128, 128, 3), np.uint8)
    assert not np.array_equal(first.image, other.image)


def test_a_chart_shows_what_its_caption_says() -> None:
    charts = [draw_chart(5, index) for index in range(16)]
    from matplotlib.colors import to_rgb

    for chart in charts:
        color = next(name for name in COLORS if f" {name} " in f" {chart.caption} ")
        drawn = np.abs(chart.image / 255.0 - to_rgb(COLORS[color])).max(-1) < 0.02
        assert drawn.sum() > 40, chart.caption
        bars = next((count for count, word in NUMBERS.items() if f"with {word} bars" in chart.caption), None)
        if bars is not None:  # runs of the colour along the line just above the axis
            line = drawn[112].astype(int)
            assert (np.diff(line, prepend=0) == 1).sum() == bars, chart.caption
    assert len({chart.caption.split()[-1] for chart in charts}) > 3


def test_a_folder_of_charts_is_one_of_captions(tmp_path) -> None:
    source = open_source(DataOptions(str(write_chart_folder(tmp_path / "charts", 3, seed=1))))
    assert (source.kind, len(source)) == ("pairs", 3)
    assert source.sample(2).segments[1] == Said(draw_chart(1, 2).caption)


def test_an_answer_is_right_when_it_is_the_caption() -> None:
    charts = [Chart(np.zeros((1, 1, 3), np.uint8), text) for text in ("a red pie", "a blue pie")]
    assert finetune_pictures.share_right(["a red pie", "a blue pie with"], charts) == 0.5
    lines = [{"loss": {"charts": float(number)}} for number in range(30)]
    assert finetune_pictures.losses(lines, "charts") == (4.5, 24.5)


# The chart of a run


def test_the_chart_shows_losses_gates_accuracy_and_what_was_right() -> None:
    scores = [{"evaluation.image_to_text.recall_at_1": step / 10, "temperature": 0.07} for step in range(3)]
    gates = [{"gate.0.attention": 0.1, "gate.0.ff": -0.1}] * 3
    runs = {
        name: [{"step": step, "loss": {"pairs": 3.0 - step}, "scalars": scalars} for step, scalars in enumerate(each)]
        for name, each in (("vision", scores), ("flamingo", gates), ("language", [{"copy_loss": None}] * 3))
    }
    evaluation = {"scenes": 4, "captions": {"digit": [1, 4]}, "answers": {"color": [3, 4], "size": [0, 0]}}
    axes = training_chart.draw(runs, evaluation).axes
    assert [each.get_title(loc="left") for each in axes] == [
        "vision: loss", "accuracy on held-out pictures", "flamingo: loss",
        "gates, tanh of them (dashed: feed-forward)", "language: loss", "other numbers",
        "right about 4 held-out scenes",
    ]
    (line,) = axes[1].lines  # the temperature is left out
    assert list(line.get_ydata()) == [0.0, 0.1, 0.2]
    assert [line.get_linestyle() for line in axes[3].lines] == ["-", "--"]
    assert not axes[5].lines
    assert [bar.get_width() for bar in axes[6].patches] == [0.25, 0.75, 0.0]


def test_a_smoothed_line_is_the_mean_of_what_came_before() -> None:
    assert list(training_chart.smoothed([2.0, 2.0, 2.0])) == pytest.approx([2.0] * 3)
    one, two = training_chart.smoothed([1.0, 3.0])
    assert (one, two) == (1.0, pytest.approx((1.0 * 0.9 + 3.0) / 1.9))
