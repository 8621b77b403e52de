"""JSON of strangers: what is no JSON, or too much of it, is an error that names the file."""

import json

import pytest

from flamingo_rt.errors import DataError
from flamingo_rt.json_files import MOST_LEVELS, read_json


def written(tmp_path, content: str | bytes):
    path = tmp_path / "config.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_file_is_parsed(tmp_path):
    data = {"a": [1, 2.5, None, True, {"b": "\u00e9"}], "a ": {}}
    assert read_json(written(tmp_path, json.dumps(data))) == data


@pytest.mark.parametrize(("content", "message"), [
    ('{"a": 1, "b": {"c": 2, "c": 3}}', "'c' appears twice"), ('{"a": NaN}', "NaN is not a JSON number"),
    ('{"a": -Infinity}', "-Infinity is not a JSON number"), ('{"a": 1', "not valid JSON"), ("", "not valid JSON"),
    (b"\xff\xfe{}", "not valid JSON"), ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
    ("[" * 100_000 + "]" * 100_000, "nested too deeply|nested deeper"),
    ("[" * (MOST_LEVELS + 1) + "]" * (MOST_LEVELS + 1), "nested deeper"),
    ('{"\\u001b[2J": 1, "\\u001b[2J": 2}', "appears twice"),
])
def test_a_file_that_is_no_json_is_an_error(content, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        read_json(written(tmp_path, content))
    assert "config.json" in str(caught.value)
    assert str(caught.value).isprintable()


def test_levels_up_to_the_limit_are_read(tmp_path):
    assert read_json(written(tmp_path, "[" * (MOST_LEVELS - 1) + "1" + "]" * (MOST_LEVELS - 1)))


def test_a_file_that_is_too_long_is_not_read(tmp_path):
    path = written(tmp_path, " " * 100 + "{}")
    assert read_json(path, most_bytes=102) == {}
    with pytest.raises(DataError, match=r"more than 0.000101 MB"):
        read_json(path, most_bytes=101)
