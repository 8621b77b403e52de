"""Reference outputs: what was written is read back, and a file that is damaged or of another model is refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from flamingo_rt.bundle import read_description
from flamingo_rt.errors import DataError
from flamingo_rt.loading import PACKAGED_BUNDLE
from flamingo_rt.runtime.reference_outputs import (
    ReferenceOutputs,
    grid_pixels,
    read_reference,
    spread_positions,
    write_reference,
)

FILE, CONFIG = PACKAGED_BUNDLE / "reference.npz", read_description(PACKAGED_BUNDLE).config


@pytest.fixture(scope="module")
def reference() -> ReferenceOutputs:
    return read_reference(FILE, CONFIG)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Every array of the packaged file, to be changed."""
    with np.load(FILE) as file:
        return {name: file[name].copy() for name in file.files}


def damaged(folder: Path, arrays: dict[str, np.ndarray]) -> DataError:
    """Error of reading a file with these arrays."""
    np.savez(folder / "reference.npz", **arrays)
    with pytest.raises(DataError, match=r"reference\.npz is damaged \(.*export the model again") as raised:
        read_reference(folder / "reference.npz", CONFIG)
    return raised.value


def about(arrays: dict[str, np.ndarray], **changes: object) -> dict[str, np.ndarray]:
    """The arrays with another description."""
    stated = json.loads(arrays["about"].tobytes()) | changes
    return arrays | {"about": np.frombuffer(json.dumps(stated).encode(), np.uint8)}


def test_reference_outputs_are_read_as_they_were_written(reference: ReferenceOutputs, tmp_path: Path) -> None:
    write_reference(tmp_path / "again.npz", reference)
    again = read_reference(tmp_path / "again.npz", CONFIG)
    write_reference(tmp_path / "twice.npz", again)  # not FILE: zip files differ a little between versions of Python
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "twice.npz").read_bytes()
    for one, other in zip((again, *again.prompts), (reference, *reference.prompts), strict=True):
        for field in fields(one):
            if field.name != "prompts":
                assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


def test_the_packaged_prompts_are_of_every_kind(reference: ReferenceOutputs) -> None:
    visuals = {prompt.name: [len(frames) for frames in prompt.visuals] for prompt in reference.prompts}
    assert visuals == {"text": [], "one picture": [1], "several pictures": [1, 1, 1], "clip": [3]}
    for prompt in reference.prompts:
        assert prompt.media_index.max() == len(prompt.visuals)
        assert len(prompt.answer) == 16
        assert (prompt.logits[:, 0] >= prompt.logits.max(axis=1)).all(), "the likeliest token comes first"
        assert (prompt.logits_at[:, 0] == prompt.answer).all()
    assert FILE.stat().st_size < 200_000


def test_pictures_are_grids_of_steps_that_half_precision_holds(reference: ReferenceOutputs) -> None:
    grid = reference.pictures[0]
    for size in (5, 24, 64, 224):
        pixels = grid_pixels(grid, size)
        assert (pixels.shape, pixels.dtype, pixels.flags.c_contiguous) == ((1, 3, size, size), np.float32, True)
        assert (pixels == pixels.astype(np.float16)).all()
        assert not (pixels.view(np.uint32) & 0xFFFF).any(), "bfloat16 has the upper half of the bits"
        row, column = size // 2, size - 1
        level = grid[row * 24 // size, column * 24 // size]
        assert (pixels[0, :, row, column] == level / 64.0 - 2).all()


@pytest.mark.parametrize(("size", "count"), [(3, 10), (10, 10), (1000, 64), (10240, 512), (257 * 1024, 512)])
def test_positions_are_spread_over_the_whole_array(size: int, count: int) -> None:
    found = spread_positions(size, count)
    assert len(found) == min(size, count)
    assert (np.diff(found) > 0).all()
    assert found[0] >= 0
    assert found[-1] < size
    assert np.diff(found, prepend=0, append=size).max() <= max(1, 3 * size / count)
    if size > 10 * count:
        assert len(set(found % 16)) == 16, "not the same channels always"


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.99])
def test_a_file_cut_short_is_refused(cut: float, tmp_path: Path) -> None:
    content = FILE.read_bytes()
    (tmp_path / "reference.npz").write_bytes(content[: int(cut * len(content))])
    with pytest.raises(DataError, match=r"reference\.npz is damaged"):
        read_reference(tmp_path / "reference.npz", CONFIG)


@pytest.mark.parametrize("name", ["about", "pictures", "features", "media_at", "0.input_ids", "3.logits"])
def test_a_missing_array_is_named(name: str, arrays, tmp_path: Path) -> None:
    del arrays[name]
    assert name in str(damaged(tmp_path, arrays))


@pytest.mark.parametrize("name", ["features", "media", "1.logits", "1.logprobs"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(name: str, value: float, arrays, tmp_path: Path) -> None:
    arrays[name].flat[3] = value
    assert "not numbers" in str(damaged(tmp_path, arrays))


@pytest.mark.parametrize("name", [
    "pictures", "features", "media", "0.media_index", "0.answer", "0.logits", "0.logits_at", "0.logprobs",
])
def test_arrays_of_another_shape_or_type_are_refused(name: str, arrays, tmp_path: Path) -> None:
    damaged(tmp_path, arrays | {name: arrays[name][..., :-1]})
    damaged(tmp_path, arrays | {name: arrays[name].astype(np.int16)})


@pytest.mark.parametrize(("name", "value"), [
    ("1.input_ids", -1), ("1.input_ids", 768), ("1.media_index", 2), ("1.answer", 10**9), ("1.logits_at", 768),
    ("features_at", 10**9), ("media_at", -1),
])
def test_numbers_beyond_the_models_sizes_are_refused(name: str, value: int, arrays, tmp_path: Path) -> None:
    arrays[name].flat[0] = value
    assert "is not within 0 and" in str(damaged(tmp_path, arrays))


@pytest.mark.parametrize("changes", [
    {"pictures": 10**9}, {"pictures": -1}, {"side": 0}, {"answer": "16"}, {"answer": True}, {"logits": 1},
    {"prompts": []}, {"prompts": {}}, {"prompts": [1]}, {"prompts": [{"name": "x"}]},
    {"prompts": [{"name": ["x"], "visuals": []}]}, {"prompts": [{"name": "x", "visuals": [[]]}]},
    {"prompts": [{"name": "x", "visuals": [[99]]}]}, {"prompts": [{"name": "x", "visuals": [[0] * 99]}]},
    {"prompts": [{"name": "x", "visuals": [[0]] * 99}]}, {"prompts": [{"name": "x" * 99, "visuals": []}]},
])
def test_an_impossible_description_is_refused(changes, arrays, tmp_path: Path) -> None:
    damaged(tmp_path, about(arrays, **changes))


def test_reference_outputs_of_another_model_are_refused() -> None:
    other = replace(CONFIG, language=replace(CONFIG.language, vocab_size=100))
    with pytest.raises(DataError, match="is not within 0 and 99"):
        read_reference(FILE, other)
