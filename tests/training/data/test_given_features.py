"""Class folders of features in ``.npy`` files: what is read, what is refused, and documents made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_model import small_config
from small_runs import RUN, files, from_checkpoint, run

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.training.data.document_batches import DocumentBatches
from flamingo_rt.training.data.given_features import read_features
from flamingo_rt.training.data.samples import DamagedSample, Visual
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.data.visual_pixels import visual_pixels
from flamingo_rt.training.options import DataOptions, FlamingoOptions, check_read
from flamingo_rt.training.tokenizer_training import train_tokenizer

VISION = small_config().vision
SHAPE = (VISION.feature_count, VISION.width)
pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of two classes: all numbers are 0.5 of one, 2 of the other."""
    root = tmp_path_factory.mktemp("features")
    for name, value in (("sea_lion", 0.5), ("owl", 2.0)):
        (root / name).mkdir()
        for number in range(3):
            np.save(root / name / f"{number}.npy", np.full(SHAPE, value, np.float16 if number else np.float32))
    return root


def visual(path: Path) -> Visual:
    return Visual("features", path, path.name)


def test_documents_hold_the_features_beside_their_class(folder: Path) -> None:
    config = replace(small_config(), language=replace(small_config().language, vocab_size=400, context=512))
    tokenizer = train_tokenizer(["Output: sea lion", "Output: owl"] * 3, 400, config.tokens)
    options = DataOptions(str(folder), kind="features", template="{}", batch=6, chunks=(1,))
    batches = DocumentBatches(open_source(options), options, config, tokenizer, 0, 0)
    batch = batches.draw(0, 0, 1).batch
    assert batch.pixel_values.shape[0] == 0
    assert batch.missing.tolist() == []
    assert batch.cached.shape == (6, 1, *SHAPE)
    found = set()
    for row, text in zip(batch.rows[:, 0].tolist(), batch.input_ids.tolist(), strict=True):
        features = batch.cached[row]
        assert features.eq(features.flatten()[0]).all()
        said = tokenizer.decode(text, skip_special_tokens=True).strip()
        found.add((features.flatten()[0].item(), said.removeprefix("Output:").strip()))
    assert found == {(0.5, "sea lion"), (2.0, "owl")}


def test_a_run_on_pictures_and_features_goes_on_as_it_began(folder: Path, unbroken: Path, tmp_path: Path) -> None:
    data = (DataOptions("scenes", batch=2, questions=1),
            DataOptions(str(folder), kind="features", batch=2, chunks=(2,)))
    often = from_checkpoint(unbroken, data=data, run=replace(RUN, save_seconds=1e-9))
    seen = run(tmp_path / "whole", often)
    assert all(set(report.losses) == {"scenes", folder.name} for report in seen)
    run(tmp_path / "out", often, stop=3)
    run(tmp_path / "out", often, resume=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def header(shape: str) -> bytes:
    """A file of this shape without its numbers."""
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(("content", "message"), [
    (np.zeros(SHAPE, np.int8), "holds int8: features are float16 or float32"),
    (np.zeros((1, *SHAPE), np.float16), r"has the shape \[1, .*the model's encoder gives"),
    (np.full(SHAPE, np.nan, np.float32), "holds NaN"),
    (b"", "no whole file"), (b"\x93NUMPY\x01\x00", "no whole file"), (b"a picture", "no whole file"),
    (header("(9999999999999999999999, 2)"), "no whole file"), (header("(1000000000,)"), "no whole file"),
    (header("(-1, 4)"), "no whole file"), (header("(0,)"), r"has the shape \[0\]"),
], ids=["type", "shape", "nan", "empty", "cut", "other", "beyond-integers", "beyond-the-file", "negative", "nothing"])
def test_what_are_no_features_of_the_encoder_is_named(
    tmp_path: Path, content: np.ndarray | bytes, message: str
) -> None:
    path = tmp_path / "0.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(DamagedSample, match=f"sample: 0.npy .*{message}"):
        read_features(visual(path), "sample", SHAPE)


def test_a_file_that_is_cut_or_holds_objects_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "0.npy"
    np.save(path, np.zeros(SHAPE, np.float16))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedSample, match="no whole file"):
        read_features(visual(path), "sample", SHAPE)
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DamagedSample, match="no whole file"):
        read_features(visual(path), "sample", SHAPE)
    with pytest.raises(DamagedSample, match="No such file"):
        read_features(visual(tmp_path / "1.npy"), "sample", SHAPE)


def test_large_numbers_become_the_largest_of_float16(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", np.full(SHAPE, 1e6, np.float32))
    found = read_features(visual(tmp_path / "0.npy"), "sample", SHAPE)
    assert found.shape == (1, *SHAPE)
    assert found.dtype == np.float16
    assert (found == np.finfo(np.float16).max).all()


def test_features_are_no_pictures_and_pictures_no_features(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data"):
        open_source(DataOptions(str(folder)))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "captions.jsonl").write_text('{"image": "a.png", "text": "a"}\n')
    for source in (tmp_path / "texts" / "captions.jsonl", tmp_path / "texts", tmp_path):
        with pytest.raises(DataError, match=r"holds no features: give a folder with a folder of \.npy files"):
            open_source(DataOptions(str(source), kind="features"))
    with pytest.raises(DataError, match="does not exist"):
        open_source(DataOptions(str(tmp_path / "missing"), kind="features"))
    source = open_source(DataOptions(str(folder), kind="features"))
    assert "6 features" in source.fingerprint()
    shown = source.sample(0).segments[0]
    assert isinstance(shown, Visual)
    with pytest.raises(DamagedSample, match="holds features, not a picture: train flamingo alone takes them"):
        visual_pixels(shown, "sample", DataOptions(str(folder)), small_config().preprocessing, 32)


def test_features_belong_to_a_frozen_encoder_and_to_stage_3(folder: Path) -> None:
    data = (DataOptions(str(folder), kind="features"),)
    with pytest.raises(UsageError, match="the kind features is what a frozen encoder gave, and unfreeze names vision"):
        FlamingoOptions(data=data, unfreeze=("vision",))
    with pytest.raises(UsageError, match="augment changes pictures, and features are none"):
        DataOptions(str(folder), kind="features", augment=True)
    for stage in ("vision", "language"):
        with pytest.raises(UsageError, match=f"train {stage} takes no features; train flamingo does"):
            check_read(stage, data)
    check_read("flamingo", data)
