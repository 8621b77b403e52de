"""Reference outputs at export: what is recorded, and how far others may be from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flamingo_rt.bundle import read_bundle
from flamingo_rt.contract import GRAPHS
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.errors import ParityError
from flamingo_rt.export.checks.recording import Recording, _Position, accepted_deviation
from flamingo_rt.loading import load
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.runtime.reference_outputs import read_reference
from flamingo_rt.runtime.sampling import log_softmax
from flamingo_rt.runtime.verification import verify


@pytest.fixture(scope="module")
def tokenizer(bundle: Path) -> TextTokenizer:
    config = read_bundle(bundle).config
    return TextTokenizer(bundle / "tokenizer.json", config.tokens, config.language.vocab_size)


def test_an_exported_bundle_passes_on_the_backend_that_exported_it(bundle: Path) -> None:
    read = read_bundle(bundle)
    reference = read_reference(bundle / "reference.npz", read.config)
    assert len({tuple(prompt.answer) for prompt in reference.prompts}) == 4, "answers that do not vary show nothing"
    found = verify(load(bundle, "ort", threads=1).backend, read.config, reference, read.reference.tolerance)
    assert found.passed
    assert found.differences == ()


def test_matrices_in_half_precision_pass_too(bundles) -> None:
    read = read_bundle(bundles("bf16"))
    reference = read_reference(read.path / "reference.npz", read.config)
    assert verify(load(read.path, "ort", threads=1).backend, read.config, reference, read.reference.tolerance).passed


def test_recording_twice_gives_the_same_outputs(bundle: Path, tokenizer: TextTokenizer) -> None:
    read = read_bundle(bundle)
    backend = OrtBackend({name: read.graph_path(name) for name in GRAPHS}, read.config, threads=1)
    recorded = []
    for _ in range(2):
        recording = Recording(read.config, tokenizer)
        recording.encode(backend)
        recorded.append(recording.answer(backend))
    assert np.array_equal(recorded[0].media, recorded[1].media)
    assert np.array_equal(recorded[0].prompts[3].logits, recorded[1].prompts[3].logits)


@pytest.mark.parametrize(("changes", "names"), [
    ({"max_visuals": 1}, ["text", "one picture", "several pictures", "clip"]),
    ({"max_visuals": 2}, ["text", "one picture", "several pictures", "clip"]),
])
def test_prompts_have_no_more_pictures_than_the_model_takes(
    bundle: Path, tokenizer: TextTokenizer, changes, names: list[str]
) -> None:
    config = replace(read_bundle(bundle).config, **changes)
    asked = Recording(config, tokenizer)._asked
    assert [one.name for one in asked] == names
    assert max(len(one.visuals) for one in asked) <= config.max_visuals


@pytest.mark.parametrize(("context", "possible"), [(96, True), (40, True), (4, False)])
def test_prompts_that_do_not_fit_the_context_are_left_out(
    bundle: Path, tokenizer: TextTokenizer, context: int, possible: bool
) -> None:
    config = read_bundle(bundle).config
    recording = Recording(replace(config, language=replace(config.language, context=context)), tokenizer)
    assert recording.possible is possible
    assert all(len(one.prompt) + recording._length <= context for one in recording._asked)


def test_a_position_keeps_the_likeliest_tokens_and_a_sample() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 1000)).astype(np.float32)
    found = _Position.of(logits)
    assert (found.tokens == logits.argmax(axis=1)).all()
    assert np.allclose(found.logprobs, [log_softmax(row).max() for row in logits])
    assert (np.take_along_axis(logits, found.logits_at, axis=1) == found.logits).all()
    assert (np.diff(found.logits[:, :8]) <= 0).all()
    assert (found.logits[:, 7] >= np.sort(logits, axis=1)[:, -8]).all()


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ParityError, match="logits are not numbers"):
        _Position.of(np.array([[0.0, np.nan]], np.float32))


def test_tolerances_follow_the_type_and_what_it_costs() -> None:
    assert set(accepted_deviation(1e-4, "float32", None, quantized_activations=False).values()) == {1e-4}
    assert set(accepted_deviation(1e-4, "float32", None, quantized_activations=True).values()) == {0.05}
    measured = accepted_deviation(1e-4, "float16", dict(zip(GRAPHS, (1e-2, 1e-5, 1e-3), strict=True)), False)
    assert measured == pytest.approx(dict(zip(GRAPHS, (4e-2, 2**-7, 2**-7), strict=True)))
