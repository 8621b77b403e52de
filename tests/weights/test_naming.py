"""Names of tensors in nested mappings, of which a few bytes of a pickle could make very many or very long ones."""

import pytest

from flamingo_rt.weights.naming import MOST_NAME, flattened


def test_tensors_are_named_by_their_keys():
    assert flattened({"a": {"b": 1.0, 3: 2.0}, "c": [4.0]}, float) == {"a.b": 1.0, "a.3": 2.0}


NO_NAMES = {"tuple": ("x" * 10**6,) * 10**5, "number": 10**5000, "bool": True, "none": None, "bytes": b"x"}


@pytest.mark.parametrize("key", NO_NAMES.values(), ids=NO_NAMES)
def test_what_is_no_name_is_left_out(key):
    assert flattened({key: 1.0, "a": 2.0}, float) == {"a": 2.0}


def test_long_names_are_refused():
    assert len(flattened({"a" * MOST_NAME: 1.0}, float)) == 1
    with pytest.raises(ValueError, match="more than 2000 characters"):
        flattened({"a" * MOST_NAME: {"b": 1.0}}, float)
