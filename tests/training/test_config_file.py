"""Options from a TOML file and the command line: which counts, what is refused, and that a printed file gives them."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from flamingo_rt.errors import DataError, FlamingoError, UsageError
from flamingo_rt.training.config_file import option_fields, options_text, parse_data, read_options
from flamingo_rt.training.options import (
    OF_CLASS_TASKS,
    UNREAD,
    DataOptions,
    FlamingoOptions,
    LanguageOptions,
    RunOptions,
    VisionOptions,
)

STAGES = [VisionOptions, LanguageOptions, FlamingoOptions]
ODD = "a\"b\\c\nd\t'é=,#[x]"  # everything that TOML must escape
# A value of every key, none of them the default.
RUN = {
    "steps": 7, "seed": 2**62, "learning_rate": 2e-5, "warmup_steps": 3, "schedule": "cosine", "weight_decay": 0.0,
    "beta2": 0.95, "gradient_clip": 0.5, "accumulate": 1, "mixing": "round-robin", "precision": "bf16",
    "checkpoint_activations": True, "compile": True, "workers": 3, "max_damaged": 0.5, "save_seconds": 9.5,
    "sample_steps": 11,
}
OWN = {
    VisionOptions: {
        "encoder": "small", "tokenizer": "t.json", "vocab_size": 600, "text_width": 64, "text_layers": 3,
        "text_heads": 8, "text_tokens": 32, "embedding": 96, "label_smoothing": 0.0, "initial_temperature": 0.1,
        "agc": 0.0, "captioning": 0.5, "captioner_layers": 3, "evaluation": ODD,
    },
    LanguageOptions: {
        "decoder": "small", "tokenizer": "t", "vocab_size": 300, "context": 64, "repeats": 0.25, "start_from": "tower",
    },
    FlamingoOptions: {
        "preset": "small", "vision": "v", "language": "l", "tokenizer": "t", "unfreeze": ["embedding"],
        "unfrozen_rate": 0.1, "lora": 8, "initial_gate": 0.5, "gates": "none",
        "initial_output": 2.0,
        "cache_features": ODD, "cache_bytes": 5, "start_from": "whole", "new_tokens": "both",
    },
}
# start_from excludes them.
APART = {FlamingoOptions: ("vision", "language", "tokenizer"), LanguageOptions: ("tokenizer",)}
DATA = {
    "source": ODD, "name": "pairs", "kind": "videos", "weight": 0.25, "batch": 6, "tokens": 64, "frames": 4, "fps": 2.5,
    "images": 3, "next_image": 0.0, "chunks": [1, 3], "augment": False, "leading_space": 0.5, "prompt": "",
    "template": "{} here", "questions": 3, "by_place": 0.25,
    "ways": [2, 3], "shots": [5], "names": 0.5,
}


def toml(keys: dict) -> str:
    import tomli_w

    return tomli_w.dumps(keys)


def data_keys(stage: type) -> dict:
    """The keys of `DATA` that a stage reads."""
    unread = UNREAD[{VisionOptions: "vision", LanguageOptions: "language", FlamingoOptions: "flamingo"}[stage]]
    return {name: value for name, value in DATA.items() if name not in unread}


def expected(stage: type, data: tuple[DataOptions, ...]):
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in OWN[stage].items()
           if name not in APART.get(stage, ())}
    return stage(run=RunOptions(**RUN), data=data, **own)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "run.toml"


@pytest.fixture
def full(file):
    """A file with every key of a stage, and of a dataset."""

    def write(stage: type) -> Path:
        own = {name: value for name, value in OWN[stage].items() if name not in APART.get(stage, ())}
        data = [data_keys(stage), {"source": "scenes", "augment": False}]
        file.write_text(toml({**RUN, **own, "data": data}), encoding="utf-8")
        return file

    return write


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_may_hold_every_key(full, stage) -> None:
    assert {*RUN, *OWN[stage]} == {key.name for key in option_fields(stage)}
    assert set(DATA) == {entry.name for entry in fields(DataOptions)}
    data = DataOptions(**{name: tuple(value) if isinstance(value, list) else value
                          for name, value in data_keys(stage).items()})
    assert read_options(stage, full(stage), {}) == expected(stage, (data, DataOptions("scenes")))


@pytest.mark.parametrize("stage", STAGES)
def test_the_printed_file_gives_the_same_options(full, file, stage) -> None:
    for options in (read_options(stage, full(stage), {}), read_options(stage, None, {}, ["scenes"]),
                    read_options(stage, None, {})):
        file.write_text(options_text(options), encoding="utf-8")
        assert read_options(stage, file, {}) == options


@pytest.mark.parametrize("stage", STAGES)
def test_the_printed_file_has_every_key_and_its_comments_are_keys_too(file, stage) -> None:
    keys, data = ({key.name for key in option_fields(kind)} for kind in (stage, DataOptions))
    for sources in ((), ("scenes",)):
        top, table = options_text(read_options(stage, None, {}, sources)).split("[[data]]")
        for expected_keys, text in ((keys, top), (data, table)):
            found = [line.removeprefix("# ").split(" = ")[0] for line in text.splitlines() if " = " in line]
            assert sorted(found) == sorted(expected_keys)
    text = options_text(read_options(stage, None, {})).replace("# [[data]]", "[[data]]")
    text = text.replace("# source = …", 'source = "scenes"')
    file.write_text(re.sub(r"# (\w+ = [^…]*  #)", r"\1", text), encoding="utf-8")
    assert read_options(stage, file, {}).data == (DataOptions("scenes"),)


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_given_counts_before_the_file_and_the_file_before_the_default(file, stage) -> None:
    file.write_text(toml({"steps": 5, "seed": 6, "data": [{"source": "a"}, {"source": "b"}]}))
    options = read_options(stage, file, {"steps": 9})
    assert (options.run.steps, options.run.seed) == (9, 6)
    assert options.run == replace(stage().run, steps=9, seed=6)
    assert [entry.source for entry in options.data] == ["a", "b"]
    assert [entry.source for entry in read_options(stage, file, {}, ["c"]).data] == ["c"]


def test_each_stage_has_its_own_defaults_of_the_run() -> None:
    for stage in STAGES:
        defaults = {key.name: key.default for key in option_fields(stage)}
        assert defaults["learning_rate"] == read_options(stage, None, {}).run.learning_rate
    assert FlamingoOptions().run.learning_rate < LanguageOptions().run.learning_rate


def test_an_integer_is_a_number(file) -> None:
    file.write_text("learning_rate = 1\n")
    rate = read_options(FlamingoOptions, file, {}).run.learning_rate
    assert (rate, type(rate)) == (1.0, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 3", r"no key 'stepz'; did you mean steps"),
        ("[[data]]\nsource = 'a'\nwieght = 2", r"data 1: there is no key 'wieght'; did you mean weight"),
        ("[[data]]\nsource = 'a'\n[[data]]\nsource = 'b'\nzzz = 2", r"data 2: there is no key 'zzz'; known: augment"),
        ("context = 64", r"no key 'context'"),
        ("steps = '3'", r"steps is '3'; it must be a whole number"),
        ("steps = 3.5", r"steps is 3.5; it must be a whole number"),
        ("steps = true", r"steps is True; it must be a whole number"),
        ("steps = [3]", r"steps is \[3\]; it must be a whole number"),
        ("compile = 1", r"compile is 1; it must be true or false"),
        ("vision = 3", r"vision is 3; it must be a text"),
        ("unfreeze = 'vision'", r"unfreeze is 'vision'; it must be a list of texts"),
        ("unfreeze = ['text']", r"unfreeze names 'text'; known: vision"),
        ("schedule = 'step'", r"schedule is 'step'; it must be constant or cosine or linear"),
        ("schedule = ['cosine']", r"schedule is \['cosine'\]; it must be constant or cosine or linear"),
        ("learning_rate = nan", r"learning_rate is nan"),
        ("learning_rate = inf", r"learning_rate is inf"),
        ("learning_rate = 1e30", r"learning_rate is 1e\+30, above the largest"),
        ("learning_rate = 0", r"learning_rate is 0.0; it must be above 0"),
        ("steps = 0", r"steps is 0; it must be 1 or more"),
        ("steps = 99999999999", r"steps is 99999999999, above the largest"),
        ("max_damaged = 1.5", r"max_damaged is 1.5; it must be from 0 to 1"),
        ("run = 3", r"no key 'run'"),
        ("data = 'a'", r"write \[\[data\]\] before"),
        ("data = ['a']", r"write \[\[data\]\] before"),
        ("[[data]]\nname = 'a'", r"a dataset needs a source"),
        ("[[data]]\nsource = 'a'\nweight = 0", r"data 'a': weight is 0.0; it must be above 0"),
        ("[[data]]\nsource = 'a'\nweight = -1.5", r"data 'a': weight is -1.5; it must be finite and at least 0"),
        ("[[data]]\nsource = 'a'\nframes = 1025", r"data 'a': frames is 1025, above the largest that is accepted"),
        ("[[data]]\nsource = 'a'\nchunks = []", r"chunks is \[\]"),
        ("[[data]]\nsource = 'a'\nchunks = [1, 'b']", r"chunks is \[1, 'b'\]; it must be a list of whole numbers"),
        ("steps = 1\nsteps = 2", "is no TOML file"),
        ("steps", "is no TOML file"),
        ("a = " + "[" * 5000, "is no TOML file"),
        ("steps = " + "9" * 5000, "is no TOML file"),
        ("learning_rate = 1" + "0" * 400, "learning_rate is 1000"),
        ("steps = 1" + "0" * 400, "steps is 1000"),
    ],
    ids=lambda value: value[:50],
)
def test_what_a_file_cannot_say_is_refused_with_its_name(file, text, message) -> None:
    file.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read_options(FlamingoOptions, file, {})


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"#" * (1 << 20) + b"\n" * 9, None], ids=["no UTF-8", "too long", "not there"]
)
def test_a_file_that_cannot_be_read_is_named(file, content) -> None:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(FlamingoError, match=r"run\.toml"):
        read_options(FlamingoOptions, file, {})


def test_a_missing_file_is_an_error_of_the_data(file) -> None:
    with pytest.raises(DataError, match=r"run\.toml: it does not exist; check the path"):
        read_options(FlamingoOptions, file, {})


# --data


def test_a_dataset_of_the_command_line_has_every_key() -> None:
    text = ("pairs-{a,b}.tar,name=x,kind=videos,weight=0.25,batch=6,tokens=64,frames=4,fps=2.5,images=3,next_image=0,"
            "chunks=1+3,augment=TRUE,leading_space=0.5,prompt=Output:,template={} here,questions=3,by_place=0.25,"
            "ways=2+3,shots=5,names=0.5")
    assert parse_data(text) == DataOptions(
        "pairs-{a,b}.tar", "x", "videos", 0.25, 6, 64, 4, 2.5, 3, 0.0, (1, 3), True, 0.5, "Output:", "{} here", 3,
        0.25, (2, 3), (5,), 0.5,
    )


def test_a_source_may_hold_an_equals_sign_and_a_value_too() -> None:
    assert parse_data("a=b/c.tar,prompt=x=y") == DataOptions("a=b/c.tar", prompt="x=y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,wieght=2", "there is no key 'wieght'; did you mean weight"),
        ("a,weight", "'weight' is no key=value; give it a value: weight=…"),
        ("a,", "'' is no key=value"),
        ("a,b.tar", "'b.tar' is no key=value; another dataset is another --data"),
        ("a,prompt=Hello, you", r"' you' is no key=value; .* holds a comma goes into a \[\[data\]\] table"),
        ("a,wieght", r"'wieght' is no key=value; did you mean weight=…"),
        ("", "a dataset needs a source"),
        ("a,weight=much", "weight is 'much'; it must be a number"),
        ("a,weight=nan", "weight is nan"),
        ("a,weight=0", "weight is 0.0; it must be above 0"),
        ("a,weight=-1", "weight is -1.0"),
        ("a,batch=1.5", "batch is '1.5'; it must be a whole number"),
        ("a,batch=" + "9" * 5000, "batch is"),
        ("a,batch=0", "batch is 0"),
        ("a,augment=maybe", "augment is 'maybe'; it must be true or false"),
        ("a,kind=music", "kind is 'music'; it must be auto or pairs"),
        ("a,chunks=1+", r"chunks is '1\+'; it must be whole numbers joined by \+: chunks=1\+4"),
        ("a,chunks=[1,4]", r"chunks is '\[1'; it must be whole numbers joined by \+: chunks=1\+4"),
        ("a,chunks=1:4", r"chunks is '1:4'; it must be whole numbers joined by \+: chunks=1\+4"),
        ("a,chunks=1,4", r"'4' is no key=value; the entries of a list are joined by \+: chunks=1\+4"),
        ("a,chunks=0", r"chunks is \[0\]"),
        ("a,template=x", "template 'x' holds {} 0 times"),
        ("a,kind=tasks,ways=1+2", r"ways is \[1, 2\]; it lists numbers from 2 to 64"),
        ("a,kind=tasks,ways=65", r"ways is \[65\]; it lists numbers from 2 to 64"),
        ("a,kind=tasks,shots=0", r"shots is \[0\]; it lists numbers from 1 to 64"),
        ("a,kind=tasks,names=1.5", "names is 1.5; it must be from 0 to 1"),
        ("scenes,by_place=1.1", "by_place is 1.1"),
        ("scenes,by_place=-0.1", "by_place is -0.1"),
        ("scenes,questions=0,by_place=0.5", "by_place is 0.5, of no questions: give questions, or leave it out"),
    ],
    ids=lambda value: value[:50],
)
def test_what_a_dataset_cannot_be_is_refused_with_its_key(text, message) -> None:
    with pytest.raises(UsageError, match=message):
        parse_data(text)


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "recipes").rglob("*.toml")),
                         ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_recipe_gives_options_of_its_stage(file: Path) -> None:
    stages = {"vision": VisionOptions, "language": LanguageOptions}
    assert read_options(stages.get(file.stem, FlamingoOptions), file, {}).data


@pytest.mark.parametrize(("options", "message"), [
    ({"start_from": "a", "tokenizer": "t"}, "start_from is a whole checkpoint: leave vision, language and tokenizer"),
    ({"new_tokens": "output", "unfreeze": ("vision", "embedding")},
     "new_tokens is output, .* unfreeze names embedding"),
    ({"new_tokens": "output", "unfreeze": ("language", "embedding")}, "unfreeze names language and embedding"),
    ({"lora": 2, "unfreeze": ("language",)}, "lora is for a frozen language model, and unfreeze names language"),
])
def test_options_of_stage_3_that_would_do_nothing_are_refused(options, message) -> None:
    with pytest.raises(UsageError, match=message):
        FlamingoOptions(**options)


def test_a_tokenizer_beside_the_decoder_that_stage_2_goes_on_with_is_refused() -> None:
    with pytest.raises(UsageError, match="start_from has its own tokenizer"):
        LanguageOptions(start_from="tower", tokenizer="t")


@pytest.mark.parametrize(("options", "key", "value"), [
    (LanguageOptions, "tokens", 2048), (LanguageOptions, "leading_space", 0.5), (VisionOptions, "chunks", (2,)),
    (VisionOptions, "frames", 4), (VisionOptions, "fps", 2.0), (VisionOptions, "questions", 1),
    (LanguageOptions, "questions", 1), (FlamingoOptions, "questions", 1), (FlamingoOptions, "by_place", 0.5),
    (VisionOptions, "by_place", 0.5), (LanguageOptions, "by_place", 0.5), (VisionOptions, "ways", (2,)),
    (LanguageOptions, "shots", (1,)), (FlamingoOptions, "names", 0.5), (FlamingoOptions, "ways", (2,)),
])
def test_a_key_of_a_dataset_that_the_stage_does_not_read_is_refused(options, key, value) -> None:
    stage = {LanguageOptions: "language", VisionOptions: "vision", FlamingoOptions: "flamingo"}[options]
    with pytest.raises(UsageError, match=f"data 'mine': {key} has no effect in train {stage}: leave it out"):
        options(data=(DataOptions("mine", **{key: value}),))
    known = {"source": "scenes" if key in ("questions", "by_place") else "mine", key: value}
    if key in OF_CLASS_TASKS:
        known["kind"] = "tasks"
    FlamingoOptions(data=(DataOptions(**known),))


@pytest.mark.parametrize(("key", "value"), [
    ("tokens", 100), ("chunks", (2,)), ("prompt", "A:"), ("augment", True), ("leading_space", 0.5), ("images", 2),
    ("next_image", 0.1), ("frames", 4), ("fps", 2.0), ("template", "a {}"),
])
def test_a_key_without_effect_on_drawn_scenes_is_refused(key, value) -> None:
    with pytest.raises(UsageError, match=f"data 'scenes': {key} has no effect in train flamingo on drawn scenes"):
        FlamingoOptions(data=(DataOptions("scenes", **{key: value}),))
    FlamingoOptions(data=(DataOptions("mine", **{key: value}),))


@pytest.mark.parametrize(("kind", "key", "value"), [
    ("tasks", "ways", (2,)), ("videos", "shots", (2,)),
    ("tasks", "images", 3), ("tasks", "next_image", 0.0), ("tasks", "chunks", (2,)), ("videos", "questions", 4),
    ("videos", "by_place", 0.5), ("tasks", "by_place", 0.5),
])
def test_the_shots_of_a_drawn_task_are_not_cut_by_options(kind, key, value) -> None:
    with pytest.raises(UsageError, match=f"data 'scenes': {key} has no effect in train flamingo on drawn scenes"):
        FlamingoOptions(data=(DataOptions("scenes", kind=kind, **{key: value}),))
    FlamingoOptions(data=(DataOptions("scenes", kind=kind, batch=3, augment=True),))


@pytest.mark.parametrize(("key", "value"), [
    ("images", 3), ("next_image", 0.0), ("chunks", (2,)), ("prompt", "A:"), ("template", "a {}"), ("questions", 1),
])
def test_the_shots_of_a_task_of_classes_are_not_cut_by_options(key, value) -> None:
    with pytest.raises(UsageError, match=f"{key} has no effect in train flamingo on tasks of class folders"):
        FlamingoOptions(data=(DataOptions("mine", kind="tasks", **{key: value}),))
    FlamingoOptions(data=(DataOptions("mine", kind="tasks", tokens=512, augment=True),))


@pytest.mark.parametrize("options", [VisionOptions, LanguageOptions])
def test_tasks_of_files_are_for_stage_3(options) -> None:
    with pytest.raises(UsageError, match=r"data 'mine': train .* makes no tasks of files; train flamingo does"):
        options(data=(DataOptions("mine", kind="tasks"),))


@pytest.mark.parametrize(("options", "kind", "drawn"), [
    (VisionOptions, "tasks", "auto, scenes, pairs"), (LanguageOptions, "videos", "auto, scenes, text, tasks"),
    (FlamingoOptions, "pages", "auto, scenes, videos, tasks"),
])
def test_a_stage_draws_scenes_of_its_own_kinds(options, kind, drawn) -> None:
    with pytest.raises(UsageError, match=f"draws none of the kind {kind}; it draws {drawn}"):
        options(data=(DataOptions("scenes", kind=kind),))
    for known in drawn.split(", "):
        options(data=(DataOptions("scenes", kind=known),))
