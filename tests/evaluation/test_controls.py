"""Controls take away what they say, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flamingo_rt.evaluation.controls import CONTROLS, Shot, blank_picture, controlled
from flamingo_rt.processing.visuals import Image

SHOTS = [Shot(Image(f"{number}.png"), f"question {number}", "abcab"[number]) for number in range(5)]


def test_no_control_leaves_the_shots_as_they_are() -> None:
    assert controlled(SHOTS, "none", 0) == SHOTS


def test_shuffled_pictures_are_the_same_pictures_in_any_order() -> None:
    for seed in range(5):
        found = controlled(SHOTS, "shuffled", seed)
        assert sorted(id(shot.visual) for shot in found) == sorted(id(shot.visual) for shot in SHOTS)
        assert [replace(shot, visual=None) for shot in found] == [replace(shot, visual=None) for shot in SHOTS]
    assert len({tuple(shot.visual.source for shot in controlled(SHOTS, "shuffled", seed)) for seed in range(20)}) > 15


def test_shuffled_pictures_tell_nothing_of_an_answer() -> None:
    """A model that follows its shots is right by chance: as often as there are shots of a class, not more rarely."""
    shots = [Shot(Image(f"{number}.png"), None, "abcd"[number % 4]) for number in range(8)]
    answer_of = {shot.visual: shot.answer for shot in shots}
    found = [shot for seed in range(1000) for shot in controlled(shots, "shuffled", seed)]
    right = sum(answer_of[shot.visual] == shot.answer for shot in found) / len(found)
    assert right == pytest.approx(0.25, abs=0.02)


def test_permuted_answers_are_all_wrong_in_one_way() -> None:
    for seed in range(5):
        found = controlled(SHOTS, "labels", seed)
        assert [replace(shot, answer="") for shot in found] == [replace(shot, answer="") for shot in SHOTS]
        pairs = {(before.answer, shot.answer) for shot, before in zip(found, SHOTS, strict=True)}
        assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs}) == 3
        assert all(old != new for old, new in pairs)


def test_one_answer_alone_has_no_other() -> None:
    same = [Shot(Image(f"{number}.png"), None, "a") for number in range(3)]
    assert controlled(same, "labels", 0) == same


def test_blank_pictures_are_grey_and_text_has_none() -> None:
    for shot, before in zip(controlled(SHOTS, "blank", 0), SHOTS, strict=True):
        assert np.unique(shot.visual.source).tolist() == [128]
        assert (shot.question, shot.answer) == (before.question, before.answer)
    assert {shot.visual for shot in controlled(SHOTS, "text", 0)} == {None}
    assert blank_picture().source.dtype == np.uint8


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("count", [0, 1])
def test_few_shots_are_no_special_case(control, count) -> None:
    assert [shot.answer for shot in controlled(SHOTS[:count], control, 0)] == [shot.answer for shot in SHOTS[:count]]
