"""Every option of every command, as click lists them: impossible paths and numbers are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from flamingo_rt.cli import COMMANDS, cli, paths
from flamingo_rt.cli.numbers import Counts, Features, Size, Triple
from flamingo_rt.cli.paths import LONGEST_NAME, ROOM_BESIDE, PathType
from flamingo_rt.cores import core_count

# Options that take any text. All others have a type that refuses impossible values.
TEXTS = {
    "--prompt", "--question", "--choices", "--stop", "--backend", "--preset", "--compute-capability", "--lowering",
    "--license", "--source", "--data", "--evaluation", "--encoder", "--decoder", "--unfreeze", "--controls",
    "--output", "source",
}
# Arguments that a command needs besides the tested option: well formed, naming nothing that exists.
NEEDED = {
    ("infer",): ["--model", "/nowhere/bundle", "--prompt", "x"],
    ("prompt", "compile"): ["--model", "/nowhere/bundle", "--shot", "/nowhere/a.png", "x", "--out", "/nowhere/out"],
    ("import", "openflamingo"): [
        "--checkpoint", "/nowhere/a", "--vision", "/nowhere/b", "--language", "/nowhere/c", "--out", "/nowhere/out",
    ],
    ("import", "encoder"): ["--onnx", "/nowhere/a.onnx", "--image-size", "32", "--out", "/nowhere/out"],
    ("bridge", "take"): ["--ckpt", "/nowhere/checkpoint", "--out", "/nowhere/out"],
    ("bridge", "join"): [
        "--bridge", "/nowhere/a", "--vision", "/nowhere/b", "--language", "/nowhere/c", "--out", "/nowhere/out",
    ],
    ("export",): ["--ckpt", "/nowhere/checkpoint", "--out", "/nowhere/out"],
    ("build",): ["--model", "/nowhere/bundle", "--target", "tensorrt"],
    ("verify",): ["--model", "/nowhere/bundle"],
    ("train", "vision"): ["--data", "/nowhere/pairs", "--out", "/nowhere/out"],
    ("train", "language"): ["--data", "/nowhere/texts", "--out", "/nowhere/out"],
    ("train", "flamingo"): ["--data", "/nowhere/pairs", "--start-from", "/nowhere/model", "--out", "/nowhere/out"],
    ("data", "make-scenes"): ["--kind", "text", "--count", "1", "--out", "/nowhere/out"],
    ("data", "check"): ["/nowhere/data"],
    ("evaluate", "scenes"): ["--model", "/nowhere/bundle"],
    ("evaluate", "task"): ["/nowhere/task.toml", "--model", "/nowhere/bundle", "--out", "/nowhere/out"],
    ("bench",): ["--model", "/nowhere/bundle"],
    ("describe",): ["--preset", "nowhere"],
    ("doctor",): [],
}


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The commands that do something, by the words that call them."""

    def below(words: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        context = click.Context(command)
        if not isinstance(command, click.Group):
            yield words, command
            return
        for name in command.list_commands(context):
            yield from below((*words, name), command.get_command(context, name))

    yield from below((), cli)


def options() -> Iterator[tuple[tuple[str, ...], click.Option]]:
    return ((words, option) for words, command in commands() for option in command.params)


def kinds(option: click.Option) -> list[click.ParamType]:
    """The type of each word that an option takes."""
    return list(option.type.types) if isinstance(option.type, click.Tuple) else [option.type]


def of_kind(*wanted: type) -> list:
    return [
        pytest.param(words, option, id=" ".join([*words, option.opts[-1]])) for words, option in options()
        if isinstance(option, click.Option) and any(isinstance(kind, wanted) for kind in kinds(option))
    ]


def arguments(words: tuple[str, ...], option: click.Option, value: str) -> list[str]:
    """A command line with this value, and all else that it needs."""
    name, others, given = option.opts[0], [], NEEDED[words]
    while given:
        taken = 1 + next((o.nargs for w, o in options() if w == words and given[0] in o.opts), 0)  # 0: an argument
        others += [] if given[0] == name else given[:taken]
        given = given[taken:]
    values = [value if isinstance(kind, (PathType, *NUMBERS)) else "x" for kind in kinds(option)]
    return [*words, *others, name, *values]


NUMBERS = (click.types.IntParamType, click.types.FloatParamType, Counts, Features, Size, Triple)


def test_every_command_that_does_something_is_covered() -> None:
    assert {words for words, _ in commands()} == set(NEEDED)
    assert {words[0] for words in NEEDED} == set(COMMANDS)


def test_every_option_has_a_type_that_refuses_what_it_cannot_be() -> None:
    loose = {
        option.opts[0] for _, option in options()
        if any(type(kind) in (click.types.StringParamType, click.Path, click.File) for kind in kinds(option))
    }
    assert loose - {"--shot"} <= TEXTS  # a shot has a path and a text
    for _, option in options():
        if option.metavar and any(word in option.metavar for word in ("FILE", "FOLDER", "BUNDLE")):
            assert isinstance(kinds(option)[0], PathType), option.opts


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "empty"),
        ("a\0b", "'a\\x00b'"),
        ("n" * 300, "300 bytes"),
        ("é" * 200, "400 bytes"),
        ("folder/" * 900, "give a path of at most"),
        ("\ud800", "no path can"),
        ("--json", "a path is missing before --json"),
    ],
    ids=["empty", "null", "long name", "long name in bytes", "long path", "half a pair", "an option"],
)
@pytest.mark.parametrize(("words", "option"), of_kind(PathType))
def test_a_path_that_no_file_can_have_is_a_usage_error(run, words, option, value, said) -> None:
    if value == "--json" and not any(w == words and "--json" in other.opts for w, other in options()):
        value, said = "--overwrite", "a path is missing before --overwrite"
    outcome = run(*arguments(words, option, value))
    assert (outcome.code, outcome.out) == (2, "")
    assert option.opts[0] in outcome.err
    assert said in outcome.err
    assert len(outcome.err) < 600


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "9" * 30, "9" * 5000, "-" + "9" * 30, "", "one"])
@pytest.mark.parametrize(("words", "option"), of_kind(*NUMBERS))
def test_a_number_that_makes_no_sense_is_a_usage_error(run, words, option, value) -> None:
    outcome = run(*arguments(words, option, value))
    assert (outcome.code, outcome.out) == (2, "")
    names = (option.opts[0], option.opts[0].lstrip("-").replace("-", "_"))  # option or argument
    assert any(name in outcome.err for name in names)


