"""Answers about photographs: which are right, how sure a share is, and a model that is asked."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import pytest
from made_photos import write_class_folder

import flamingo_rt
from flamingo_rt.errors import DataError
from recipes.photos.answers import answers, best_constant, record, table, training_shots
from recipes.photos.held_out import singular
from recipes.photos.judging import is_right, named_in, wilson
from recipes.photos.packages import PHOTOGRAPHS, SAMPLE_PHOTOGRAPHS
from recipes.photos.photographs import ACCEPTED, Photograph, photographs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("answer", "name"), {
    "dog": "dog", "A picture of a brown dog.": "dog", "dogs in a park": "dog", "two geese": "goose",
    "hot dog": "hot dog", "a cup of coffee on a table": "cup of coffee", "This is a cat, and a dog": "cat", "": "",
    "the": "the", "an orange": "orange", "a photo of strawberries": "strawberry",
}.items())
def test_the_noun_phrase_of_an_answer(answer: str, name: str) -> None:
    assert named_in(answer) == name


def test_only_an_accepted_name_is_right() -> None:
    accepted = ("dog", "cup", "bird of prey")
    right = ("dog", "a black dog", "Dogs.", "cup of dog", "bird of prey", "there is a dog", "a pair of cups", '"dog"')
    wrong = ("hot dog", "doghouse", "cat", "", "bird", "cat and dog", "cup of tea", "house of dog", "golden dog")
    assert all(is_right(answer, accepted) for answer in right)
    assert not any(is_right(answer, accepted) for answer in wrong)


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_listed_name_is_right_with_and_without_article(name: str) -> None:
    for noun in ACCEPTED[name].split(", "):
        assert is_right(noun, ACCEPTED[name].split(", ")), noun
        assert is_right(f"A picture of a {noun}.", ACCEPTED[name].split(", ")), noun
        assert singular(noun.split()[-1]) == noun.split()[-1] or noun in ("stained glass",), noun


def test_no_name_is_too_broad_to_tell() -> None:
    listed = [set(names.split(", ")) for names in ACCEPTED.values()]
    assert len(listed) == 23
    assert not {"object", "thing", "plant", "picture", "organism"} & set().union(*listed)
    counts = {name: sum(name in names for names in listed) for names in listed for name in names}
    assert max(counts.values()) == counts["animal"] == 8


@pytest.mark.parametrize(("right", "count", "low", "high"), [
    (0, 23, 0.0, 0.1431), (23, 23, 0.8569, 1.0), (10, 20, 0.2993, 0.7007), (1, 10, 0.0179, 0.4042),
])
def test_wilsons_interval(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right, count) == pytest.approx((low, high), abs=5e-5)


def test_photographs_are_found_or_the_missing_one_is_named(tmp_path: Path) -> None:
    for name in ACCEPTED:
        package = PHOTOGRAPHS if name.startswith("imagenet") else SAMPLE_PHOTOGRAPHS
        (tmp_path / package.name).mkdir(exist_ok=True)
        (tmp_path / package.name / name).write_bytes(b"")
    found = photographs(tmp_path)
    assert [each.file.name for each in found] == list(ACCEPTED)
    assert found[-1].accepted[0] == "rocket"
    found[3].file.unlink()
    with pytest.raises(DataError, match="imagenet_03_990"):
        photographs(tmp_path)


def test_a_model_is_asked_after_training_pictures(tmp_path: Path) -> None:
    write_class_folder(tmp_path / "train/red_apple", "emoji", 1, 2)
    shots = training_shots(tmp_path, 1, 0)
    assert shots == [(tmp_path / "train/red_apple/emoji-0-0.jpg", "red apple")]
    assert training_shots(tmp_path, 0, 0) == []
    PIL.Image.open(ROOT / "examples" / "scene.png").save(tmp_path / "scene.png")
    asked = [Photograph(tmp_path / "scene.png", ("blue triangle",)), Photograph(tmp_path / "scene.png", ("cross",))]
    model = flamingo_rt.load()
    rows = answers(model, asked)
    assert [row.text for row in rows] == [rows[0].text] * 2
    assert rows[0].text.startswith("a blue triangle")
    assert [len(answers(model, asked, shots))] == [2]
    said = table(rows)
    assert "of 2 right" in said
    assert "'cross' each time would get 1" in said
    assert record(rows, "tiny", 0, 0)["count"] == 2


def test_the_best_answer_without_looking_is_found() -> None:
    animals = [Photograph(Path("a"), ("cat", "pet", "animal")), Photograph(Path("b"), ("eagle", "animal"))]
    assert best_constant([*animals, Photograph(Path("c"), ("cat",))]) == ("cat", 2)
    assert best_constant(animals) == ("animal", 2)
