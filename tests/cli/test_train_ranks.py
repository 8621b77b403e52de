"""`flamingo-rt train` in several processes: one of them says what all did, or why they end."""

from __future__ import annotations

import pytest
from torch.distributed import HashStore

from flamingo_rt.errors import DataError
from flamingo_rt.training import sharding
from flamingo_rt.training.sharding import World
from flamingo_rt.training.state import state_path


class Rank(World):
    """A rank that waits for no other one: what the first gives, it makes itself."""

    def from_first(self, make):
        return make()

    def gathered(self, value):
        return [value]

    def total(self, number):
        return number


@pytest.fixture
def as_rank(monkeypatch):
    """Let the command run as this rank of two, which share a table of what was said."""
    table = HashStore()
    return lambda rank: monkeypatch.setattr(sharding, "join_world", lambda: Rank(rank, 2, store=table))


@pytest.fixture
def no_training(monkeypatch):
    """Open and train nothing."""
    monkeypatch.setattr("flamingo_rt.training.flamingo_start.open_flamingo_stage", lambda options, world: None)
    monkeypatch.setattr("flamingo_rt.training.loop.train", lambda *arguments, **others: None)


@pytest.mark.parametrize("arguments", [(), ("--print-config",)], ids=["train", "print the configuration"])
def test_one_of_several_processes_says_what_was_done(train, as_rank, no_training, tmp_path, arguments) -> None:
    said = []
    for rank in (1, 0):
        as_rank(rank)
        outcome = train(tmp_path / "out", *arguments)
        assert (outcome.code, outcome.err) == (0, "")
        said.append(outcome.out)
    assert said[0] == ""
    assert said[1]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_error_that_several_processes_meet_is_printed_once(train, as_rank, tmp_path, order) -> None:
    outcomes = []
    for rank in order:
        as_rank(rank)
        outcomes.append(train(tmp_path / "out", data="nowhere"))
    assert [outcome.code for outcome in outcomes] == [1, 1]
    assert "nowhere does not exist" in outcomes[0].err
    assert outcomes[1].err == ""
    as_rank(1)
    assert "elsewhere does not exist" in train(tmp_path / "out", data="elsewhere").err  # an error of its own


def test_a_process_that_loses_another_to_an_error_says_nothing_of_its_own(
    train, as_rank, no_training, tmp_path, monkeypatch
) -> None:
    def failing(error: Exception):
        def fail(*arguments, **others) -> None:
            raise error

        monkeypatch.setattr("flamingo_rt.training.loop.train", fail)

    as_rank(0)
    failing(RuntimeError("a bug of this process"))
    with pytest.raises(RuntimeError, match="a bug"):
        train(tmp_path / "out")
    as_rank(1)
    failing(DataError("memory ran out"))
    assert "memory ran out" in train(tmp_path / "out").err
    as_rank(0)
    failing(RuntimeError("Connection closed by peer"))
    outcome = train(tmp_path / "out")
    assert (outcome.code, outcome.out, outcome.err) == (1, "", "")


def test_an_interrupt_of_several_processes_is_told_by_the_first(
    train, as_rank, no_training, tmp_path, monkeypatch
) -> None:
    def interrupted(stage, options, out, world, **others) -> None:
        state_path(out).mkdir(exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("flamingo_rt.training.loop.train", interrupted)
    said = []
    for rank in (0, 1):
        as_rank(rank)
        outcome = train(tmp_path / "out", "--resume")
        assert outcome.code == 130
        said.append(outcome.err)
    state = state_path(tmp_path / "out")
    assert said[0].strip().startswith(f"interrupted: the state is in {state}; go on with the same command and --resume")
    assert said[1] == ""


def test_of_processes_that_torchrun_started_the_first_prints_a_usage_error(run, monkeypatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for rank, said in ((0, True), (1, False)):
        monkeypatch.setenv("RANK", str(rank))
        outcome = run("train", "flamingo", "--stepz", 3)
        assert (outcome.code, "--stepz" in outcome.err) == (2, said)
