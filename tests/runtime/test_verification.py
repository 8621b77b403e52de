"""Verification: a backend that computes the same passes, and each kind of fault is found in its graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flamingo_rt.backend import HostBackend, HostCache
from flamingo_rt.bundle import read_description
from flamingo_rt.contract import (
    CACHE_LENGTH,
    FEATURES,
    GRAPHS,
    LANGUAGE_MODEL,
    LOGITS,
    NEXT_LOGPROB,
    NEXT_TOKEN,
    RESAMPLER,
    VISION_ENCODER,
    Limits,
    TensorSpec,
)
from flamingo_rt.errors import DataError
from flamingo_rt.loading import PACKAGED_BUNDLE, load
from flamingo_rt.runtime.reference_outputs import LIKELIEST, ReferenceOutputs, read_reference
from flamingo_rt.runtime.verification import (
    TokenDifference,
    Verification,
    as_float,
    relative_deviation,
    verify,
)

BUNDLE = read_description(PACKAGED_BUNDLE)
TOLERANCE = dict.fromkeys(GRAPHS, 1e-4)
Change = Callable[[str, Mapping[str, Any], Mapping[str, Any]], None]


@pytest.fixture(scope="module")
def ort() -> HostBackend:
    return load(backend="ort", threads=1).backend


@pytest.fixture(scope="module")
def reference() -> ReferenceOutputs:
    assert BUNDLE.reference is not None
    return read_reference(PACKAGED_BUNDLE / BUNDLE.reference.file, BUNDLE.config)


class Faulty(HostBackend):
    """A backend whose outputs are changed after each run of a graph."""

    name = "faulty"

    def __init__(self, backend: HostBackend, change: Change = lambda graph, inputs, outputs: None) -> None:
        super().__init__(backend.specs)
        self._backend, self._change = backend, change

    def bind(
        self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> Callable[[], None]:
        run = self._backend.bind(graph, inputs, outputs, constant)

        def call() -> None:
            run()
            self._change(graph, inputs, outputs)

        return call


def checked(backend: HostBackend, reference: ReferenceOutputs, **changes: object) -> Verification:
    return verify(backend, BUNDLE.config, reference, TOLERANCE, **changes)


def beyond(found: Verification) -> set[str]:
    """The graphs that are beyond their tolerance."""
    return {graph.graph for graph in found.graphs if not graph.accepted}


def test_the_packaged_model_is_what_was_exported(ort, reference: ReferenceOutputs) -> None:
    heard: list[int] = []
    found = checked(ort, reference, on_prompt=heard.append)
    assert found.passed
    assert [graph.graph for graph in found.graphs] == list(GRAPHS)
    assert all(graph.deviation < 1e-5 for graph in found.graphs)
    assert (found.equal_tokens, found.compared_tokens) == (144, 144)  # 4 alone, 1 behind a prefix, 4 in a batch
    assert found.differences == found.left_out == ()
    assert heard == [1, 1, 1, 1]


def test_a_fault_of_the_vision_encoder_is_found_in_it(ort, reference: ReferenceOutputs) -> None:
    def change(graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if graph == VISION_ENCODER:
            outputs[FEATURES][..., :] += 0.01

    found = checked(Faulty(ort, change), reference)
    assert VISION_ENCODER in beyond(found)
    assert not found.passed
    assert next(iter(found.graphs)).where.startswith("features of picture ")


def test_a_fault_of_the_resampler_is_found_in_it(ort, reference: ReferenceOutputs) -> None:
    def change(graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if graph == RESAMPLER:
            name = list(outputs)[-1]
            outputs[name][:] *= 1.01

    found = checked(Faulty(ort, change), reference)
    assert RESAMPLER in beyond(found)
    assert VISION_ENCODER not in beyond(found)
    assert found.graphs[1].where.startswith("media_key_values.5.value of visual ")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_numbers_are_beyond_every_tolerance(ort, reference: ReferenceOutputs, value: float) -> None:
    def change(graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if graph == LANGUAGE_MODEL and LOGITS in outputs and inputs[CACHE_LENGTH].any():
            outputs[LOGITS][..., 7] = value

    found = checked(Faulty(ort, change), reference)
    assert beyond(found) == {LANGUAGE_MODEL}
    assert found.graphs[2].deviation == np.inf


def test_a_cache_that_loses_a_token_is_found(ort, reference: ReferenceOutputs) -> None:
    """Steps that see all but the newest cached token."""
    def bind(graph, inputs, outputs, constant=()):
        run = ort.bind(graph, inputs, outputs, constant)

        def call() -> None:
            if graph == LANGUAGE_MODEL and inputs[CACHE_LENGTH].any():
                inputs[CACHE_LENGTH][:] -= 1
            run()

        return call

    backend = Faulty(ort)
    backend.bind = bind  # type: ignore[method-assign]
    found = checked(backend, reference)
    assert beyond(found) == {LANGUAGE_MODEL}
    assert not all(one.accepted for one in found.differences)


def test_a_prefix_that_is_not_restored_is_found(ort, reference: ReferenceOutputs) -> None:
    class Forgetful(HostCache):
        def restore(self, arrays: Mapping[str, np.ndarray], length: int) -> None:
            pass

    backend = Faulty(ort)
    backend.cache = lambda rows, capacity: Forgetful(ort.specs[LANGUAGE_MODEL], rows, capacity)  # type: ignore
    found = checked(backend, reference)
    assert beyond(found) == {LANGUAGE_MODEL}
    assert found.graphs[2].where.startswith("'several pictures' after a prefix")


def test_a_fault_of_one_row_in_a_batch_is_found(ort, reference: ReferenceOutputs) -> None:
    def change(graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if graph == LANGUAGE_MODEL and LOGITS in outputs and len(outputs[LOGITS]) == 4:
            outputs[LOGITS][3] += 0.1

    found = checked(Faulty(ort, change), reference)
    assert beyond(found) == {LANGUAGE_MODEL}
    assert found.graphs[2].where.startswith("'clip' in a batch")


def test_another_greedy_token_is_named_and_not_excused(ort, reference: ReferenceOutputs) -> None:
    def change(graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if NEXT_TOKEN in outputs and len(outputs[NEXT_TOKEN]) == 1:
            outputs[NEXT_TOKEN][:] = 11

    found = checked(Faulty(ort, change), reference)
    assert beyond(found) == set()
    assert not found.passed
    assert "'text'" in {one.where for one in found.differences if not one.accepted}
    assert {(one.position, one.found) for one in found.differences} == {(1, 11)}
    assert found.compared_tokens - found.equal_tokens == len(found.differences) == 5


def test_a_wrong_log_probability_is_found(ort, reference: ReferenceOutputs) -> None:
    def change(graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if NEXT_LOGPROB in outputs:
            outputs[NEXT_LOGPROB][:] -= 0.5

    found = checked(Faulty(ort, change), reference)
    assert beyond(found) == {LANGUAGE_MODEL}
    assert "log-probability of token" in found.graphs[2].where


def test_a_tie_of_two_tokens_does_not_excuse_a_third(ort, reference: ReferenceOutputs) -> None:
    """The graph's own choice is wrong while its logits are right: near a tie, only the tied tokens are excused."""
    prompt = next(prompt for prompt in reference.prompts if not prompt.visuals)
    logits = prompt.logits.copy()
    logits[1, 1] = logits[1, 0]
    tied = replace(prompt, logits=logits)
    unlikely = int(prompt.logits_at[1, prompt.logits[1].argmin()])

    def wrong(graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if NEXT_TOKEN in outputs and LOGITS not in outputs:
            outputs[NEXT_TOKEN][:] = unlikely

    found = verify(Faulty(ort, wrong), BUNDLE.config, replace(reference, prompts=(tied,)), TOLERANCE)
    assert [(one.position, one.found, one.accepted) for one in found.differences] == [(1, unlikely, False)]
    assert tied.margin(1, int(prompt.logits_at[1, 1])) == 0.0


def test_a_token_that_was_not_recorded_is_below_the_least_likely_of_those_that_were(reference) -> None:
    prompt = reference.prompts[0]
    unknown = next(token for token in range(BUNDLE.config.language.vocab_size) if token not in prompt.logits_at[0])
    assert prompt.margin(0, unknown) == pytest.approx(prompt.logits[0, 0] - prompt.logits[0, LIKELIEST - 1])


@pytest.mark.parametrize(("margin", "accepted"), [(1.9e-4, True), (2.1e-4, False)])
def test_a_token_may_differ_where_rounding_explains_it(margin: float, accepted: bool) -> None:
    assert TokenDifference("x", 0, 1, 2, margin, tolerance=1e-4).accepted is accepted


@pytest.mark.parametrize(("limits", "left_out"), [
    ({"visuals": 2}, ("several pictures",)), ({"frames": 2}, ("clip",)),
    ({"capacity": 24}, ("text", "several pictures")), ({"tokens": 10}, ("text", "several pictures")),
    ({"batch": 2}, ()),
])
def test_prompts_beyond_the_limits_of_engines_are_left_out(
    ort, reference: ReferenceOutputs, limits: dict[str, int], left_out: tuple[str, ...]
) -> None:
    backend, seen = Faulty(ort), []
    backend.limits = replace(Limits(batch=4, tokens=64, visuals=6, frames=4, capacity=96), **limits)
    backend._change = lambda graph, inputs, outputs: seen.append(
        {name: array.shape for name, array in inputs.items()} if graph == LANGUAGE_MODEL else None
    )
    found = checked(backend, reference)
    assert found.passed
    assert found.left_out == left_out
    assert all(one.where is not None for one in found.graphs)
    assert max(shapes["input_ids"][0] for shapes in seen if shapes) <= backend.limits.batch
    assert max(shapes["input_ids"][1] for shapes in seen if shapes) <= backend.limits.tokens


def test_limits_too_small_for_every_prompt_are_an_error(ort, reference: ReferenceOutputs) -> None:
    backend = Faulty(ort)
    backend.limits = Limits(1, 2, 1, 1, 4)
    with pytest.raises(DataError, match="too small for every reference prompt"):
        checked(backend, reference)


def test_a_deviation_is_relative_to_the_largest_value_that_is_not_masked() -> None:
    expected = np.array([0.5, -20.0, -1e9], np.float32)
    assert relative_deviation(expected, expected) == 0
    assert relative_deviation(expected + np.array([0.2, 0, 0], np.float32), expected) == pytest.approx(0.01)
    assert relative_deviation(expected * np.array([1, 1, 1.01], np.float32), expected) == pytest.approx(0.01)
    assert relative_deviation(np.array([0.3]), np.array([0.1])) == pytest.approx(0.2), "a scale of at least 1"
    assert np.isnan(relative_deviation(np.array([np.nan, 1.0]), np.array([1.0, 1.0])))


def test_arrays_of_bfloat16_are_read_from_their_bits() -> None:
    bits = np.array([0x3F80, 0xC000, 0x7F80], np.uint16)
    assert as_float(bits, TensorSpec("x", "bfloat16", (3,))).tolist() == [1.0, -2.0, np.inf]
    assert as_float(np.array([1.5], np.float16), TensorSpec("x", "float16", (1,))).dtype == np.float32
