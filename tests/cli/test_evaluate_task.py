"""``flamingo-rt evaluate task``: what it writes and prints, and what it refuses before any work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 180, 30)}


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of nine pictures in three classes, each with shots from the others."""
    lines = []
    for number in range(9):
        name = list(COLORS)[number % 3]
        picture = np.full((24, 24, 3), COLORS[name], dtype=np.uint8)
        picture[:number] = 255
        PIL.Image.fromarray(picture).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "class": name}))
    (tmp_path / "items.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "colors.toml").write_text('kind = "classes"\nitems = "items.jsonl"\nsupport = "items.jsonl"\n')
    return tmp_path / "colors.toml"


@pytest.fixture
def evaluate(run, bundle, task, tmp_path):
    """`flamingo-rt evaluate task` on the task and the small bundle."""
    return lambda *arguments, out="out": run("evaluate", "task", task, "--model", bundle, "--threads", 1, "--orders", 2,
                                             "--out", tmp_path / out, *arguments)


def test_scores_page_and_answers_are_written(evaluate, tmp_path) -> None:
    outcome = evaluate("--shots", "0,2", "--controls", "blank,text", "--seeds", 2, "--json")
    assert outcome.code == 0
    record = json.loads(outcome.out)
    assert record == json.loads((tmp_path / "out/scores.json").read_text())
    assert (record["task"], record["items"], record["support"], record["left_out"]) == ("colors", 9, 9, [])
    assert record["chance"] == pytest.approx(1 / 3, abs=1e-6)
    assert [(score["shots"], score["control"], len(score["seeds"])) for score in record["scores"]] == [
        (0, "none", 2), (2, "none", 2), (2, "blank", 2), (2, "text", 2)]
    answers = (tmp_path / "out/answers.jsonl").read_text().splitlines()
    assert len(answers) == 1 + 9 * 8
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<figure>") >= 2
    assert page.endswith("</html>\n")


def test_the_table_names_each_control_and_chance(evaluate) -> None:
    outcome = evaluate("--shots", 2, "--controls", "shuffled,labels")
    assert outcome.code == 0
    for words in ("as they are", "pictures shuffled", "answers permuted", "chance: 33.3%", "colors: accuracy of"):
        assert words in outcome.out


@pytest.mark.parametrize("name", ["index.html", "scores.json"])
def test_a_file_that_no_run_wrote_is_not_replaced(evaluate, tmp_path, name) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    refused = evaluate("--shots", 1)
    assert (refused.code, f"{name} is there without answers.jsonl" in refused.err) == (2, True)
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_second_run_is_refused_or_goes_on_and_gives_the_same(evaluate, tmp_path) -> None:
    assert evaluate("--shots", 1).code == 0
    first = (tmp_path / "out/scores.json").read_text()
    refused = evaluate("--shots", 1)
    assert (refused.code, "go on with --resume" in refused.err) == (2, True)
    assert evaluate("--shots", 1, "--resume").code == 0
    assert (tmp_path / "out/scores.json").read_text() == first
    other = evaluate("--shots", 1, "--resume", "--select", "balanced")
    assert (other.code, "is of a run with --select random, not balanced: give the same" in other.err) == (1, True)


def test_an_output_that_cannot_be_written_or_read_is_told(evaluate, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("x")
    for out in ("file", "file/below"):
        with monkeypatch.context() as patch:
            patch.setattr("flamingo_rt.evaluation.usable_items.decode_visual", lambda *a: pytest.fail("decoded"))
            outcome = evaluate("--shots", 1, out=out)
        assert (outcome.code, str(tmp_path / "file") in outcome.err) == (1, True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/answers.jsonl").write_bytes(b"\xff\xfe")
    outcome = evaluate("--shots", 1, "--resume")
    assert (outcome.code, "answers.jsonl" in outcome.err) == (1, True)


def test_nearest_pictures_are_found_by_features_that_are_kept(evaluate, tmp_path) -> None:
    index = tmp_path / "features.npz"
    assert evaluate("--shots", 1, "--select", "rices", "--index", index).code == 0
    lines = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()[1:]]
    assert len({line["chosen"][0] for line in lines}) > 3, "each query has shots of its own"
    before = index.read_bytes()
    assert evaluate("--shots", 1, "--select", "rices", "--index", index, out="again").code == 0
    assert index.read_bytes() == before


def test_balanced_shots_have_each_class(evaluate, tmp_path) -> None:
    assert evaluate("--shots", 3, "--select", "balanced").code == 0
    for line in map(json.loads, (tmp_path / "out/answers.jsonl").read_text().splitlines()[1:]):
        places = [int(name.rpartition(":")[2]) - 1 for name in (*line["chosen"], line["item"])]
        if line["item"] not in _shots_of_the_others(line, tmp_path):  # the first three are one of each class
            assert sorted(place % 3 for place in places[:-1]) == [0, 1, 2]


def _shots_of_the_others(line: dict, folder: Path) -> set[str]:
    lines = [json.loads(text) for text in (folder / "out/answers.jsonl").read_text().splitlines()[1:]]
    return {name for other in lines if other["item"] != line["item"] for name in other["chosen"]}


def test_pictures_that_cannot_be_read_are_named_and_left_out(evaluate, tmp_path) -> None:
    (tmp_path / "4.png").write_bytes(b"no picture")
    (tmp_path / "5.png").unlink()
    outcome = evaluate("--shots", 1, "--json")
    assert outcome.code == 0
    assert "4.png" in outcome.err
    assert "5.png" in outcome.err
    record = json.loads(outcome.out)
    assert (record["items"], len(record["left_out"])) == (7, 2)


def test_most_items_must_be_readable(evaluate, tmp_path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    outcome = evaluate("--shots", 1)
    assert (outcome.code, "6 of 9 items of colors cannot be read" in outcome.err) == (1, True)
    assert not (tmp_path / "out").exists()


def test_the_first_items_alone_can_be_asked_about(evaluate) -> None:
    assert json.loads(evaluate("--shots", 1, "--items", 2, "--json").out)["items"] == 2


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["--shots", "9"], 1, "9 shots are asked for, and the support has 8 items beside the query"),
    (["--shots", "many"], 2, "'many' is not a list of integers"),
    (["--shots", "-1"], 2, "-1 is not from 0 to 1000"),
    (["--controls", "blanks"], 2, "'blanks' is unknown; known: shuffled, blank, text, labels"),
    (["--controls", "none"], 2, "'none' is unknown"),
    (["--index", "x.npz"], 2, "an index keeps the features that rices compares"),
    (["--select", "rices", "--redraw"], 2, "leave redraw out"),
    (["--select", "rices", "--index", "/"], 2, "/ already exists and is a folder: choose another --index"),
    (["--select", "nearest"], 2, "rices"),
])
def test_what_cannot_be_run_is_refused(evaluate, tmp_path, arguments, code, said) -> None:
    outcome = evaluate(*arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert not (tmp_path / "out/scores.json").exists()


def test_a_task_with_an_unknown_key_is_refused(evaluate, task) -> None:
    task.write_text(task.read_text() + "metrics = 3\n")
    outcome = evaluate("--shots", 1)
    assert outcome.code == 2
    assert "did you mean metric" in outcome.err


def test_more_shots_than_the_context_are_refused_by_the_model(evaluate) -> None:
    outcome = evaluate("--shots", 7, "--select", "random")
    assert outcome.code == 1
    assert "this model allows 6" in outcome.err


def test_an_interrupt_says_where_the_answers_are(evaluate, monkeypatch) -> None:
    def interrupt(*arguments, **more) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flamingo_rt.runtime.model.Model.score", interrupt)
    outcome = evaluate("--shots", 1)
    assert (outcome.code, "nothing was answered" in outcome.err) == (130, True)
    monkeypatch.setattr("flamingo_rt.evaluation.usable_items.decode_visual", interrupt)
    outcome = evaluate("--shots", 1, out="before")
    assert (outcome.code, "nothing was answered" in outcome.err) == (130, True)
    monkeypatch.undo()
    monkeypatch.setattr("flamingo_rt.evaluation.task_scores.task_scores", interrupt)
    outcome = evaluate("--shots", 1, out="after")
    assert (outcome.code, "go on with --resume" in outcome.err) == (130, True)


def test_a_run_that_answered_nothing_is_begun_anew_with_any_options(evaluate, monkeypatch) -> None:
    def interrupt(*arguments, **more) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("flamingo_rt.runtime.model.Model.score", interrupt)
        assert evaluate("--shots", 1).code == 130
    assert evaluate("--shots", 1, "--orders", 3).code == 0
    assert evaluate("--shots", 1, "--orders", 3).code == 2


def test_a_folder_in_the_place_of_a_task_is_told(run, task, tmp_path) -> None:
    outcome = run("evaluate", "task", tmp_path, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert f"{tmp_path} is a folder: give a .toml file; in it is colors.toml" in outcome.err


def test_prompts_that_lack_a_class_get_a_hint(evaluate, tmp_path) -> None:
    outcome = evaluate("--shots", "2,3", "--seeds", 4, "--controls", "blank")
    lines = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()[1:]]
    shots = [{int(name.rpartition(":")[2]) % 3 for name in line["chosen"]} for line in lines
             if line["shots"] == 3 and line["control"] == "none"]  # two shots cannot have three classes
    lacking = sum(len(classes) < 3 for classes in shots)
    assert 0 < lacking < 36
    assert f"hint: in {lacking} of 36 prompts a class is not among the shots" in outcome.err
    assert "hint" not in evaluate("--shots", 3, "--select", "balanced", "--items", 1, out="balanced").err


def test_what_does_not_fit_ends_before_anything_is_asked(evaluate, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.runtime.model.Model.score", lambda *arguments, **more: pytest.fail("asked"))
    outcome = evaluate("--shots", "0,1,9")
    assert (outcome.code, "9 shots are asked for" in outcome.err) == (1, True)
    assert not (tmp_path / "out").exists()


def test_nothing_is_encoded_for_shots_that_are_not_there_or_another_run(evaluate, tmp_path, monkeypatch) -> None:
    assert evaluate("--shots", 1, "--select", "rices").code == 0
    monkeypatch.setattr("flamingo_rt.evaluation.feature_index.encode_frames", lambda *a: pytest.fail("encoded"))
    assert "9 shots are asked for" in evaluate("--shots", 9, "--select", "rices", out="other").err
    outcome = evaluate("--shots", 1, "--select", "rices", "--orders", 3, "--resume")
    assert (outcome.code, "is of a run with --orders 2, not 3: give" in outcome.err) == (1, True)


def test_an_earlier_run_is_refused_before_pictures_are_read(evaluate, monkeypatch) -> None:
    assert evaluate("--shots", 1).code == 0
    monkeypatch.setattr("flamingo_rt.evaluation.usable_items.decode_visual", lambda *a: pytest.fail("decoded"))
    assert evaluate("--shots", 1).code == 2


def test_other_pictures_of_the_same_names_are_another_task(evaluate, tmp_path) -> None:
    assert evaluate("--shots", 1).code == 0
    (tmp_path / "3.png").write_bytes((tmp_path / "4.png").read_bytes())
    outcome = evaluate("--shots", 1, "--resume")
    assert (outcome.code, "is of a run with another task: its keys, its items" in outcome.err) == (1, True)


@pytest.mark.parametrize("select", ["random", "balanced", "rices"])
def test_a_group_whose_support_cannot_be_read_is_told(run, bundle, task, tmp_path, select) -> None:
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    pools = {"items": items[:6], "support": [*items[6:], {"image": "gone.png", "class": "red", "group": "g"}]}
    pools["items"][0]["group"] = "g"
    (tmp_path / "gone.png").write_bytes(b"no picture")
    for name, pool in pools.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, pool)) + "\n")
    task.write_text('kind = "classes"\nitems = "items.jsonl"\nsupport = "support.jsonl"\n')
    outcome = run("evaluate", "task", task, "--model", bundle, "--threads", 1, "--out", tmp_path / "out",
                  "--shots", 1, "--select", select)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert "support" in outcome.err


def test_many_items_that_are_left_out_are_counted(evaluate, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.cli.evaluate_task.MOST_NAMED", 1)
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    outcome = evaluate("--shots", 1)
    assert outcome.err.count("left out: ") == 2
    assert "left out: 2 more, 3 in all" in outcome.err
    assert "left out: 3" in outcome.out
    assert "3 left out" in (tmp_path / "out/index.html").read_text()
