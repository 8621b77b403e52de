"""Names of concepts: from captions, labels and file names, and which of them are held out."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import pytest

from flamingo_rt.errors import DataError
from recipes.photos.held_out import head_noun, side_of, singular
from recipes.photos.named_pictures import (
    clip_art_pictures,
    emoji_pictures,
    name_of_caption,
    name_of_file,
    name_of_label,
    stamp_pictures,
)

HEADS = {
    "apple": "apple", "red apples": "apple", "hat with a feather": "hat", "glass of water": "glass",
    "man lifting weights": "man", "women wrestling": "woman", "tennis ball": "ball", "box with books": "box",
    "gloves": "glove", "cactus": "cactus", "man": "man", "face with tongue": "face",
}


@pytest.mark.parametrize(("name", "head"), HEADS.items())
def test_the_head_noun_is_what_a_name_is_about(name: str, head: str) -> None:
    assert head_noun(name) == head


@pytest.mark.parametrize(("plural", "noun"), {
    "cherries": "cherry", "foxes": "fox", "dishes": "dish", "tomatoes": "tomato", "geese": "goose", "dogs": "dog",
    "glass": "glass", "iris": "iris", "octopus": "octopus", "houses": "house", "bus": "bus",
}.items())
def test_singulars(plural: str, noun: str) -> None:
    assert singular(plural) == noun
    assert singular(noun) == noun


def test_a_noun_is_held_out_in_whatever_words_it_stands() -> None:
    for noun in ("duck", "apple", "guitar", "teapot", "dog", "rocket"):
        names = (noun, f"red {noun}", f"{noun}s", f"{noun} with hat", f"very old {noun}")
        assert len({side_of(name) for name in names}) == 1


def test_sides_are_the_same_everywhere_and_one_in_seven_is_held_out() -> None:
    assert (side_of("duck"), side_of("apple"), side_of("cat")) == ("held-out", "train", "train")
    held_out = sum(side_of(f"word{number}x") == "held-out" for number in range(7000))
    assert 900 < held_out < 1100


@pytest.mark.parametrize(("caption", "name"), {
    "A tabby cat.": "tabby cat", "An owl.": "owl", "A “Fuji” apple.": "fuji apple", "A pair of open scissors.":
    "open scissors", "A ripe, red tomato!": "ripe red tomato", "Hibiscus": "hibiscus", "A glass of water.":
    "glass of water", "A walnut in its shell.": "walnut", "Jupiter—the largest planet in our solar system!": "jupiter",
    "A knight\u2019s helmet.": "knight's helmet", "A stethoscope lets your doctor listen.": "stethoscope",
    "Remember to flush the toilet!": None, "": None, "A Canadian 1 cent piece ($.01) called a penny.": None,
    "Which way will you go?": None,
}.items())
def test_captions_are_reduced_to_noun_phrases(caption: str, name: str | None) -> None:
    assert name_of_caption(caption) == name


@pytest.mark.parametrize(("label", "subgroup", "name"), [
    ("dog face", "animal-mammal", "dog"), ("angry face", "face-negative", "angry face"),
    ("flag: Chile", "country-flag", None), ("keycap: 1", "keycap", None), ("one o\u2019clock", "time", None),
    ("alarm clock", "time", "alarm clock"), ("man: beard", "person", None), ("left speech bubble", "emotion", None),
    ("piñata", "game", "pinata"), ("smiling face with open eyes and hands", "face-hand", None),
    ("person biking", "person-sport", None), ("man biking", "person-sport", "man biking"),
])
def test_labels_of_things_are_kept(label: str, subgroup: str, name: str | None) -> None:
    assert name_of_label(label, subgroup) == name


@pytest.mark.parametrize(("stem", "name"), {
    "happy_monkey_benji_park_01": "happy monkey", "gatto_cat_architetto_fra_02": "cat", "a_simple_pig_01": "pig",
    "dog_02_drawn_with_strai_01": "dog", "muffin2_bw": "muffin", "shaezy_peterm_": None, "red_nicu_buculei": None,
    "pie_apple_bw": "apple pie", "stack_of_books": "books",
}.items())
def test_file_names_give_known_words_alone(stem: str, name: str | None) -> None:
    assert name_of_file(stem) == name


def test_sources_are_read_in_order_without_what_has_no_name(tmp_path: Path) -> None:
    for path in ("stamps/b.png", "stamps/a.png", "stamps/none.png", "stamps/symbols/math/1.png", "art/cow_01.png",
                 "art/zzz.png", "emoji/1f404.png", "emoji/2618-fe0f.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (2, 2)).save(tmp_path / path)
    for name, caption in {"a": "A cow.\nde=Eine Kuh.", "b": "An owl.", "symbols/math/1": "A one."}.items():
        (tmp_path / "stamps" / f"{name}.txt").write_text(caption, encoding="utf-8")
    labels = [{"label": "cow", "hexcode": "1F404", "subgroup": 0},
              {"label": "shamrock", "hexcode": "2618", "subgroup": 0},
              {"label": "ox", "hexcode": "1F402", "subgroup": 0}, {"label": "no group", "hexcode": "1F404"}]
    (tmp_path / "emoji" / "data.json").write_text(json.dumps(labels), encoding="utf-8")
    (tmp_path / "emoji" / "messages.json").write_text(
        json.dumps({"subgroups": [{"order": 0, "key": "animal-mammal"}]}), encoding="utf-8")
    assert [each.name for each in stamp_pictures(tmp_path / "stamps")] == ["cow", "owl"]
    assert [each.name for each in clip_art_pictures(tmp_path / "art")] == ["cow"]
    assert [each.name for each in emoji_pictures(tmp_path / "emoji", tmp_path / "emoji")] == ["cow", "shamrock"]


def test_labels_of_another_form_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "messages.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        list(emoji_pictures(tmp_path, tmp_path))
