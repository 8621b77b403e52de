"""Run a task: every query under every number of shots, seed and control, with the answers kept as they come.

The answers are lines of a file, so a run that was interrupted goes on where it was. Queries with the same shots share a
prompt that is read once, for classes once for `RANKED` of them: such a query costs what it costs without shots.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_rt.bounded_files import read_text
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.evaluation.controls import CONTROLS, NEEDS_TWO, Control, Shot, controlled
from flamingo_rt.evaluation.shots import ShotChooser
from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.evaluation.task_digest import differences, header_of, is_header
from flamingo_rt.evaluation.task_prompts import query_parts, shot_parts, visual_of, with_task_form
from flamingo_rt.files import replacing_file
from flamingo_rt.processing.prompt import Part
from flamingo_rt.runtime.model import Model, PromptState

BATCH = 16  # queries that are answered together
RANKED = 64  # queries whose classes are ranked before they are written down; for them each order is read anew
MOST_BYTES = 1 << 30  # of a file of answers
MOST_FIRST = 1 << 20  # of its first line
SCORES, PAGE = "scores.json", "index.html"  # beside the file of answers
ZERO_SHOTS = 2  # shots without pictures that stand for none (§3.4: "zero-shot" prompts have two texts of the task)


@dataclass(frozen=True)
class Setting:
    """A number of shots, a seed that chooses them, and what is done to them."""

    shots: int
    seed: int
    control: Control = "none"


@dataclass(frozen=True)
class Answered:
    """A query that was answered: its setting, its name, the names of its shots, and the answer. ``likelihoods`` are the
    log-likelihoods of the classes, where there are any: means over orders of the shots."""

    setting: Setting
    item: str
    shots: tuple[str, ...]
    answer: str
    likelihoods: Mapping[str, float] | None = None

    def line(self) -> str:
        """The answer as a line of the file."""
        more = {} if self.likelihoods is None else {
            "likelihoods": {name: round(value, 6) for name, value in self.likelihoods.items()}
        }
        return json.dumps({
            "shots": self.setting.shots, "seed": self.setting.seed, "control": self.setting.control, "item": self.item,
            "chosen": self.shots, "answer": self.answer, **more,
        }, ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str) -> Answered:
        """Read `line` back. Raises `ValueError`, `KeyError` or `TypeError` for another text."""
        record = json.loads(line)
        setting = Setting(int(record["shots"]), int(record["seed"]), CONTROLS[CONTROLS.index(record["control"])])
        return cls(setting, str(record["item"]), tuple(record["chosen"]), str(record["answer"]),
                   record.get("likelihoods"))


def settings_of(shots: Iterable[int], seeds: int, controls: Sequence[Control]) -> list[Setting]:
    """Every setting once: 0 shots have no control, and one shot alone has nothing to be exchanged with."""
    return [
        Setting(count, seed, control)
        for count in shots for control in ("none", *controls) for seed in range(seeds)
        if control == "none" or count > 1 or (count == 1 and control not in NEEDS_TWO)
    ]


class TaskRun:
    """A task on a model, with the way in which shots are chosen. ``orders``: of the shots, over which likelihoods of
    classes are averaged (§B.1.5). With 0 shots, ``zero`` chooses those without pictures that stand for none; by
    default as ``chooser``."""

    def __init__(
        self, model: Model, task: Task, chooser: ShotChooser, orders: int = 6, plain_zero: bool = False,
        zero: ShotChooser | None = None,
    ) -> None:
        self.model, self.task, self._chooser, self._orders = model, task, chooser, orders
        self._plain_zero, self._zero = plain_zero, zero or chooser
        self._config = with_task_form(model.config, task)

    def answers(
        self, settings: Sequence[Setting], file: Path, about: Mapping[str, Any], resume: bool,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> list[Answered]:
        """Answer every query under every setting, and give all answers, those of an earlier run included.

        They are lines of ``file``, after one with ``about``, which says what they depend on. The settings with the most
        shots come first, since they are the ones that may not fit. Raises `UsageError` when the file exists and
        ``resume`` is not asked for, `DataError` when it is of another run, and for more shots than the support has.
        """
        found = self._begun(file, about, resume)
        places = {setting: place for place, setting in enumerate(settings)}
        on_batch(sum(answered.setting in places for answered in found))
        known = {(answered.setting, answered.item) for answered in found}
        with file.open("a", encoding="utf-8") as lines:
            for setting in sorted(settings, key=lambda setting: -setting.shots):
                left = [item for item in self.task.items if (setting, item.name) not in known]
                for batch in self._answered(setting, left):
                    lines.write("".join(answered.line() + "\n" for answered in batch))
                    lines.flush()
                    found += batch
                    on_batch(len(batch))
        asked = [answered for answered in found if answered.setting in places]
        return sorted(asked, key=lambda answered: places[answered.setting])

    def _begun(self, file: Path, about: Mapping[str, Any], resume: bool) -> list[Answered]:
        """The answers in the file; begins it where it is not there. A last line that was cut is removed."""
        require_new(file, resume)
        if not file.exists() or not resume:
            _replace(file, header_of(about) + "\n")
            return []
        first, *lines = require_same(file, about)
        found = []
        for number, line in enumerate(lines[:-1], start=2):  # after the last line break is nothing, or a cut line
            try:
                found.append(Answered.from_line(line))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{file}, line {number}, is no answer: {error}; delete the file, or its end") from error
        if lines and lines[-1]:
            _replace(file, "\n".join([first, *lines[:-1], ""]))
        return found

    def _answered(self, setting: Setting, items: Sequence[Item]) -> Iterator[list[Answered]]:
        """Answers of the items in batches: those that have the same shots together."""
        groups: dict[tuple[Item, ...], list[Item]] = {}
        for item in items:
            groups.setdefault(self._shots(setting, item), []).append(item)
        for chosen, queries in groups.items():
            shots = [Shot(visual_of(shot), shot.question, shot.answer) for shot in chosen]
            control: Control = "text" if setting.shots == 0 else setting.control
            names = tuple(shot.name for shot in chosen)
            shots = controlled(shots, control, setting.seed, zlib.crc32("\n".join(names).encode()))
            classes = self.task.kind == "classes"
            found = self._classified(shots, queries, setting.seed) if classes else self._generated(shots, queries)
            for batch in found:
                yield [Answered(setting, item.name, names, text, likelihoods) for item, text, likelihoods in batch]

    def lacking(self, settings: Sequence[Setting]) -> tuple[int, int]:
        """Count the prompts that lack a shot of one of the query's classes, among those with a shot for each class or
        more, and all of the latter. Controls are not counted: their shots are the same."""
        if self.task.kind != "classes":
            return 0, 0
        lacking = prompts = 0
        for setting in settings:
            for item in self.task.items if setting.shots and setting.control == "none" else ():
                classes = self.task.classes_of(item)
                if setting.shots >= len(classes):
                    prompts += 1
                    lacking += not {shot.answer for shot in self._shots(setting, item)}.issuperset(classes)
        return lacking, prompts

    def _shots(self, setting: Setting, item: Item) -> tuple[Item, ...]:
        if setting.shots:
            return self._chooser.choose(item, setting.shots, setting.seed)
        return () if self._plain_zero else self._zero.choose(item, ZERO_SHOTS, setting.seed)

    def _generated(
        self, shots: Sequence[Shot], queries: Sequence[Item]
    ) -> Iterator[Sequence[tuple[Item, str, Mapping[str, float] | None]]]:
        before = shot_parts(self._config, shots, self.task.after)
        prefix, parts = self._read(before, len(queries))
        for start in range(0, len(queries), BATCH):
            batch = queries[start : start + BATCH]
            results = self.model.generate_batch(
                [[*parts, *query_parts(self._config, item)] for item in batch], prefix=prefix,
                max_new_tokens=self.task.max_new_tokens, beams=self.task.beams, length_penalty=self.task.length_penalty,
            )
            yield [(item, result.text, None) for item, result in zip(batch, results, strict=True)]

    def _classified(
        self, shots: Sequence[Shot], queries: Sequence[Item], seed: int
    ) -> Iterator[Sequence[tuple[Item, str, Mapping[str, float] | None]]]:
        """The likeliest class of each query, by the mean over several orders of the shots."""
        orders = _orders(len(shots), self._orders, seed)
        for start in range(0, len(queries), RANKED):
            batch = queries[start : start + RANKED]
            sums = [dict.fromkeys(self.task.classes_of(item), 0.0) for item in batch]
            for order in orders:
                self._add_likelihoods([shots[place] for place in order], batch, sums, len(orders))
            yield [(item, max(total, key=total.__getitem__), total) for item, total in zip(batch, sums, strict=True)]

    def _add_likelihoods(
        self, shots: Sequence[Shot], queries: Sequence[Item], sums: Sequence[dict[str, float]], orders: int
    ) -> None:
        """Add a share of 1 / ``orders`` of the log-likelihood of each query's classes after these shots."""
        prefix, parts = self._read(shot_parts(self._config, shots, self.task.after), len(queries))
        for item, total in zip(queries, sums, strict=True):
            for score in self.model.score([*parts, *query_parts(self._config, item)], tuple(total), prefix=prefix):
                total[score.text] += (score.logprob_per_token if self.task.per_token else score.logprob) / orders

    def _read(self, shots: list[Part], queries: int) -> tuple[PromptState | None, list[Part]]:
        """The shots as a prompt that is read once, where several queries share it, and what is left to put before each
        query."""
        if not shots or queries == 1:
            return None, shots
        return self.model.prompt(shots), []


