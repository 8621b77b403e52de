"""Limits of engines: what a model can take, and the ranges that they make of every size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flamingo_rt.contract import (
    APPENDED,
    DECODE,
    GRAPHS,
    IN_PLACE,
    LANGUAGE_MODEL,
    PREFILL,
    RESAMPLER,
    VISION_ENCODER,
    Limits,
    SizeRange,
    graph_specs,
    size_ranges,
)
from flamingo_rt.errors import UsageError
from flamingo_rt.presets import PRESETS, preset

TINY = preset("tiny")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("cache", [IN_PLACE, APPENDED])
def test_every_size_of_every_input_has_an_ordered_range(name: str, cache: str) -> None:
    config = preset(name)
    ranges = size_ranges(config, Limits.of(config), cache)
    for graph, spec in graph_specs(config, cache=cache).items():
        for sizes in ranges[graph].values():
            letters = {size for tensor in spec.inputs for size in tensor.shape if isinstance(size, str)}
            assert letters == set(sizes)
            assert all(1 <= found.min <= found.opt <= found.max for found in sizes.values())


def test_without_limits_a_model_takes_what_it_can() -> None:
    assert Limits.of(TINY) == Limits(batch=4, tokens=1024, visuals=40, frames=8, capacity=1024)
    assert Limits.of(preset("openflamingo-3b")) == Limits(batch=4, tokens=1024, visuals=64, frames=8, capacity=2048)


def test_fewer_tokens_are_cached_than_read_at_once_never() -> None:
    assert Limits.of(TINY, capacity=200).tokens == 200


@pytest.mark.parametrize(("limit", "most"), [
    ({"batch": 0}, "1 or more"), ({"tokens": 0}, "from 1 to 1,024"), ({"capacity": 1025}, "from 1 to 1,024"),
    ({"tokens": 300, "capacity": 200}, "from 1 to 200"), ({"visuals": 41}, "from 1 to 40"),
    ({"frames": 9}, "from 1 to 8"), ({"frames": 0}, "from 1 to 8"),
])
def test_limits_beyond_the_model_are_refused(limit: dict[str, int], most: str) -> None:
    with pytest.raises(UsageError, match=f"limit of {next(iter(limit))} is .*; it must be {most}"):
        Limits.of(TINY, **limit)


def test_without_time_embeddings_frames_are_free() -> None:
    assert Limits.of(preset("openflamingo-3b"), frames=100).frames == 100


def test_decoding_takes_a_few_tokens_and_the_last_visual() -> None:
    ranges = size_ranges(TINY, Limits.of(TINY, visuals=5))[LANGUAGE_MODEL]
    assert ranges[DECODE]["T"] == ranges[DECODE]["K"] == SizeRange(1, 1, 1)
    most = [size_ranges(TINY, Limits.of(TINY, batch=rows))[LANGUAGE_MODEL][DECODE]["B"].max for rows in (1, 3)]
    assert most == [2, 3]
    assert ranges[DECODE]["S"] == SizeRange(24, 24, 24)
    assert ranges[PREFILL]["S"] == SizeRange(24, 24, 120)


def test_a_model_that_attends_to_all_visuals_decodes_with_all() -> None:
    config = replace(TINY, cross_attention=replace(TINY.cross_attention, attend="all"))
    assert size_ranges(config, Limits.of(config, visuals=5))[LANGUAGE_MODEL][DECODE]["S"] == SizeRange(24, 24, 120)


def test_a_cache_in_place_has_one_size_and_an_appended_one_grows() -> None:
    limits = Limits.of(TINY, capacity=300)
    whole, growing = (size_ranges(TINY, limits, cache)[LANGUAGE_MODEL][DECODE]["C"] for cache in (IN_PLACE, APPENDED))
    assert (whole, growing) == (SizeRange(300, 300, 300), SizeRange(1, 150, 300))


def test_no_more_is_encoded_at_once_than_there_can_be() -> None:
    ranges = size_ranges(TINY, Limits.of(TINY, batch=1, visuals=2, frames=1))
    assert set(ranges) == set(GRAPHS)
    assert ranges[VISION_ENCODER][PREFILL]["N"].max == ranges[RESAMPLER][PREFILL]["M"].max == 2
