"""Options: what is refused by itself, and what does not fit a model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from flamingo_rt.bench import BenchOptions
from flamingo_rt.bench.workload import caption_tokens
from flamingo_rt.errors import UsageError


@pytest.mark.parametrize(
    ("field", "value"),
    [("shots", (-1,)), ("shots", ()), ("shots", (1.5,)), ("shots", 4), ("batch", (0,)), ("batch", None),
     ("batch", (2000,)), ("context", (0,)), ("context", (True,)), ("tokens", 0), ("runs", 0), ("warmup", -1),
     ("runs", 10**6), ("threads", 0), ("seconds", 0), ("seconds", float("inf")), ("seconds", "1")],
)
def test_a_value_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=field):
        BenchOptions(**{field: value})


def test_what_is_given_twice_is_measured_once() -> None:
    assert BenchOptions(shots=(4, 0, 4), batch=[2, 2]).shots == (4, 0)
    assert BenchOptions(batch=[2, 2]).batch == (2,)


def with_limits(model, **changes):
    """A stand-in with other limits: options ask for nothing but configuration and tokenizer."""
    language = replace(model.config.language, context=changes.pop("context", model.config.language.context))
    return SimpleNamespace(config=replace(model.config, language=language, **changes), tokenizer=model.tokenizer)


def test_defaults_are_those_that_fit(packaged) -> None:
    full = BenchOptions().for_model(packaged)
    assert (full.shots, full.context) == ((0, 4, 8, 16, 32), (64, 992))  # its context is 1024
    assert BenchOptions().for_model(with_limits(packaged, max_visuals=9)).shots == (0, 4, 8)
    small = BenchOptions(tokens=8).for_model(with_limits(packaged, context=caption_tokens(packaged, 4) + 1))
    assert small.shots == (0, 4)
    assert len(small.context) == 1


@pytest.mark.parametrize(
    ("options", "limits", "said"),
    [
        ({"shots": (0, 40)}, {}, "40 pictures in a prompt, one of them the query's; give 39 or fewer"),
        ({"shots": (32,)}, {"context": 100}, "context is 100"),
        ({"context": (1000,)}, {}, "1024: give a context of at most 992"),
        ({"tokens": 1024}, {}, "give 1023 or fewer"),
        ({"tokens": 128}, {"context": 100, "max_visuals": 9}, "give 99 or fewer"),
        ({"tokens": 1}, {"context": 4}, "0 shots cannot be measured"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_with_the_limit(packaged, options, limits, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        BenchOptions(**options).for_model(with_limits(packaged, **limits))
