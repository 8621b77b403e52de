"""The end of a text, where a language model's configuration names one token, several or none."""

import json
from pathlib import Path

import pytest

from flamingo_rt.errors import DataError
from flamingo_rt.importing import frozen_parts
from flamingo_rt.importing.settings import Settings


def end_of_text(value):
    return frozen_parts.end_of_text(Settings(Path("config.json"), {"eos_token_id": value}))


@pytest.mark.parametrize(("value", "expected"), [
    (2, (2, ())), (None, (None, ())), (-1, (None, ())), (True, (None, ())), ([7], (7, ())), ([7, 7], (7, ())),
    ([128001, 128009], (128001, (128001, 128009))),
])
def test_every_token_of_a_list_ends_an_answer(value, expected):
    assert end_of_text(value) == expected


@pytest.mark.parametrize(("stated", "expected"), [([5, 6], (2, (5, 6))), (2, (2, (2,))), (None, (2, ()))])
def test_the_generation_configuration_adds_its_own(stated, expected, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    assert frozen_parts.end_of_text(Settings(tmp_path / "config.json", {"eos_token_id": 2})) == expected


@pytest.mark.parametrize("value", [[], ["2"], [2, None], [[2]], [-1, 2]])
def test_a_list_of_anything_else_is_refused(value):
    with pytest.raises(DataError, match=r"config.json: eos_token_id is"):
        end_of_text(value)
