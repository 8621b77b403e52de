"""Sizes of a stranger's configuration are bounded where they are parsed, before anything is made of them."""

import copy

import pytest

from flamingo_rt.config import LARGEST, LARGEST_WIDTH, FlamingoConfig
from flamingo_rt.errors import DataError
from flamingo_rt.presets import PRESETS, preset

PARTS = ("vision", "resampler", "cross_attention", "language")


def sizes(name):
    """Every whole number and every list of them in a preset, by part and key."""
    data = preset(name).to_dict()
    return [(part, key) for part in PARTS for key, value in data[part].items()
            if type(value) is int or (isinstance(value, tuple) and type(value[0]) is int)]


def changed(name, part, key, value):
    data = copy.deepcopy(preset(name).to_dict())
    old = data[part][key]
    data[part][key] = [value] * len(old) if isinstance(old, tuple) else value
    return data


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_far_below_the_limits(name):
    data = preset(name).to_dict()
    for part, key in sizes(name):
        value = data[part][key]
        assert 4 * max(value if isinstance(value, tuple) else (value,)) <= LARGEST.get(key, LARGEST_WIDTH), (part, key)


@pytest.mark.parametrize("value", [10**18, 10**400, -(10**18), -1])
@pytest.mark.parametrize(("name", "part", "key"), [
    (name, part, key) for name in ("tiny", "openflamingo-3b") for part, key in sizes(name)
])
def test_a_size_without_measure_is_refused_by_name(name, part, key, value):
    with pytest.raises(DataError, match=rf"\.{key} is (above|[-(\d])") as caught:
        FlamingoConfig.from_dict(changed(name, part, key, value))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("part", "key", "value"), [
    ("vision", "bottleneck", 1e29), ("vision", "bottleneck", -0.5), ("vision", "bottleneck", 0.0),
    ("vision", "squeeze_excite", 1e29), ("vision", "squeeze_excite", 0.0), ("language", "norm_eps", -1e-5),
    ("language", "norm_eps", float("nan")), ("language", "rotary_base", float("inf")),
])
def test_a_fraction_that_makes_no_size_is_refused(part, key, value):
    with pytest.raises(DataError, match=key):
        FlamingoConfig.from_dict(changed("tiny", part, key, value))


def test_a_list_of_very_many_stages_is_refused():
    data = preset("tiny").to_dict()
    data["vision"] |= {"widths": [64] * 1000, "depths": [1] * 1000, "strides": [1] * 1000}
    with pytest.raises(DataError, match="1000 entries, more than 16"):
        FlamingoConfig.from_dict(data)


def test_a_model_whose_sizes_are_each_possible_but_not_together_is_refused():
    data = preset("openflamingo-9b").to_dict()
    data["language"] |= {"layers": 1024, "ff_width": 1 << 20}
    with pytest.raises(DataError, match=r"it has \d+ parameters, more than 4000000000000"):
        FlamingoConfig.from_dict(data)
