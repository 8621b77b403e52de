"""Progress on stderr: a line for each stage when it ends; a bar that moves where a terminal is."""

from __future__ import annotations

import io
import re
import sys

import pytest

from flamingo_rt.cli.progress_bar import ProgressBar


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def in_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace stderr by a terminal. Tests call this themselves: pytest replaces stderr again after the fixtures."""
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_a_stage_is_one_line_when_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressBar()
    with progress("first", 3) as advance:
        advance(1)
        advance(2)
        assert capsys.readouterr().err == ""
    assert re.fullmatch(r" *\d+\.\d s  first\n", capsys.readouterr().err)
    with progress("second", 0):
        pass
    out, err = capsys.readouterr()
    assert re.fullmatch(r" *\d+\.\d s  second\n", err)
    assert out == ""


def test_a_stage_that_fails_is_not_reported_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), ProgressBar()("first", 3):
        raise ValueError("broken")
    assert capsys.readouterr().err == ""


def test_times_are_since_the_start_and_never_fall(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    clock = iter([100.0, 101.5, 163.0])
    monkeypatch.setattr("flamingo_rt.cli.progress_bar.time.perf_counter", lambda: next(clock))
    progress = ProgressBar()
    for stage in ("first", "second"):
        with progress(stage, 1):
            pass
    assert capsys.readouterr().err == "   1.5 s  first\n  63.0 s  second\n"


@pytest.mark.parametrize("total", [4, 0])
def test_a_terminal_sees_the_stage_move_and_then_its_line(monkeypatch, total: int) -> None:
    terminal = in_terminal(monkeypatch)
    with ProgressBar()("language_model weights", total) as advance:
        advance(total // 2)
        advance(total - total // 2)
    shown = terminal.getvalue()
    assert shown.count("language_model weights") >= 2
    assert ("100%" in shown) == (total > 0)
    assert re.search(r"\d+\.\d s  language_model weights\n$", shown)


def test_a_terminal_is_given_back_after_a_failure(monkeypatch) -> None:
    terminal = in_terminal(monkeypatch)
    with pytest.raises(ValueError, match="broken"), ProgressBar()("first", 3):
        raise ValueError("broken")
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1  # the cursor
    assert " s  first" not in terminal.getvalue()
