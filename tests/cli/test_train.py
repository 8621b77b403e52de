"""`flamingo-rt train`: three stages from the command line to an answer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from made_data import captions, pairs, tar, write_lines
from safetensors.torch import load_file

from flamingo_rt.cli import training_progress
from flamingo_rt.loading import PACKAGED_BUNDLE
from flamingo_rt.training import sample_answers
from flamingo_rt.training.config_file import option_fields
from flamingo_rt.training.options import FlamingoOptions, LanguageOptions, VisionOptions
from flamingo_rt.training.run_log import log_path, read_log, tensorboard_path

STAGES = {"vision": VisionOptions, "language": LanguageOptions, "flamingo": FlamingoOptions}
SHORT = ("--workers", 0, "--warmup-steps", 0)
pytestmark = pytest.mark.usefixtures("small_preset")


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# Options


def values(stage: str) -> dict[str, object]:
    """A value of every key, none of them the default, such as a file and the command line can hold."""
    given: dict[str, object] = {}
    for key in option_fields(STAGES[stage]):
        if key.kind is bool:
            given[key.name] = True
        elif key.choices:
            given[key.name] = next(choice for choice in key.choices if choice != key.default)
        elif key.is_list:
            given[key.name] = ["embedding"]
        elif key.kind is str:
            given[key.name] = "a name"
        elif key.kind is int:
            given[key.name] = (key.default or 1) * 2
        else:
            given[key.name] = (key.default or 0.5) / 2
    apart = {"flamingo": ("vision", "language", "tokenizer", "new_tokens"), "language": ("tokenizer",), "vision": ()}
    for name in apart[stage]:
        del given[name]  # they do not go together with start_from, or with unfreeze
    return given


def words(keys: dict[str, object]) -> list[str]:
    """The same keys as options."""
    given = []
    for name, value in keys.items():
        option = "--" + name.replace("_", "-")
        text = ",".join(value) if isinstance(value, list) else str(value)
        given += [option] if value is True else [option, text]
    return given


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_is_an_option_and_a_printed_file_gives_the_same_run(run, tmp_path, stage) -> None:
    file, keys = tmp_path / "run.toml", values(stage)
    lines = [f"{name} = {json.dumps(value)}" for name, value in keys.items()]
    file.write_text("\n".join([*lines, '[[data]]\nsource = "a.tar"\nweight = 0.25']))
    from_file = run("train", stage, "--config", file, "--print-config")
    assert (from_file.code, from_file.err) == (0, "")
    from_options = run("train", stage, *words(keys), "--data", "a.tar,weight=0.25", "--print-config")
    assert from_options == from_file
    file.write_text(from_file.out)
    assert run("train", stage, "--config", file, "--print-config") == from_file
    assert run("train", stage, "--print-config").out != from_file.out


def test_new_tokens_that_learn_as_output_are_an_option(run) -> None:
    assert 'new_tokens = "both"' in run("train", "flamingo", "--print-config").out
    assert 'new_tokens = "output"' in run("train", "flamingo", "--new-tokens", "output", "--print-config").out
    refused = run("train", "flamingo", "--new-tokens", "output", "--unfreeze", "embedding", "--print-config")
    assert (refused.code, refused.out) == (2, "")
    assert "unfreeze names embedding: leave one out" in refused.err


def test_options_count_before_the_file_and_data_replaces_its_datasets(run, tmp_path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('steps = 5\nseed = 3\ncompile = true\n[[data]]\nsource = "a.tar"\n')
    given = ("--steps", 7, "--no-compile", "--data", "b-{0..1}.tar,weight=0.2", "--data", "scenes,name=more,batch=6")
    text = run("train", "language", "--config", file, *given, "--print-config").out
    for line in ("steps = 7", "seed = 3", "compile = false", 'source = "b-{0..1}.tar"', "weight = 0.2",
                 'source = "scenes"', 'name = "more"', "batch = 6"):
        assert line in text.splitlines()
    assert "a.tar" not in text


@pytest.mark.parametrize("stage", STAGES)
def test_the_help_shows_each_key_with_its_default(run, stage) -> None:
    page = run("train", stage, "--help").out
    for key in option_fields(STAGES[stage]):
        assert f"--{key.name.replace('_', '-')}" in page
    assert f"[default: {STAGES[stage]().run.learning_rate}]" in page


@pytest.mark.parametrize("stage", STAGES)
def test_the_help_names_no_range_and_a_number_is_refused_as_that_of_a_file(run, tmp_path, stage) -> None:
    assert "<=x" not in run("train", stage, "--help").out
    for option, value in (("steps", -1), ("workers", 257), ("learning_rate", -1.0), ("beta2", "inf"), ("seed", 2**63)):
        (tmp_path / "run.toml").write_text(f"{option} = {value}\n")
        words = ("--" + option.replace("_", "-"), value)
        ways = (words, ("--config", tmp_path / "run.toml"))
        refused = [run("train", stage, *given, "--print-config") for given in ways]
        assert refused[0] == refused[1]
        assert (refused[0].code, refused[0].err.startswith(f"flamingo-rt: {option} is {value}")) == (2, True)


def test_the_help_of_data_shows_how_a_list_is_written(run) -> None:
    assert "chunks=1+4" in run("train", "flamingo", "--help").out


def test_an_unknown_key_of_the_file_is_offered_a_near_one(run, tmp_path) -> None:
    (tmp_path / "run.toml").write_text("learning_rat = 1e-3\n")
    outcome = run("train", "flamingo", "--config", tmp_path / "run.toml", "--out", tmp_path / "out")
    assert (outcome.code, outcome.out) == (2, "")
    assert "there is no key 'learning_rat'; did you mean learning_rate" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "a.tar,wieght=2"), "did you mean weight"),
        (("--data", "scenes,weight=0"), "weight is 0.0; it must be above 0"),
        (("--data", "scenes,weight=-1"), "weight is -1.0"),
        (("--data", "scenes,batch=0"), "batch is 0"),
        (("--data", ""), "needs a source"),
        ((), "there is no data"),
        (("--data", "scenes"), "would be frozen with random weights: give --vision"),
        (("--data", "scenes", "--data", "scenes", "--unfreeze", "vision,language"), "two datasets are called 'scenes'"),
        (("--data", "scenes", "--unfreeze", "text"), "unfreeze names 'text'; known: vision"),
        (("--data", "scenes", "--unfreeze", "vision,language", "--preset", "smal"), "unknown preset 'smal'"),
        (("--data", "scenes", "--beta2", 1), "beta2 is 1.0"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_trained_is_a_usage_error_that_leaves_nothing(run, tmp_path, arguments, said) -> None:
    outcome = run("train", "flamingo", "--out", tmp_path / "out", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert not names(tmp_path)


@pytest.mark.parametrize("stage", ["vision", "language"])
def test_a_folder_of_an_earlier_stage_in_the_place_of_a_checkpoint_is_told_from_one(run, tmp_path, stage) -> None:
    tower = tmp_path / "tower"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps({"kind": stage, "embedding": 4}))
    data = ("--data", "scenes", "--out", tmp_path / "out")
    for outcome in (run("train", "flamingo", "--start-from", tower, *data),
                    run("export", "--ckpt", tower, "--out", tmp_path / "bundle")):
        assert outcome.code == 1
        assert f"{tower} is what train {stage} wrote" in outcome.err
        assert f"--{stage}" in outcome.err
    assert names(tmp_path) == {"tower"}


def test_a_bundle_is_not_trained_and_a_path_without_anything_is_told(run, tmp_path) -> None:
    data = ("--data", "scenes", "--out", tmp_path / "out")
    outcome = run("train", "flamingo", "--start-from", PACKAGED_BUNDLE, *data)
    assert (outcome.code, outcome.out) == (1, "")
    assert f"{PACKAGED_BUNDLE} is a bundle" in outcome.err
    assert "give the checkpoint that it was exported from" in outcome.err
    outcome = run("train", "flamingo", "--start-from", tmp_path / "gone", *data)
    assert f"{tmp_path / 'gone'} does not exist" in outcome.err


def test_the_output_must_be_named(run) -> None:
    outcome = run("train", "flamingo", "--data", "scenes")
    assert outcome.code == 2
    assert "--out is missing" in outcome.err


@pytest.fixture
def empty_place(tmp_path_factory, monkeypatch) -> None:
    """Work in a folder of which those above hold no data."""
    place = tmp_path_factory.mktemp("place") / "a" / "b"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)


@pytest.mark.parametrize("value", ["\0", "\ud800", "n" * 5000, "../..", "-"], ids=lambda value: ascii(value)[:20])
@pytest.mark.parametrize(("stage", "option"), [
    ("vision", "--data"), ("vision", "--evaluation"), ("vision", "--encoder"), ("language", "--data"),
    ("language", "--decoder"), ("flamingo", "--data"), ("flamingo", "--preset"), ("flamingo", "--unfreeze"),
])
def test_a_text_that_names_nothing_is_refused_in_a_short_message(
    run, tmp_path, captioned, empty_place, stage, option, value
) -> None:
    others = () if option == "--data" else ("--data", captioned)
    frozen = ("--unfreeze", "vision,language") if stage == "flamingo" and option != "--unfreeze" else ()
    outcome = run("train", stage, *others, *frozen, option, value, "--out", tmp_path / "out", *SHORT)
    assert outcome.code in (1, 2)
    assert outcome.err.startswith("flamingo-rt: ")
    assert len(outcome.err) < 5000
    assert not names(tmp_path)


# Bad data


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: "shards-{0000..0002}.tar", "shards-0000.tar"),
        (lambda folder: "shards-*.tar", "shards-*.tar does not exist, and * is not expanded: write {0000..0099}"),
        (lambda folder: (folder / "cut.tar").write_bytes(tar(pairs(2))[:700]) and "cut.tar", "cut.tar"),
        (lambda folder: (folder / "no.tar").write_bytes(b"x" * 2000) and "no.tar", "no.tar"),
        (lambda folder: write_lines(folder / "empty.jsonl", []).name, "empty.jsonl"),
        (lambda folder: write_lines(folder / "texts.jsonl", [{"text": "no picture"}]).name, "texts without pictures"),
        (lambda folder: write_lines(folder / "e.jsonl", [{"image": "a.png", "text": " "}] * 3).name,
         "16 draws in a row, of 3 samples"),
        (lambda folder: "nowhere", "nowhere does not exist"),
    ],
    ids=["missing shards", "a star", "cut short", "no archive", "no lines", "only texts", "empty captions",
         "nothing there"],
)
def test_data_that_cannot_be_used_is_named(train, tmp_path, make, said) -> None:
    source = make(tmp_path)
    before = names(tmp_path)
    outcome = train(tmp_path / "out", data=f"{tmp_path / source},batch=2")
    assert outcome.code in (1, 2)
    assert said in outcome.err
    assert outcome.out == ""
    assert names(tmp_path) == before


def test_a_damaged_sample_is_named_on_the_screen_and_left_out(train, tmp_path) -> None:
    data = captions(tmp_path / "data", 8)
    (data / "3.png").write_bytes(b"no picture")
    outcome = train(tmp_path / "out", "--max-damaged", 0.1, data=f"{data},batch=8")
    assert outcome.code == 0
    lines = [line for line in outcome.err.splitlines() if line.startswith("damaged, left out: ")]
    assert len(lines) == 1  # though each of the steps draws it again
    assert all("captions.jsonl" in line and "3.png" in line for line in lines)


def test_too_many_damaged_samples_end_the_run(train, tmp_path) -> None:
    data = captions(tmp_path / "data", 8)
    for name in ("3.png", "5.png"):
        (data / name).write_bytes(b"no picture")
    outcome = train(tmp_path / "out", data=f"{data},batch=8")
    assert outcome.code == 1
    assert "samples drawn are damaged, 2 different ones, more than max_damaged 0.01" in outcome.err
    assert not (tmp_path / "out").exists()


def test_several_texts_of_a_picture_are_refused_before_the_run(train, tmp_path) -> None:
    data = captions(tmp_path / "data", 8)
    lines = (data / "captions.jsonl").read_text().splitlines()
    lines[2] = json.dumps({"image": "2.png", "texts": ["a square", "a red square"]})
    (data / "captions.jsonl").write_text("\n".join(lines) + "\n")
    outcome = train(tmp_path / "out", data=data)
    assert outcome.code == 1
    assert '1 of its lines give "texts" of one picture or clip' in outcome.err
    assert not (tmp_path / "out").exists()


# A run


def test_a_trained_checkpoint_answers(train, run, tmp_path, captioned) -> None:
    outcome = train(tmp_path / "out", "--data", f"{captioned},name=more,batch=2,weight=0.5")
    out = tmp_path / "out"
    assert (outcome.code, outcome.out) == (0, f"wrote {out}; next: flamingo-rt export --ckpt {out} --out BUNDLE\n")
    assert names(tmp_path) == {"out", log_path(out).name, tensorboard_path(out).name}
    logged = list(read_log(log_path(out)))
    assert [line["step"] for line in logged] == [1, 2, 3]
    assert all(set(line["loss"]) == {"mine", "more"} for line in logged)
    answered = run("infer", "--model", out, "--backend", "torch", "--image", captioned / "1.png", "--max-new-tokens", 3)
    assert answered.code == 0
    assert answered.out.strip()


def test_towers_of_the_first_two_stages_go_into_the_third(run, tmp_path, captioned) -> None:
    vision, language, out = (tmp_path / name for name in ("vision", "language", "out"))
    data = ("--data", f"{captioned},batch=4", "--steps", 2, *SHORT)
    first = run("train", "vision", "--encoder", "small", "--vocab-size", 300, "--text-width", 16, *data,
                "--evaluation", captioned, "--out", vision)
    assert first.code == 0
    assert f"wrote {vision}; next: flamingo-rt train flamingo --vision {vision} " in first.out
    second = run("train", "language", "--decoder", "small", "--vocab-size", 300, "--context", 32, *data,
                 "--out", language, "--sample-steps", 2)
    assert second.code == 0
    assert f"wrote {language}; next: flamingo-rt train flamingo --vision FOLDER --language {language} " in second.out
    third = run("train", "flamingo", "--preset", "small", "--vision", vision, "--language", language, *data,
                "--out", out)
    assert third.code == 0
    whole, eyes, words = (load_file(path / "model.safetensors") for path in (out, vision, language))
    for name, tensor in eyes.items():
        if name.startswith("vision."):
            assert whole[name].equal(tensor), name
    assert whole["language.layers.0.ff.up.weight"].equal(words["language.layers.0.ff.up.weight"])
    assert run("infer", "--model", out, "--backend", "torch", "--prompt", "number", "--max-new-tokens", 2).code == 0


def test_an_output_that_exists_is_refused_before_any_work(train, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.training.flamingo_start.open_flamingo_stage", None)
    (tmp_path / "kept").write_text("kept")
    outcome = train(tmp_path)
    assert outcome.code == 2
    assert "--overwrite" in outcome.err
    assert names(tmp_path) == {"kept"}


def test_an_earlier_output_is_replaced_when_asked(train, tmp_path) -> None:
    assert train(tmp_path / "out").code == 0
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert train(tmp_path / "out", "--overwrite", "--seed", 5).code == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before


def test_without_a_terminal_lines_come_now_and_then_and_at_the_end(train, tmp_path, monkeypatch) -> None:
    lines = train(tmp_path / "a").err.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [["step", "3/3"]]
    for word in ("loss ", " tokens/s", "waiting ", " min left"):
        assert word in lines[0]
    monkeypatch.setattr(training_progress, "PLAIN_SECONDS", 0.0)
    lines = train(tmp_path / "b").err.splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]


def test_the_start_says_what_is_trained_on_what(train, tmp_path, captioned, checkpoint) -> None:
    line = train(tmp_path / "out", "--data", f"{captioned},name=more,batch=2").err.splitlines()[0]
    weights = load_file(checkpoint / "model.safetensors")
    parts = re.fullmatch(r"training ([\d,]+) of ([\d,]+) parameters in 3 steps on "
                         r"mine \(pairs, 12 lines; batch 4\), more \(pairs, 12 lines; batch 2\)", line)
    trained, total = (int(number.replace(",", "")) for number in parts.groups())
    assert sum(tensor.numel() for name, tensor in weights.items() if "resampler" in name) < trained < total
    assert total >= sum(tensor.numel() for tensor in weights.values())


def test_a_warm_up_as_long_as_the_run_is_told_with_the_rate_that_is_reached(train, tmp_path) -> None:
    said = train(tmp_path / "out", "--warmup-steps", 6, "--learning-rate", "1e-3").err
    assert "warmup_steps is 6, and there are no more steps: the learning rate only rises, to 0.0005 at the last" in said
    assert "warmup_steps" not in train(tmp_path / "other", "--warmup-steps", 2).err


def test_losses_of_several_datasets_are_divided_and_stage_1_counts_pictures(train, run, tmp_path, captioned) -> None:
    said = train(tmp_path / "out", "--data", f"{captioned},name=more,batch=2").err.splitlines()[-1]
    assert re.search(r"loss mine \d+\.\d+, more \d+\.\d+  [\d,]+ tokens/s", said)
    classes = tmp_path / "classes"
    for name in ("one", "two"):
        captions(classes / name, 4, step=3 if name == "one" else 5)
        (classes / name / "captions.jsonl").unlink()
    said = run("train", "vision", "--encoder", "small", "--vocab-size", 300, "--text-width", 16, "--steps", 1, *SHORT,
               "--data", f"{captioned},batch=4", "--evaluation", classes, "--sample-steps", 1, "--out",
               tmp_path / "vision").err
    assert " pictures/s" in said
    assert "tokens/s" not in said
    assert "of 2 classes (chance 50.0%)" in said


def test_sample_answers_stand_beside_the_right_ones(train, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sample_answers, "MOST_TOKENS", 2)
    lines = train(tmp_path / "out", "--sample-steps", 2).err.splitlines()
    answers = [line for line in lines if line.startswith("  mine: Output: -> ")]
    assert len(answers) == 2 * 3  # three of them after the second and the last step
    assert all(" (right: number " in line for line in answers)
    logged = list(read_log(log_path(tmp_path / "out")))
    assert [len(line.get("samples", ())) for line in logged] == [0, 3, 3]
