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
from flamingo_rt.engines.ort import OrtEngine
from flamingo_rt.errors import ParityError
from flamingo_rt.export.cases import CASES, Reference, compute_reference
from flamingo_rt.export.parity import Deviation, check_parity


def test_the_cases_are_the_prompts_that_matter() -> None:
    assert any(not any(case.visuals) for case in CASES), "no picture"
    assert any(len(row) == 1 for case in CASES for row in case.visuals), "one"
    assert any(len(row) > 2 for case in CASES for row in case.visuals), "several"
    assert any(case.frames > 1 for case in CASES), "clips"
    assert any(len(set(case.lengths)) > 1 for case in CASES), "ragged batch"
    assert any(max(case.pieces) > 1 for case in CASES), "continuation"


def test_the_reference_is_the_same_every_time_and_told_case_by_case(stored: StoredModel, reference: Reference) -> None:
    told: list[str] = []
    again = compute_reference(stored.load(), on_case=told.append)
    assert told == [case.name for case in CASES] == [expected.case.name for expected in again.cases]
    assert torch.equal(again.pixel_values, reference.pixel_values)
    for first, second in zip(reference.cases, again.cases, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(first.logits, second.logits, strict=True))


def test_the_reference_of_a_row_is_the_models_own_answer(stored: StoredModel, reference: Reference) -> None:
    """Without cases, media by row or a recording of the cache: the whole prompt through `Flamingo.forward`."""
    expected = next(each for each in reference.cases if each.case.name == "several pictures")
    pixels = reference.pixel_values[: expected.case.visual_count, None]
    rows = torch.arange(expected.case.visual_count)[None]
    with torch.no_grad():
        logits, _ = stored.load()(expected.input_ids, expected.media_index, pixels, rows)
    torch.testing.assert_close(expected.logits[0], logits[0], rtol=1e-5, atol=1e-5)


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
    engine = OrtEngine({name: read.graph_path(name) for name in GRAPHS}, read.config)
    found = check_parity(reference, engine, read.config, on_case=told.append)
    assert told == [case.name for case in CASES]
    assert set(found) == set(GRAPHS)
    assert all(0 < value < 1e-5 for value in found.values())


@pytest.mark.parametrize("graph", GRAPHS)
def test_no_wrong_weight_escapes(graph: str, bundle: Path, reference: Reference, tmp_path: Path) -> None:
    """Each tensor in turn; of the language model's embedding the row of a token that the cases have."""
    read = read_bundle(bundle)
    paths = {name: read.graph_path(name) for name in GRAPHS}
    used = int(reference.cases[0].input_ids[0, 0])
    names = stored_floats(paths[graph])
    assert len(names) > 8
    for name in names:
        for suffix in ("", ".data"):
            shutil.copy(f"{paths[graph]}{suffix}", tmp_path / f"{graph}.onnx{suffix}")
        spoil(tmp_path / f"{graph}.onnx", name, used if name.endswith("embedding.weight") else 0)
        engine = OrtEngine(paths | {graph: tmp_path / f"{graph}.onnx"}, read.config, threads=1)
        try:
            check_parity(reference, engine, read.config)
        except ParityError as error:
            assert f"graph {graph}, tensor " in str(error), name
        else:
            pytest.fail(f"{graph}: a wrong {name} was not noticed")


def test_a_deviation_is_relative_to_the_tensors_scale_and_names_what_deviates() -> None:
    deviation = Deviation(1e-3)
    deviation.check(LANGUAGE_MODEL, "logits", "a case", np.array([1000.5, 1.0]), torch.tensor([1000.0, 1.0]))
    deviation.check(LANGUAGE_MODEL, "logits", "a case", np.array([0.0002]), torch.tensor([0.0001]))
    assert deviation.largest[LANGUAGE_MODEL] == pytest.approx(5e-4)
    with pytest.raises(ParityError, match=r"graph language_model, tensor logits, prompt 'a case': .* by 2\.00e-03"):
        deviation.check(LANGUAGE_MODEL, "logits", "a case", np.array([0.502]), torch.tensor([0.5]))


def test_what_is_not_a_number_deviates() -> None:
    with pytest.raises(ParityError, match="nan"):
        Deviation(1e-3).check(LANGUAGE_MODEL, "logits", "a case", np.array([np.nan]), torch.tensor([0.5]))
