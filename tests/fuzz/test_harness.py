"""The fuzzer finds planted bugs, keeps what is needed to see them again, and reports nothing of good behaviour."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from .once import once
from .planted import BUGS, GOOD, PLANTED

ROOT = Path(__file__).parents[2]


def fuzz(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", "--kinds-from", "tests.fuzz.planted", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, subprocess.CompletedProcess[str], Path]:
    """The report on the planted bugs, the finished process, and the folder of findings."""

    def make(folder: Path) -> None:
        done = fuzz("--first", "--json", folder / "report.json", "--keep", folder / "kept")
        (folder / "done.pickle").write_bytes(pickle.dumps(done))

    folder = once(tmp_path_factory, "planted", make)
    done = pickle.loads((folder / "done.pickle").read_bytes())
    assert (folder / "report.json").exists(), done.stderr
    return json.loads((folder / "report.json").read_text())[PLANTED.name], done, folder / "kept"


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(planted, name: str) -> None:
    outcome = planted[0]["cases"][name]
    assert (outcome["verdict"], outcome["what"]) == ("finding", BUGS[name][1])


@pytest.mark.parametrize("name", GOOD)
def test_good_behaviour_is_no_finding(planted, name: str) -> None:
    assert planted[0]["cases"][name]["verdict"] == ("refused" if name.startswith("refuses") else "accepted")


def test_inputs_behind_one_that_ends_the_child_are_run(planted) -> None:
    report = planted[0]
    assert report["inputs"] == len(BUGS) + len(GOOD) + PLANTED.first


def test_findings_end_in_exit_code_1_and_are_kept_with_the_command_that_runs_them_again(planted) -> None:
    _, done, kept = planted
    assert done.returncode == 1
    folder = kept / "planted-signal-SIGSEGV-segfaults"
    assert (folder / "input" / "input").read_text() == "segfaults"
    about = json.loads((folder / "finding.json").read_text())
    assert about["command"].endswith("--kinds planted --input segfaults")
    assert about["command"] in done.stdout


def test_where_a_child_was_when_it_was_ended_is_kept(planted) -> None:
    assert "planted.py" in planted[0]["cases"]["waits for ever"]["detail"]
    assert "planted.py" in planted[0]["cases"]["segfaults"]["detail"]


def test_no_finding_ends_in_exit_code_0() -> None:
    done = fuzz("--input", "refuses")
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"verdict": "refused"' in done.stdout


def test_an_unknown_kind_is_named() -> None:
    done = fuzz("--kinds", "nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