def require_new(file: Path, resume: bool) -> None:
    """Raise `UsageError` where ``file`` has answers and the run is not to go on, and where a file in the place of its
    scores or of its page is of no run: it would be replaced."""
    if not resume and has_answers(file):
        raise UsageError(f"{file} has the answers of an earlier run: go on with --resume, or give another --out")
    others = [place for place in (file.with_name(SCORES), file.with_name(PAGE)) if place.exists()]
    if others and not file.exists():
        raise UsageError(f"{others[0]} is there without {file.name}, and would be replaced: give another --out")


def has_answers(file: Path) -> bool:
    """Whether a file is there and is more than the beginning that a run writes before its first answer."""
    try:
        with file.open("rb") as lines:
            first, more = lines.readline(MOST_FIRST), lines.read(1)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return bool(more) or not is_header(first.decode("utf-8", "replace"))


def require_same(file: Path, about: Mapping[str, Any]) -> list[str]:
    """The lines of a file of answers, none where it is not there. Raises `DataError` for one of another run."""
    if not file.exists():
        return []
    lines = read_text(file, MOST_BYTES).split("\n")
    if lines[0] != header_of(about):
        raise DataError(f"{file} is of a run with {differences(lines[0], about)}: give the same, or another --out")
    return lines


def _replace(file: Path, text: str) -> None:
    with replacing_file(file) as beside:
        beside.write_text(text, encoding="utf-8")


def _orders(shots: int, most: int, seed: int) -> list[tuple[int, ...]]:
    """Orders of the shots, the given one first, then others at random, no two alike, at most ``most``."""
    generator, found = np.random.default_rng([seed, shots]), {tuple(range(shots)): None}
    for _ in range(20 * most):  # few shots have few orders
        if len(found) >= most:
            break
        found[tuple(generator.permutation(shots).tolist())] = None
    return list(found)
