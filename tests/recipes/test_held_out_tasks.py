"""Tasks on held-out concepts, and the nearest neighbours they are compared with."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from made_photos import write_class_folder

from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.evaluation.task_file import read_task
from recipes.photos import encoder, nearest
from recipes.photos.nearest import accuracies, encoded, nearest_class, whole_task
from recipes.photos.tasks import CONCEPTS, concepts_across, concepts_in, with_article, with_head_noun, write_tasks

GROUPS = 4
STAMPS = ("big_lettuce", "lettuce", "toucan", "neptune", "lion", "onion", "giraffe")  # two with one head noun


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe") / "pictures"
    for number, name in enumerate(STAMPS):
        write_class_folder(folder / "held-out/stamps" / name, "stamps", 2 if name == "lion" else 1, 8, number)
        write_class_folder(folder / "held-out/emoji" / name, "emoji", 1, 8, 100 + number)
        write_class_folder(folder / "held-out/clipart" / f"{name}s", "clipart", 1, 8, 50 + number)
    write_class_folder(folder / "train/red_apple", "stamps", 1, 6, 200)
    write_class_folder(folder / "train/red_apple", "emoji", 1, 6, 201)
    write_class_folder(folder / "train/cat", "emoji", 1, 6, 202)
    return folder


@pytest.fixture(scope="module")
def tasks(pictures: Path) -> dict[str, Task]:
    written = write_tasks(pictures, pictures.parent / "tasks", groups=GROUPS)
    return {name: read_task(file) for name, file in written.items()}


@pytest.mark.parametrize("name", ["stamps-words", "emoji-words", "styles-words"])
def test_a_group_asks_once_about_five_concepts_with_words_of_its_own(tasks: dict[str, Task], name: str) -> None:
    task = tasks[name]
    assert len(task.items) == GROUPS * CONCEPTS
    assert not task.missing
    for group in task.groups:
        items = [item for item in task.items if item.group == group]
        folders = {folder(item) for item in items}
        assert len({item.answer for item in items}) == len(folders) == CONCEPTS
        assert not {"big_lettuce", "lettuce"} <= {name.removesuffix("s") for name in folders}  # one head noun
        support = task.support_of(group)
        assert {item.answer for item in support} == {item.answer for item in items}
        assert all(sum(item.answer == word for item in support) >= 4 for word in task.group_classes[group])


def folder(item: Item) -> str:
    assert item.file is not None
    return item.file.parent.name


def test_a_word_stands_for_the_same_concept_in_query_and_support(tasks: dict[str, Task]) -> None:
    for item in tasks["stamps-words"].items:
        support = tasks["stamps-words"].support_of(item.group)
        assert {folder(shot) for shot in support if shot.answer == item.answer} == {folder(item)}


def test_no_query_is_in_its_support_and_other_pictures_go_before_other_views(tasks: dict[str, Task]) -> None:
    for item in tasks["stamps-words"].items:
        shots = [shot.file for shot in tasks["stamps-words"].support_of(item.group) if shot.answer == item.answer]
        assert item.file is not None
        assert item.file not in shots
        if folder(item) == "lion":
            assert all(file is not None and file.stem.split("-")[1] != item.file.stem.split("-")[1] for file in shots)


def test_shots_across_styles_are_of_other_sources(tasks: dict[str, Task]) -> None:
    for item in tasks["styles-words"].items:
        shots = [shot for shot in tasks["styles-words"].support_of(item.group) if shot.answer == item.answer]
        assert item.file is not None
        assert {shot.file.stem.split("-")[0] for shot in shots if shot.file} <= (
            {"stamps", "emoji", "clipart"} - {item.file.stem.split("-")[0]})


def test_concepts_across_sources_are_one_by_their_singular(pictures: Path) -> None:
    across = {concept.name: len(concept.views) for concept in concepts_across(pictures)}
    assert across["lettuce"] == 3
    assert across["lion"] == 4
    assert "lettuces" not in across


def test_captions_are_asked_of_held_out_stamps_after_trained_ones(tasks: dict[str, Task]) -> None:
    for name, metric in (("stamps-captions", "cider"), ("stamps-exact", "exact")):
        assert tasks[name].metric == metric
        assert len(tasks[name].items) == len(STAMPS) + 1  # lion has two pictures
        assert [item.answers for item in tasks[name].support] == [("red apple",)]
    exact = {folder(item): item.answers for item in tasks["stamps-exact"].items}
    assert exact["big_lettuce"] == ("big lettuce", "a big lettuce", "lettuce", "a lettuce")


def test_articles() -> None:
    assert with_article("onion") == ["onion", "an onion"]
    assert with_head_noun("cow") == ["cow", "a cow"]


def test_the_same_pictures_give_the_same_tasks(pictures: Path, tmp_path: Path) -> None:
    def content() -> list[bytes]:
        write_tasks(pictures, pictures.parent / "again", groups=2)
        return [file.read_bytes() for file in sorted((pictures.parent / "again").iterdir())]

    assert content() == content()


def test_missing_pictures_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"recipes\.photos\.pictures"):
        concepts_in(tmp_path, "train")
    with pytest.raises(DataError):
        write_tasks(tmp_path, tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()


def test_too_few_head_nouns_are_told(tmp_path: Path) -> None:
    for source in ("stamps", "emoji", "clipart"):
        write_class_folder(tmp_path / "pictures/held-out" / source / "lettuce", source, 1, 8)
    with pytest.raises(DataError, match="1 held-out head nouns"):
        write_tasks(tmp_path / "pictures", tmp_path / "tasks")


def made_item(name: str, word: str) -> Item:
    return Item(name, Path(name), None, (word,))


def test_the_nearest_class_is_that_of_the_nearest_mean_by_the_cosine() -> None:
    features = {Path("q"): np.array([1.0, 0.2]), Path("a"): np.array([9.0, 9.0]), Path("b"): np.array([0.1, 0.0]),
                Path("c"): np.array([0.0, 5.0]), Path("d"): np.array([3.0, 0.0])}
    shots = [made_item("a", "x"), made_item("b", "y")]
    assert nearest_class(made_item("q", "?"), shots, features) == "y"
    shots = [made_item("b", "y"), made_item("c", "y"), made_item("a", "x"), made_item("d", "x")]
    assert nearest_class(made_item("q", "?"), shots, features) == "x"


def test_accuracies_of_telling_features_and_of_equal_ones(tasks: dict[str, Task]) -> None:
    task = tasks["stamps-words"]
    everything = [*task.items, *task.support]
    names = sorted({folder(item) for item in everything})
    telling = {item.file: np.eye(len(names))[names.index(folder(item))] for item in everything if item.file}
    assert {count: found.mean for count, found in accuracies(task, telling, (5, 10), 2).items()} == {5: 1.0, 10: 1.0}
    equal = dict.fromkeys(telling, np.ones(2))
    assert 0 <= accuracies(task, equal, (5,), 1)[5].mean < 1


def test_mean_features_are_those_of_each_file(pictures: Path) -> None:
    files = sorted((pictures / "held-out/stamps/lettuce").glob("*.jpg"))
    calls: list[int] = []

    def encode(pixels: np.ndarray) -> np.ndarray:
        calls.append(len(pixels))
        means = pixels.mean((2, 3))
        return np.stack([means, 3 * means], 1)  # two features

    found = encoded([*files, *files], encode)
    assert sum(calls) == len(files)
    for file in files:
        np.testing.assert_allclose(found[file], encoded([file], encode)[file])


def test_a_picture_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read.*recipes\.photos\.pictures"):
        encoded([tmp_path / "gone.jpg"], lambda pixels: pixels)


def test_pictures_with_one_checksum_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zlib, "crc32", lambda *content: 0)  # as of two files that collide
    end = bytes(64)  # which the files have in common
    files = [tmp_path / "a.bmp", tmp_path / "b.bmp"]
    for file, color in zip(files, ("red", "blue"), strict=True):
        PIL.Image.new("RGB", (8, 8), color).save(file)
        file.write_bytes(file.read_bytes() + end)
    found = encoded(files, lambda pixels: pixels.mean((2, 3))[:, None])
    assert not np.allclose(found[files[0]], found[files[1]])


def test_a_task_that_lacks_pictures_has_no_neighbours(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = next(iter(write_tasks(pictures, pictures.parent / "lacking", groups=GROUPS).values()))
    task = whole_task(file)
    monkeypatch.setattr(nearest, "read_task", lambda file: replace(task, missing=("a.jpg: not there", "b.jpg")))
    with pytest.raises(DataError, match=r"2 of its pictures are missing, the first is a\.jpg: not there"):
        whole_task(file)


@pytest.mark.parametrize(("options", "names"), [
    (["--task", "emoji-words"], ["emoji-words"]),
    (["--task", "emoji-words", "--task", "stamps-words", "--task", "emoji-words"], ["emoji-words", "stamps-words"]),
    (["--task", "styles-words", "emoji-words"], ["styles-words", "emoji-words"]),
    ([], ["stamps-words", "emoji-words", "styles-words"]),
])
def test_tasks_may_be_named_several_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], names: list[str]
) -> None:
    asked = []
    monkeypatch.setattr(encoder, "fetched_encoder", lambda: None)
    empty = Task("", "classes", "accuracy", (), ())
    monkeypatch.setattr(nearest, "whole_task", lambda file: asked.append(file.stem) or empty)
    monkeypatch.setattr(nearest, "accuracies", lambda *given: {})
    monkeypatch.setattr("sys.argv", ["nearest", "--json", *options])
    assert nearest.main() == 0
    assert asked == names == list(json.loads(capsys.readouterr().out))
