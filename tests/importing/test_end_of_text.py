"""The end of a text, where a language model's configuration names one token, several or none."""

from pathlib import Path

import pytest

from flamingo_rt.errors import DataError
from flamingo_rt.importing.openflamingo import _end_of_text
from flamingo_rt.importing.settings import Settings


def end_of_text(value):
    return _end_of_text(Settings(Path("config.json"), {"eos_token_id": value}))


@pytest.mark.parametrize(("value", "expected"), [(2, 2), (None, None), (-1, None), (True, None), ([7], 7), ([7, 7], 7)])
def test_one_token_needs_no_note(value, expected):
    assert end_of_text(value) == (expected, ())


def test_of_several_the_first_is_taken_and_said():
    number, (note,) = end_of_text([128001, 128009])
    assert number == 128001
    assert "names 2 tokens" in note and "end at 128001 alone" in note


@pytest.mark.parametrize("value", [[], ["2"], [2, None], [[2]], [-1, 2]])
def test_a_list_of_anything_else_is_refused(value):
    with pytest.raises(DataError, match="config.json: eos_token_id is"):
        end_of_text(value)
