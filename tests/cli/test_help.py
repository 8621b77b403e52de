"""Help: every command has it, with an example that can be copied."""

from __future__ import annotations

import pytest

from flamingo_rt import __version__
from flamingo_rt.cli import COMMANDS

PAGES = [[], *([name] for name in COMMANDS), ["train", "vision"], ["train", "language"], ["train", "flamingo"],
         ["import", "openflamingo"], ["evaluate", "scenes"], ["evaluate", "task"]]


@pytest.mark.parametrize("command", PAGES, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_page_of_help_has_an_example(run, command, option) -> None:
    outcome = run(*command, option)
    assert outcome.code == 0
    assert "Example" in outcome.out
    assert " ".join(["  flamingo-rt", *command]) in outcome.out
    assert outcome.err == ""


def test_the_first_page_lists_every_command_with_what_it_does(run) -> None:
    page = run("--help").out
    for name, (_, text) in COMMANDS.items():
        assert any(line.split(maxsplit=1) == [name, text] for line in page.splitlines())


def test_the_version_is_the_packages(run) -> None:
    outcome = run("--version")
    assert (outcome.code, outcome.out.strip()) == (0, f"flamingo-rt, version {__version__}")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["train", "nonsense"], "nonsense"),
        (["infer", "--nonsense"], "--nonsense"),
        (["infer", "--image"], "--image"),
        (["infer", "--prompt", "a", "--frames", "many"], "many"),
        (["infer", "--prompt", "a", "--threads", "0"], "0"),
        (["export", "--out", "x"], "--ckpt"),
        (["describe"], "--preset"),
        (["train", "flamingo", "--out", "x", "--steps", "0"], "0"),
        (["train", "flamingo", "--out", "x", "--learning-rate", "0"], "0"),
    ],
)
def test_a_command_line_that_cannot_be_read_ends_with_2_and_names_the_culprit(run, arguments, named) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert named in outcome.err
    assert outcome.out == ""


def test_an_interrupt_ends_with_130_and_one_line(run, monkeypatch) -> None:
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("flamingo_rt.loading.load", interrupt)
    outcome = run("infer", "--prompt", "a")
    assert (outcome.code, outcome.err.strip()) == (130, "interrupted")