@pytest.mark.parametrize("value", ["\udcff.png", "-", "-x.png", "ж.png", "n" * 200])
@pytest.mark.parametrize(("words", "option"), of_kind(PathType))
def test_unusual_file_names_are_accepted(words, option, value) -> None:
    context = click.Context(dict(commands())[words])
    taken = [kind.convert(value, option, context) for kind in kinds(option) if isinstance(kind, PathType)]
    assert [os.fspath(path) for path in taken] == [value]


def test_a_picture_whose_name_is_not_utf8_is_answered(run, pictures, tmp_path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff\xfe.png")
    odd.write_bytes(pictures[0].read_bytes())
    assert run("infer", "--image", odd, "--max-new-tokens", 2).code == 0


def test_the_name_of_an_output_leaves_room_for_the_suffix_of_the_unfinished_file(run, pictures, tmp_path) -> None:
    shots = ("prompt", "compile", "--shot", pictures[0], "Output: a", "--out")
    longest = LONGEST_NAME - ROOM_BESIDE
    assert run(*shots, tmp_path / ("n" * longest)).code == 0
    outcome = run(*shots, tmp_path / ("n" * (longest + 1)))
    assert outcome.code == 2
    assert f"at most {longest}" in outcome.err


def test_a_long_value_of_another_option_does_not_flood_the_screen(run) -> None:
    outcome = run("infer", "--prompt", "x", "--task", "y" * 100_000)
    assert outcome.code == 2
    assert len(outcome.err) < 1000


def test_a_relative_path_is_refused_where_the_folder_is_gone(monkeypatch) -> None:
    monkeypatch.setattr(paths, "_current_folder_gone", True)
    with pytest.raises(click.BadParameter, match="current folder was removed"):
        PathType().convert("a.png", None, None)
    assert PathType().convert("/a.png", None, None) == Path("/a.png")


@pytest.mark.parametrize("words", [("infer",), ("prompt", "compile"), ("bench",)], ids=" ".join)
def test_more_threads_than_cores_are_refused_before_a_model_is_read(run, words) -> None:
    outcome = run(*words, *NEEDED[words], "--threads", core_count() + 1)
    assert (outcome.code, outcome.out) == (2, "")
    assert f"threads is {core_count() + 1}; it must be an integer from 1 to {core_count()}" in outcome.err
