"""A run gives the answers that one query at a time gives, goes on where it was, and refuses another run's file."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import pytest

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.evaluation import task_run
from flamingo_rt.evaluation.controls import CONTROLS, Shot, controlled
from flamingo_rt.evaluation.shots import GroupShots, RandomShots
from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.evaluation.task_prompts import query_parts, shot_parts, visual_of, with_task_form
from flamingo_rt.evaluation.task_run import Answered, Setting, TaskRun, settings_of
from flamingo_rt.processing.visuals import Image
from flamingo_rt.runtime.model import Model

ABOUT = {"model": "small"}
CLASSES = ("red circle", "blue square", "star")


def slowly(model: Model, task: Task, setting: Setting, item: Item) -> str:
    """The answer to one query by itself, its shots written before it."""
    chosen = RandomShots(task.support).choose(item, setting.shots or 2, setting.seed)
    shots = [Shot(visual_of(shot), shot.question, shot.answer) for shot in chosen]
    names = zlib.crc32("\n".join(shot.name for shot in chosen).encode())
    shots = controlled(shots, setting.control if setting.shots else "text", setting.seed, names)
    config = with_task_form(model.config, task)
    # As two prompts: a text that continues another is tokenized by itself.
    prefix = model.prompt(shot_parts(config, shots))
    return model.generate(query_parts(config, item), prefix=prefix, max_new_tokens=task.max_new_tokens).result().text


def run(model: Model, task: Task, settings: list[Setting], folder, resume: bool = False, **more) -> list[Answered]:
    return TaskRun(model, task, RandomShots(task.support), **more).answers(settings, folder / "answers.jsonl", ABOUT,
                                                                           resume)


def test_each_setting_appears_once_and_controls_only_where_they_mean_something() -> None:
    found = settings_of((0, 1, 4), 2, ("shuffled", "blank"))
    assert len(found) == len(set(found)) == 2 + 4 + 6
    assert {setting.control for setting in found if setting.shots == 0} == {"none"}
    assert {setting.control for setting in found if setting.shots == 1} == {"none", "blank"}
    assert {setting.control for setting in found if setting.shots == 4} == {"none", "shuffled", "blank"}


def test_answers_are_those_of_one_query_at_a_time(model, captions, folder) -> None:
    settings = settings_of((0, 1, 3), 2, CONTROLS[1:])
    found = run(model, captions, settings, folder)
    assert len(found) == len(settings) * len(captions.items)
    for answered in found:
        item = next(item for item in captions.items if item.name == answered.item)
        assert answered.answer == slowly(model, captions, answered.setting, item)
    assert len({answered.answer for answered in found}) > 5


def test_queries_with_the_same_shots_read_them_once(model, captions, folder, monkeypatch) -> None:
    read = []
    prompt = Model.prompt
    monkeypatch.setattr(Model, "prompt", lambda self, parts: read.append(parts) or prompt(self, parts))
    run(model, captions, [Setting(3, 0)], folder)
    assert len(read) == 1


def test_an_item_of_the_support_is_answered_without_itself(model, items, folder) -> None:
    task = Task("own", "caption", "exact", items, items, max_new_tokens=3)
    for answered in run(model, task, [Setting(2, 0)], folder):
        assert answered.item not in answered.shots


def test_classes_are_ranked_by_the_mean_over_orders_of_the_shots(model, classes, folder) -> None:
    (answered, *_), single = run(model, classes, [Setting(3, 1)], folder), classes.items[0]
    chosen = RandomShots(classes.support).choose(single, 3, 1)
    shots = [Shot(visual_of(shot), None, shot.answer) for shot in chosen]
    total = dict.fromkeys(classes.classes, 0.0)
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]  # three shots have no more
    for order in orders:
        before = shot_parts(model.config, [shots[place] for place in order])
        for score in model.score(query_parts(model.config, single), classes.classes, prefix=model.prompt(before)):
            total[score.text] += score.logprob / len(orders)
    assert answered.likelihoods == pytest.approx(total, abs=1e-4)
    assert answered.answer == max(total, key=total.__getitem__)


def test_groups_are_answered_as_if_each_were_a_task_of_its_own(model, items, folder) -> None:
    groups = {"x": CLASSES[:2], "y": CLASSES[1:]}
    pools = {name: tuple(replace(item, name=f"{name}-{item.name}", group=name) for item in items
                         if item.answer in classes) for name, classes in groups.items()}
    both = Task("both", "classes", "accuracy", pools["x"][4:] + pools["y"][4:], pools["x"][:4] + pools["y"][:4],
                CLASSES, group_classes=groups)
    found = TaskRun(model, both, GroupShots({name: RandomShots(both.support_of(name)) for name in groups})).answers(
        [Setting(2, 0, "shuffled")], folder / "answers.jsonl", ABOUT, False)
    single = []
    for name, classes in groups.items():
        task = Task(name, "classes", "accuracy", pools[name][4:], pools[name][:4], classes)
        single += run(model, task, [Setting(2, 0, "shuffled")], folder / name)
    assert [answered.line() for answered in found] == [answered.line() for answered in single]
    assert all(set(answered.likelihoods) == set(groups[answered.item[0]]) for answered in found)


def test_zero_shots_are_two_texts_or_none(model, captions, folder, monkeypatch) -> None:
    read = []
    prompt = Model.prompt
    monkeypatch.setattr(Model, "prompt", lambda self, parts: read.append(parts) or prompt(self, parts))
    found = run(model, captions, [Setting(0, 0)], folder)
    (parts,) = read
    assert len(parts) == 2
    assert not any(isinstance(part, Image) for part in parts)
    assert {len(answered.shots) for answered in found} == {2}
    read.clear()
    plain = run(model, captions, [Setting(0, 0)], folder / "plain", plain_zero=True)
    assert (read, {answered.shots for answered in plain}) == ([], {()})


def test_the_tasks_own_text_stands_before_answers(model, items) -> None:
    config = with_task_form(model.config, Task("t", "caption", "exact", items, items, before="A photo of"))
    assert shot_parts(config, [Shot(None, None, "red")]) == ["A photo of red<|endofchunk|>"]
    asked = with_task_form(model.config, Task("t", "question", "exact", items, items, before="Q: {} A:"))
    item = replace(items[0], question="What {} is it?")
    assert query_parts(asked, item)[1] == "Q: What {} is it? A:"
    assert query_parts(asked, replace(item, file=None)) == ["Q: What {} is it? A:"]
    assert query_parts(config, replace(items[0], file=None)) == ["A photo of"]


# Interrupted runs


def test_ranked_classes_are_kept_as_they_come(model, classes, folder, monkeypatch) -> None:
    monkeypatch.setattr(task_run, "RANKED", 3)
    whole = run(model, classes, [Setting(2, 0)], folder / "whole")
    score, asked = Model.score, []

    def broken(self, *arguments, **more):
        asked.append(arguments)
        if len(asked) > 6:  # two orders of three queries
            raise KeyboardInterrupt
        return score(self, *arguments, **more)

    monkeypatch.setattr(Model, "score", broken)
    with pytest.raises(KeyboardInterrupt):
        run(model, classes, [Setting(2, 0)], folder)
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 1 + 3
    monkeypatch.setattr(Model, "score", score)
    again = run(model, classes, [Setting(2, 0)], folder, resume=True)
    assert [answered.line() for answered in again] == [answered.line() for answered in whole]


def test_most_shots_come_first_and_answers_in_the_order_of_the_settings(model, captions, folder) -> None:
    settings = settings_of((1, 3, 2), 1, ())
    found = run(model, captions, settings, folder)
    assert list(dict.fromkeys(answered.setting for answered in found)) == settings
    kept = [json.loads(line)["shots"] for line in (folder / "answers.jsonl").read_text().splitlines()[1:]]
    assert kept == sorted(kept, reverse=True)


def test_an_interrupted_run_goes_on_where_it_was(model, captions, folder, monkeypatch) -> None:
    settings = settings_of((1, 2), 1, ("blank",))
    whole = run(model, captions, settings, folder / "whole")
    file = folder / "answers.jsonl"
    run(model, captions, settings, folder)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:7]) + "\n" + lines[7][:20])  # the last line was cut
    answered = []
    generate = Model.generate_batch
    monkeypatch.setattr(Model, "generate_batch",
                        lambda self, prompts, **more: answered.extend(prompts) or generate(self, prompts, **more))
    assert sorted(map(Answered.line, run(model, captions, settings, folder, resume=True))) == sorted(
        map(Answered.line, whole))
    assert len(answered) == len(whole) - 6
    assert file.read_text().splitlines() == lines


def test_what_was_not_asked_for_this_time_is_kept_and_not_given(model, captions, folder) -> None:
    run(model, captions, [Setting(1, 0)], folder)
    done = []
    found = TaskRun(model, captions, RandomShots(captions.support)).answers(
        [Setting(2, 0)], folder / "answers.jsonl", ABOUT, True, done.append)
    assert {answered.setting for answered in found} == {Setting(2, 0)}
    assert sum(done) == len(found)
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 1 + 8


@pytest.mark.parametrize(("spoil", "error", "said"), [
    (lambda text: text, UsageError, "go on with --resume"),
    (lambda text: text.replace("small", "other"), DataError, "another model: give the same"),
    (lambda text: text.replace('"answer"', '"anwser"', 1), DataError, "line 2, is no answer"),
    (lambda text: text.replace('"control": "none"', '"control": []', 1), DataError, "line 2, is no answer"),
    (lambda text: text.replace("{", "[", 2), DataError, "another model, task or options"),
    (lambda text: "", DataError, "another model, task or options"),
])
def test_another_file_is_refused(model, captions, folder, spoil, error, said) -> None:
    run(model, captions, [Setting(1, 0)], folder)
    file = folder / "answers.jsonl"
    file.write_text(spoil(file.read_text()))
    before = file.read_text()
    with pytest.raises(error, match=said):
        run(model, captions, [Setting(1, 0)], folder, resume=error is DataError)
    assert file.read_text() == before


def test_a_line_is_read_back_as_it_was() -> None:
    answered = Answered(Setting(4, 1, "text"), "näme", ("a", "b"), "two\nlines", {"x": -1.5})
    assert Answered.from_line(answered.line()) == answered
    assert "\n" not in answered.line()
    assert json.loads(answered.line())["chosen"] == ["a", "b"]
