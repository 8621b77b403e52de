"""The comparison with PyTorch: its cases are of every kind, and no wrong weight escapes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from wrong_weights import spoil, stored_floats

from flamingo_rt.bundle import read_bundle
from flamingo_rt.checkpoints import StoredModel
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, layer_parts, media_name, present_name
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.errors import ParityError
from flamingo_rt.export.checks.parity import Deviation, check_parity
from flamingo_rt.export.checks.parity_cases import CASES, PICTURES, STEPS, Reference, compute_reference


def test_the_cases_are_the_prompts_that_matter() -> None:
    assert any(not any(case.visuals) for case in CASES), "no picture"
    assert any(len(row) == 1 for case in CASES for row in case.visuals), "one"
    assert any(len(row) > 2 for case in CASES for row in case.visuals), "several"
    assert any(case.frames > 1 for case in CASES), "clips"
    assert any(len(set(case.lengths)) > 1 for case in CASES), "ragged batch"
    assert any(max(case.pieces) > 1 for case in CASES), "continuation"


def test_the_reference_is_the_same_every_time_and_reports_each_step(stored: StoredModel, reference: Reference) -> None:
    told: list[int] = []
    again = compute_reference(stored.load(), told.append)
    assert told == [1] * STEPS
    assert torch.equal(again.pixel_values, reference.pixel_values)
    for first, second in zip(reference.cases, again.cases, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(first.logits, second.logits, strict=True))


def test_the_reference_is_the_models_own_answer_to_each_text_alone(stored: StoredModel, reference: Reference) -> None:
    """Compute each text with its pictures through `Flamingo.forward`: no batch, no media by row, no recorded cache."""
    model = stored.load()
    for expected in reference.cases:
        case, first = expected.case, 0
        frames = torch.arange(case.visual_count * case.frames) % PICTURES
        visuals = reference.pixel_values[frames].unflatten(0, (case.visual_count, case.frames))
        for row, places in enumerate(case.visuals):
            prompt, pieces = expected.input_ids[row, : case.lengths[row]], expected.input_ids[row, max(case.lengths) :]
            ids = torch.cat([prompt, pieces])
            index = torch.tensor([sum(place <= token for place in places) for token in range(len(ids))])
            shown = (visuals[first : first + len(places)], torch.arange(len(places))[None]) if places else (None, None)
            first += len(places)
            with torch.no_grad():
                logits, _ = model(ids[None], index[None], *shown)
            torch.testing.assert_close(expected.logits[row], logits[0], rtol=0, atol=2e-4)  # logits are up to 5


def test_the_reference_has_every_layers_media_and_cache(stored: StoredModel, reference: Reference) -> None:
    config = stored.config
    for expected in reference.cases:
        assert set(expected.media) == {media_name(*parts) for parts in layer_parts(len(config.cross_layers))}
        assert len(expected.logits) == len(expected.caches) == len(expected.case.lengths)
        for length, logits, cache in zip(expected.case.lengths, expected.logits, expected.caches, strict=True):
            tokens = length + sum(expected.case.pieces)
            assert logits.shape == (tokens, config.language.vocab_size)
            assert set(cache) == {present_name(*parts) for parts in layer_parts(config.language.layers)}
            shape = (1, config.language.kv_heads, tokens, config.language.head_width)
            assert all(tensor.shape == shape for tensor in cache.values())


def test_the_graphs_equal_the_model_in_memory(bundle: Path, reference: Reference) -> None:
    """The reference here has the convolutions that standardise their weights themselves."""
    read, told = read_bundle(bundle), []
    backend = OrtBackend({name: read.graph_path(name) for name in GRAPHS}, read.config)
    found = check_parity(reference, backend, read.config, on_case=told.append)
    assert told == [case.name for case in CASES]
    assert set(found) == set(GRAPHS)
    assert all(0 < value < 1e-5 for value in found.values())


@pytest.mark.parametrize("graph", GRAPHS)
def test_no_wrong_weight_escapes(graph: str, bundle: Path, reference: Reference, tmp_path: Path) -> None:
    """Spoil every tensor of the weight file in turn."""
    read = read_bundle(bundle)
    paths = {name: read.graph_path(name) for name in GRAPHS}
    names = stored_floats(paths[graph])
    assert len(names) > 8
    for name in names:
        for suffix in ("", ".data"):
            shutil.copy(f"{paths[graph]}{suffix}", tmp_path / f"{graph}.onnx{suffix}")
        spoil(tmp_path / f"{graph}.onnx", name)
        backend = OrtBackend(paths | {graph: tmp_path / f"{graph}.onnx"}, read.config, threads=1)
        with pytest.raises(ParityError, match=f"graph {graph}, tensor "):
            check_parity(reference, backend, read.config)


def test_a_deviation_is_relative_to_the_tensors_scale_and_names_what_deviates() -> None:
    deviation = Deviation([LANGUAGE_MODEL], 1e-3)
    deviation.update(LANGUAGE_MODEL, "logits", "a case", np.array([1000.5, 1.0]), torch.tensor([1000.0, 1.0]))
    deviation.update(LANGUAGE_MODEL, "logits", "a case", np.array([0.0002]), torch.tensor([0.0001]))
    assert deviation.largest[LANGUAGE_MODEL] == pytest.approx(5e-4)
    with pytest.raises(ParityError, match=r"graph language_model, tensor logits, prompt 'a case': .* by 2\.00e-03"):
        deviation.update(LANGUAGE_MODEL, "logits", "a case", np.array([0.502]), torch.tensor([0.5]))


def test_a_value_that_is_not_a_number_deviates() -> None:
    deviation = Deviation([LANGUAGE_MODEL], 1e-3)
    with pytest.raises(ParityError, match="nan"):
        deviation.update(LANGUAGE_MODEL, "logits", "a case", np.array([np.nan]), torch.tensor([0.5]))


def test_logits_of_impossible_tokens_do_not_hide_the_others() -> None:
    """A head without rows for some tokens has a bias of -30,000 there."""
    deviation = Deviation([LANGUAGE_MODEL], 1e-4)
    expected = torch.tensor([3.0, -2.0, -30000.0])
    deviation.update(LANGUAGE_MODEL, "logits", "a case", np.array([3.0, -2.0, -30000.02]), expected)
    assert deviation.largest[LANGUAGE_MODEL] < 1e-6
    with pytest.raises(ParityError, match=r"by 1.00e-03"):
        deviation.update(LANGUAGE_MODEL, "logits", "a case", np.array([3.0, -2.003, -30000.0]), expected)
    with pytest.raises(ParityError, match="logits"):
        deviation.update(LANGUAGE_MODEL, "logits", "a case", np.array([3.0, -2.0, -20.0]), expected)
