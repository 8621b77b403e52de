"""Every kind of input: the corpus, and the first inputs of those that random changes make, always the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .kinds import KINDS
from .once import once

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Report of a run of the fuzzer, in a process of its own since it forks."""

    def fuzz(folder: Path) -> None:
        command = [sys.executable, "-m", "tests.fuzz", "--first", "--jobs", "2", "--json", str(folder / "report.json")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        (folder / "printed").write_text(done.stdout + done.stderr)

    folder = once(tmp_path_factory, "fuzz", fuzz)
    assert (folder / "report.json").exists(), (folder / "printed").read_text()
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize(("kind", "case"), [(kind.name, case.name) for kind in KINDS.values() for case in kind.cases])
def test_every_case_of_the_corpus_ends_as_expected(report: dict, kind: str, case: str) -> None:
    outcome = report[kind]["cases"][case]
    assert outcome["verdict"] != "finding", f"{outcome['what']}\n{outcome['detail']}"


@pytest.mark.parametrize("kind", KINDS)
def test_changed_inputs_are_refused_or_answered_within_the_limits(report: dict, kind: str) -> None:
    found = [finding for finding in report[kind]["findings"] if isinstance(finding["number"], int)]
    listed = "\n".join(f"{finding['command']}\n{finding['what']}\n{finding['detail'][-1500:]}" for finding in found)
    assert not found, listed


@pytest.mark.parametrize("kind", KINDS)
def test_changes_lead_to_refusals_and_to_answers(report: dict, kind: str) -> None:
    # Were all inputs refused at their first byte, or none, the changes would try nothing.
    counts = report[kind]
    assert counts["inputs"] == len(KINDS[kind].cases) + KINDS[kind].first
    assert counts["accepted"]
    assert counts["refused"]
