"""The record of what the recipe with photographs measures, its prompts to calibrate with, and the page's picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import PIL.Image
import pytest

import flamingo_rt
from flamingo_rt.errors import DataError
from flamingo_rt.export.quantization.calibration import read_prompts
from recipes.photos import measure, prompts, sheet
from recipes.photos.answers import Answer
from recipes.photos.named_pictures import NamedPicture
from recipes.photos.photographs import Photograph
from recipes.photos.prompts import SHOTS, write_prompts
from recipes.photos.sheet import COLUMNS, Shown, draw


def made_picture(file: Path, size: tuple[int, int] = (20, 30), color: str = "red") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGBA", size, color).save(file)
    return file


def emoji(folder: Path, *names: str) -> list[NamedPicture]:
    return [NamedPicture(made_picture(folder / f"{name}.png"), name, "emoji") for name in names]


def test_every_second_prompt_names_pictures_by_new_words(tmp_path: Path) -> None:
    names = ("cat", "dog", "cup", "tree", "boat")
    file = write_prompts(emoji(tmp_path / "pictures", *names), tmp_path / "calibration", count=4)
    made = [json.loads(line) for line in file.read_text().splitlines()]
    said = [{part.removeprefix("Output: ").removesuffix("<|endofchunk|>") for part in prompt if isinstance(part, str)}
            for prompt in made]
    assert all(words <= set(names) for words in said[::2])
    assert not any(words & set(names) for words in said[1::2])
    assert all(len(prompt) == 2 * SHOTS for prompt in made)
    read = read_prompts(file)  # as the export reads them, pictures included
    assert len(read.calibrate) + len(read.measure) == 4
    assert all((file.parent / part["image"]).is_file() for part in made[0] if isinstance(part, dict))


def test_prompts_are_the_same_each_time(tmp_path: Path) -> None:
    pictures = emoji(tmp_path / "pictures", "cat", "dog", "cup", "tree")
    first, second = (write_prompts(pictures, tmp_path / name, count=3) for name in ("a", "b"))
    assert first.read_text() == second.read_text()
    assert (first.parent / "00-0.jpg").read_bytes() == (second.parent / "00-0.jpg").read_bytes()


def test_prompts_do_not_mirror_what_bears_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flips: dict[tuple[int, int], bool] = {}
    seen = prompts.view

    def view(picture: PIL.Image.Image, number: int, seed: list[int], flip: bool = True) -> PIL.Image.Image:
        flips[seed[1], seed[2]] = flip
        return seen(picture, number, seed, flip)

    monkeypatch.setattr(prompts, "view", view)
    file = write_prompts(emoji(tmp_path / "pictures", "cat", "stop sign", "book", "tree"), tmp_path / "calibration", 9)
    named = [json.loads(line) for line in file.read_text().splitlines()]
    for number in range(0, 9, 2):  # these name concepts by their own names
        for shot in range(SHOTS):
            said = named[number][2 * shot + 1]
            assert flips[number, shot] == ("cat" in said or "tree" in said)
    assert set(flips.values()) == {True, False}


def test_too_few_concepts_make_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 named pictures"):
        write_prompts(emoji(tmp_path / "pictures", "cat", "dog", "cup"), tmp_path / "calibration")
    assert not (tmp_path / "calibration").exists()


def test_the_pages_picture_shows_every_answer(tmp_path: Path) -> None:
    shown = [
        Shown(Answer(Photograph(made_picture(tmp_path / f"{number}.png", color=color), ("cat",)), text, right), "cat")
        for number, (color, text, right) in enumerate([("red", "a cat", True), ("blue", "", False),
                                                       ("green", "a very long answer that would not fit", False)] * 2)
    ]
    draw(shown, tmp_path / "sheet.png")
    with PIL.Image.open(tmp_path / "sheet.png") as page:
        assert page.width > 100 * COLUMNS
        assert page.format == "PNG"
        colors = {color for _, color in page.convert("RGB").getcolors(1 << 20) or ()}
    assert {(255, 0, 0), (0, 0, 255), (0, 128, 0)} <= colors


def test_a_concept_without_pictures_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "photographs", list)
    made_picture(tmp_path / "held-out/emoji/cat/emoji-0-0.png")
    with pytest.raises(DataError, match=r'no pictures of "lion".*recipes\.photos\.pictures'):
        sheet.pictures_shown(cast(flamingo_rt.Model, None), tmp_path)


def score(shots: int, mean: float) -> dict[str, Any]:
    return {"shots": shots, "control": "none", "mean": mean, "low": mean, "high": mean}


def test_a_record_holds_every_part_of_every_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    asked: list[tuple[str, ...]] = []

    def evaluated(bundle: str, *arguments: str) -> dict[str, Any]:
        asked.append((bundle, *arguments))
        metric = "cider" if "captions" in arguments[1] else "exact" if "exact" in arguments[1] else "accuracy"
        return {"metric": metric, "scores": [score(4, 12.0 if metric == "cider" else 0.5)]}

    def module(name: str, *arguments: str) -> str:
        asked.append((name, *arguments))
        answer = {"right": 12, "count": 23, "interval": [0.3, 0.7], "best_constant": {"answer": "animal", "right": 8}}
        answer = answer if "answers" in name else {"stamps-words": {}}
        return "a warning\n" + json.dumps(answer) + "\n"

    monkeypatch.setattr(measure, "evaluated", evaluated)
    monkeypatch.setattr(measure, "module", module)
    monkeypatch.setattr("sys.argv", ["measure", "--model", "fp32=a", "--model", "int4=b", "--results", str(tmp_path),
                                     "--seeds", "2"])
    measure.main()
    record = json.loads(next(tmp_path.glob("*photos-fp32-int4.json")).read_text())
    tasks = {"stamps-words", "emoji-words", "styles-words"}
    assert {*tasks, *(f"{name}, controls" for name in tasks), "stamps-captions", "stamps-exact",
            "photographs, 0 shots", "photographs, 4 shots, draw 0", "photographs, 4 shots, draw 1"} == set(
        record["fp32"]) == set(record["int4"])
    assert "nearest neighbours" in record
    output = capsys.readouterr().out
    assert "stamps-captions, 4 shots, none: 12.0" in output
    assert "stamps-words, 4 shots, none: 50.0" in output
    assert "photographs, 4 shots, draw 1: 12 of 23 [0.3, 0.7], 8 by one answer for all" in output
    controlled = [words for words in asked if words[0] == "a" and words[words.index("--shots") + 1] == "20"]
    assert [("--controls" in words) for words in controlled] == [True] * 3


def test_an_unknown_part_is_refused(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["measure", "--model", "fp32=a", "--parts", "words,nothing"])
    with pytest.raises(SystemExit):
        measure.main()
    assert "--parts nothing: known are words, captions, photographs" in capsys.readouterr().err
