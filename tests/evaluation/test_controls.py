"""Controls take away what they say, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from flamingo_rt.evaluation.controls import CONTROLS, Shot, blank_picture, controlled
from flamingo_rt.processing.visuals import Image

SHOTS = [Shot(Image(f"{number}.png"), f"question {number}", "abcab"[number]) for number in range(5)]


def test_no_control_leaves_the_shots_as_they_are() -> None:
    assert controlled(SHOTS, "none", 0) == SHOTS


def test_shuffled_pictures_go_to_shots_with_other_answers() -> None:
    for seed in range(5):
        found = controlled(SHOTS, "shuffled", seed)
        answer_of = {shot.visual: shot.answer for shot in SHOTS}
        assert sorted(id(shot.visual) for shot in found) == sorted(id(shot.visual) for shot in SHOTS)
        for shot, before in zip(found, SHOTS, strict=True):
            assert (shot.question, shot.answer) == (before.question, before.answer)
            assert answer_of[shot.visual] != shot.answer


def test_permuted_answers_are_all_wrong_while_no_answer_is_commoner_than_half() -> None:
    for seed in range(5):
        found = controlled(SHOTS, "labels", seed)
        assert sorted(shot.answer for shot in found) == sorted(shot.answer for shot in SHOTS)
        for shot, before in zip(found, SHOTS, strict=True):
            assert (shot.visual, shot.question) == (before.visual, before.question)
            assert shot.answer != before.answer


def test_of_a_common_answer_as_many_are_wrong_as_can_be() -> None:
    shots = [Shot(None, None, answer) for answer in ("a", "a", "a", "b")]
    found = controlled(shots, "labels", 0)
    assert sum(shot.answer != before.answer for shot, before in zip(found, shots, strict=True)) == 2
    same = [Shot(Image(f"{number}.png"), None, "a") for number in range(3)]
    assert all(one.visual is not other.visual for one, other in zip(controlled(same, "shuffled", 0), same, strict=True))


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
