"""Episodes: the rule of each is in its shots, and nowhere in what training has seen."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from flamingo_rt.training.scenes import Shot, sample_episode
from flamingo_rt.training.scenes.digits import HELD_OUT_DIGITS
from flamingo_rt.training.scenes.episodes import (
    MOST_SHOTS,
    PLACES,
    SHARES,
    Episode,
    named_pairs,
    sample_classes,
)
from flamingo_rt.training.scenes.glyphs import CLASSES, glyph_ink
from flamingo_rt.training.scenes.nonce_words import nonce_words
from flamingo_rt.training.scenes.scene_words import COLORS, NUMBERS, SHAPES

BINDING = ("color", "shape", "pair", "texture", "digit", "glyph", "count", "same")
TOLD = {  # what a class of each kind has in common, read off a scene
    "color": lambda scene: scene.objects[0].color, "shape": lambda scene: scene.objects[0].shape,
    "pair": lambda scene: (scene.objects[0].color, scene.objects[0].shape),
    "texture": lambda scene: scene.objects[0].texture, "digit": lambda scene: scene.objects[0].shape,
    "glyph": lambda scene: scene.ink, "count": lambda scene: len(scene.objects),
}


@pytest.fixture(scope="module")
def episodes() -> dict[str, list[Episode]]:
    """Training episodes by their kind."""
    rng, found = np.random.default_rng(0), {}
    for _ in range(800):
        episode = sample_episode(rng)
        found.setdefault(episode.kind, []).append(episode)
    return found


def test_every_kind_occurs_about_as_often_as_it_should(episodes) -> None:
    assert sum(SHARES.values()) == pytest.approx(1)
    for kind, share in SHARES.items():
        assert len(episodes[kind]) / 800 == pytest.approx(share, abs=0.05)


def test_an_episode_is_a_function_of_its_random_numbers() -> None:
    assert sample_episode(np.random.default_rng(7)) == sample_episode(np.random.default_rng(7))


@pytest.mark.parametrize("kind", [kind for kind in BINDING if kind != "same"])
def test_a_word_names_one_thing_throughout_an_episode_and_another_in_the_next(episodes, kind) -> None:
    words = Counter()
    for episode in episodes[kind]:
        named = {}
        for shot in episode.shots:
            assert named.setdefault(shot.answer, TOLD[kind](shot.scene)) == TOLD[kind](shot.scene)
        assert len(set(named.values())) == len(named)
        words.update(named.keys())
    assert len(words) > 0.75 * words.total(), "most words occur once"


def test_alike_is_alike_in_one_attribute(episodes) -> None:
    for episode in episodes["same"]:
        rules = []
        for attribute in ("color", "shape"):
            alike = [len({getattr(placed, attribute) for placed in shot.scene.objects}) == 1 for shot in episode.shots]
            pairs = set(zip(alike, (shot.answer for shot in episode.shots), strict=True))
            rules.append(len(pairs) == len({word for _, word in pairs}))
        assert any(rules)


@pytest.mark.parametrize("kind", BINDING)
def test_an_answer_is_known_once_its_word_was_shown(episodes, kind) -> None:
    for episode in episodes[kind]:
        assert len(episode.shots) <= MOST_SHOTS + 1
        seen = set()
        for shot in episode.shots:
            assert shot.known == (shot.answer in seen)
            seen.add(shot.answer)
        assert episode.shots[-1].known
        assert len({shot.question for shot in episode.shots}) == 1


def test_a_style_is_known_from_the_second_caption_on(episodes) -> None:
    for episode in episodes["style"]:
        assert [shot.known for shot in episode.shots] == [False] + [True] * (len(episode.shots) - 1)
    assert len({episode.shots[0].answer for episode in episodes["style"]}) > 10


def test_the_odd_one_is_the_only_one_without_what_the_others_share(episodes) -> None:
    for episode in episodes["odd"]:
        *shown, asked = episode.shots
        assert asked.known
        assert not any(shot.known for shot in shown)
        odd = PLACES.index(asked.answer)
        firsts = [shot.scene.objects[0] for shot in episode.shots]
        assert any(
            len({getattr(placed, attribute) for number, placed in enumerate(firsts) if number != odd}) == 1
            and getattr(firsts[odd], attribute) != getattr(firsts[odd - 1], attribute)
            for attribute in ("color", "shape")
        )


# What is held out


def test_the_splits_share_no_word_no_pair_no_character_and_no_digit() -> None:
    rng = np.random.default_rng(1)
    words = {split: set(nonce_words(rng, split, 600)) for split in ("train", "heldout")}
    assert not words["train"] & words["heldout"]
    pairs = {split: set(named_pairs(split)) for split in ("train", "heldout")}
    assert not pairs["train"] & pairs["heldout"]
    assert pairs["train"] | pairs["heldout"] == set(itertools.product(COLORS, SHAPES))
    assert 0.14 < len(pairs["heldout"]) / (len(COLORS) * len(SHAPES)) < 0.16
    assert {color for color, _ in pairs["train"]} == set(COLORS)
    assert {shape for _, shape in pairs["train"]} == set(SHAPES)
    assert not set(CLASSES["train"]) & set(CLASSES["heldout"])


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_classes_are_of_their_split(split) -> None:
    rng = np.random.default_rng(2)
    for _ in range(30):
        for make in sample_classes(rng, split, "pair", 4):
            placed = make(rng).objects[0]
            assert (placed.color, placed.shape) in named_pairs(split)
        for make in sample_classes(rng, split, "digit", 3):
            assert (NUMBERS.index(make(rng).objects[0].shape) in HELD_OUT_DIGITS) == (split == "heldout")
        for make in sample_classes(rng, split, "glyph", 3):
            assert make(rng).ink in CLASSES[split]


def test_half_of_the_pairs_need_both_the_color_and_the_shape() -> None:
    rng, near = np.random.default_rng(3), 0
    for _ in range(200):
        scenes = [make(rng).objects[0] for make in sample_classes(rng, "train", "pair", 4)]
        assert len({(placed.color, placed.shape) for placed in scenes}) == 4
        near += len({placed.color for placed in scenes}) < 4 or len({placed.shape for placed in scenes}) < 4
    assert near / 200 > 0.5


# Characters


def test_two_writings_of_a_character_are_more_alike_than_two_characters() -> None:
    rng = np.random.default_rng(4)
    inks = [[glyph_ink(number, rng).ravel() for _ in range(4)] for number in range(30)]
    own = np.mean([np.linalg.norm(one - other) for each in inks for one, other in itertools.combinations(each, 2)])
    others = np.mean([np.linalg.norm(one[0] - other[0]) for one, other in itertools.combinations(inks, 2)])
    assert own < 0.75 * others
    assert all(0.02 < ink.mean() < 0.6 for each in inks for ink in each)


def test_shots_are_plain_data() -> None:
    assert Shot.__dataclass_params__.frozen
