"""Judgement of an input's outcome: whether it is a finding."""

from __future__ import annotations

import re
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from flamingo_rt.errors import FlamingoError

from .kind import Case, WrongAnswer
from .sandbox import OUTPUT

ACCEPTED, REFUSED, FINDING = "accepted", "refused", "finding"
# Control characters, and those that reorder text on the screen. Line ends and tabs are text.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
_HIDDEN = re.compile(r"/\.[^/]*$|\.(partial|old|tmp)$")  # unfinished output, before it is renamed
_PROJECT = Path(__file__).parents[2]
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Outcome:
    """Result of an input. ``what`` tells findings apart, ``detail`` is for whoever looks into one.

    ``memory``: bytes at the peak beyond those before; ``seconds`` of processor time.
    """

    verdict: str
    what: str = ""
    detail: str = ""
    memory: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict:
        return asdict(self)


def of_exception(error: BaseException, commands: bool) -> Outcome:
    """The outcome of what reading an input raised. A command ends in `SystemExit` and must let nothing else out."""
    if commands and isinstance(error, SystemExit):
        if error.code in (0, None):
            return Outcome(ACCEPTED)
        if error.code in (1, 2):
            return Outcome(REFUSED, detail=f"exit code {error.code}")
        return Outcome(FINDING, f"exit code {error.code}", "a command exits with 0, 1 or 2")
    if not commands and isinstance(error, FlamingoError):
        return Outcome(REFUSED, detail=str(error))
    what = str(error) if isinstance(error, WrongAnswer) else _place(error)
    return Outcome(FINDING, f"{type(error).__name__} {what}", _story(error))


def of_output(outcome: Outcome, out: str, err: str) -> Outcome:
    """A finding where the output holds a traceback or control characters."""
    if outcome.verdict == FINDING:
        return outcome
    if "Traceback (most recent call last)" in err:
        return Outcome(FINDING, f"traceback on stderr {err.strip().splitlines()[-1][:80]}", err[-4000:])
    for name, text in (("stdout", out), ("stderr", err)):
        obeyed = _OBEYED.search(text)
        if obeyed:
            around = text[max(obeyed.start() - 60, 0) : obeyed.end() + 40]
            return Outcome(FINDING, f"control character on {name}", f"{obeyed[0]!r} in {around!r}")
    return outcome


def of_files(outcome: Outcome, before: dict[str, tuple], after: dict[str, tuple]) -> Outcome:
    """A finding where an input left, changed or deleted what it must not: anything, unless a command succeeded; then
    the only new entry is its output, whole."""
    if outcome.verdict == FINDING:
        return outcome
    output = f"work/{OUTPUT}"
    new = sorted(set(after) - set(before))
    left = [name for name in new if outcome.verdict != ACCEPTED or not name.startswith(output) or _HIDDEN.search(name)]
    gone = [name for name in sorted(set(before) - set(after)) if not name.startswith(output)]
    changed = [name for name in before if before[name] != after.get(name) and not name.startswith(output)]
    for what, names in (("stray file", left), ("deleted file", gone), ("changed file", changed)):
        if names:
            return Outcome(FINDING, what, f"after it was {outcome.verdict}: {', '.join(map(repr, names[:10]))}")
    return outcome


def of_case(outcome: Outcome, case: Case) -> Outcome:
    """A finding where a case of the corpus was wrongly accepted or refused, or its message holds what it must not."""
    if outcome.verdict == FINDING:
        return outcome
    if case.refused is not None and outcome.verdict != (REFUSED if case.refused else ACCEPTED):
        return Outcome(FINDING, f"{outcome.verdict}, wrongly: {case.name}", outcome.detail)
    if case.unsaid and case.unsaid in outcome.detail:
        return Outcome(FINDING, "message that holds what it must not", f"{case.unsaid!r} in {outcome.detail!r}")
    return outcome


def of_traps(outcome: Outcome, touched: set[str], called: bool) -> Outcome:
    """A finding where a file outside was opened or a connection made. It goes before all others."""
    if touched:
        return Outcome(FINDING, "access outside", f"touched {', '.join(sorted(touched))}; {outcome.what}")
    if called:
        return Outcome(FINDING, "network access", f"the listening socket was called; {outcome.what}")
    return outcome


def _place(error: BaseException) -> str:
    """Place in the project where an error was raised: the innermost frame of the product, or else of the harness."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(_PROJECT) and ".venv" not in frame.filename
    ]
    ours = [frame for frame in frames if not Path(frame.filename).is_relative_to(_HERE)]
    for frame in reversed(ours or frames):
        return f"at {Path(frame.filename).relative_to(_PROJECT)}:{frame.name}"
    return "outside the project"


def _story(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-6000:]
