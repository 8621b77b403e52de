"""The log of a run: a line for each step, each step once."""

from __future__ import annotations

import json
import math

import pytest

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.training import run_log
from flamingo_rt.training.run_log import RunLog, StepReport, log_path, read_log, tensorboard_path


@pytest.fixture(autouse=True)
def without_tensorboard(monkeypatch):
    """Hides its package, as if it were not installed: importing it takes longer than all of these tests."""
    monkeypatch.setattr(run_log.importlib.util, "find_spec", lambda name: None)


def report(step: int, **changes) -> StepReport:
    numbers = {"losses": {"pairs": 2.5, "pages": 3.0}, "gradient_norm": 0.5, "learning_rate": 1e-4, "tokens": 512,
               "seconds": 2.0, "waiting": 0.1} | changes
    return StepReport(step, **numbers)


def logged(out, *steps: int) -> list[int]:
    """The steps in the log after a run that did these."""
    with RunLog(out) as log:
        for step in steps:
            log.add(report(step))
    return [entries["step"] for entries in read_log(log_path(out))]


def test_a_line_holds_all_that_is_known_of_a_step(tmp_path) -> None:
    with RunLog(tmp_path / "run") as log:
        log.add(report(1, mfu=0.31234, scalars={"gate.0.ff": 0.25}, damaged=("a.tar/7: no picture",),
                       samples=("a cat",)))
        log.add(report(2))
        lines = (tmp_path / "run.log.jsonl").read_text().splitlines()  # before it is closed: a run may be killed
    first, second = map(json.loads, lines)
    assert first == {
        "step": 1, "loss": {"pairs": 2.5, "pages": 3.0}, "gradient_norm": 0.5, "learning_rate": 1e-4, "tokens": 512,
        "seconds": 2.0, "waiting_share": 0.05, "mfu": 0.3123, "scalars": {"gate.0.ff": 0.25},
        "damaged": ["a.tar/7: no picture"], "samples": ["a cat"],
    }
    assert second["mfu"] is None
    assert set(first) - set(second) == {"damaged", "samples"}
    assert not tensorboard_path(tmp_path / "run").exists()


def test_numbers_that_are_not_finite_are_null_and_text_is_plain_ascii(tmp_path) -> None:
    with RunLog(tmp_path / "run") as log:
        log.add(report(1, gradient_norm=math.inf, losses={"pairs": math.nan}, scalars={"gate": -math.inf},
                       damaged=("\x1b[2Jname\n: ünreadable",)))
    content = log_path(tmp_path / "run").read_bytes()
    assert content.count(b"\n") == 1
    assert all(byte >= 32 and byte < 127 for byte in content[:-1])
    entries = json.loads(content, parse_constant=pytest.fail)
    assert (entries["gradient_norm"], entries["loss"], entries["scalars"]) == (None, {"pairs": None}, {"gate": None})
    assert entries["damaged"] == ["\x1b[2Jname\n: ünreadable"]


def test_a_resumed_run_goes_on_where_its_state_was_saved_and_no_step_is_there_twice(tmp_path) -> None:
    out = tmp_path / "run"
    assert logged(out, 1, 2, 3, 4, 5) == [1, 2, 3, 4, 5]
    before = log_path(out).read_text().splitlines()
    assert logged(out, 4, 5, 6) == [1, 2, 3, 4, 5, 6]
    assert log_path(out).read_text().splitlines()[:3] == before[:3]
    assert logged(out, 7) == [1, 2, 3, 4, 5, 6, 7]


def test_half_a_line_of_a_killed_run_is_removed(tmp_path) -> None:
    out = tmp_path / "run"
    logged(out, 1, 2, 3)
    for half in ('{"step": 4, "loss": {"pai', '{"step": 4}', "\0" * 60 + "\n", "[4]\n", '{"step": "4"}\n'):
        with log_path(out).open("a") as file:
            file.write(half)
        assert logged(out, 4) == [1, 2, 3, 4]
        assert all(json.loads(line) for line in log_path(out).read_text().splitlines())


def test_a_new_run_replaces_the_log_of_an_earlier_one(tmp_path) -> None:
    out = tmp_path / "run"
    logged(out, 1, 2, 3)
    assert logged(out, 1, 2) == [1, 2]


def test_nothing_is_changed_before_the_first_step(tmp_path) -> None:
    out = tmp_path / "run"
    logged(out, 1, 2, 3)
    before = log_path(out).read_bytes()
    with RunLog(out):
        pass
    assert log_path(out).read_bytes() == before
    assert list(tmp_path.iterdir()) == [log_path(out)]


def test_a_full_disk_is_explained(tmp_path) -> None:
    with RunLog(tmp_path / "run") as log:
        log.add(report(1))
        log._file.close()
        log._file = open("/dev/full", "w")  # noqa: SIM115 (closed with the log)
        with pytest.raises(DataError, match=r"run\.log\.jsonl: .*No space left on device; mend that, and go on with"):
            log.add(report(2))
        log._file = None


def test_a_folder_in_the_place_of_the_log_is_refused_before_any_step(tmp_path) -> None:
    log_path(tmp_path / "run").mkdir()
    with pytest.raises(UsageError, match="is a folder: choose another --out"):
        RunLog(tmp_path / "run")


def test_tensorboard_gets_the_same_numbers_and_hides_the_steps_that_come_again(tmp_path, monkeypatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.undo()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    for steps in ((1, 2, 3), (3, 4)):
        with RunLog(out) as log:
            for step in steps:
                log.add(report(step, losses={"pairs": float(step)}, mfu=0.25, samples=("a cat", "a *dog*")))
    events = EventAccumulator(str(tensorboard_path(out)))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/pairs")] == [(n, n) for n in (1, 2, 3, 4)]
    scalars = {"loss/pairs", "gradient_norm", "learning_rate", "tokens_per_second", "waiting_share", "mfu"}
    assert set(events.Tags()["scalars"]) == scalars
    assert events.Scalars("tokens_per_second")[0].value == 256
    text = events.Tensors("samples/text_summary")[0].tensor_proto.string_val[0]
    assert text == b"    a cat\n    a *dog*"
