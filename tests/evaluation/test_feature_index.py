"""Features of pictures: the encoder's means, kept in a file that another bundle's or a damaged one is told from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.evaluation import feature_index
from flamingo_rt.evaluation.feature_index import encoder_features
from flamingo_rt.processing.preprocess import decode_visual
from flamingo_rt.processing.visuals import Image
from flamingo_rt.runtime.timing import StageTimer
from flamingo_rt.runtime.visual_encoder import encode_frames


@pytest.fixture
def bundled(model, monkeypatch):
    """The model as if it were a bundle's."""
    monkeypatch.setattr(model, "identity", "bundle 1")
    return model


def test_a_feature_is_the_mean_of_what_the_encoder_gives_at_length_1(model, items) -> None:
    found = encoder_features(model, items)
    assert (found.shape, found.dtype) == ((12, model.config.vision.width), np.float32)
    for item, feature in zip(items, found, strict=True):
        pixels = decode_visual(Image(item.file), model.config).pixels
        mean = encode_frames(model.backend, [pixels], StageTimer())[0].mean((0, 1))
        np.testing.assert_allclose(feature, mean / np.linalg.norm(mean), atol=1e-5)


def test_an_index_saves_the_encoder_its_work_and_grows(bundled, items, tmp_path, monkeypatch) -> None:
    index, encoded = tmp_path / "index.npz", []
    encode = feature_index.encode_frames
    monkeypatch.setattr(feature_index, "encode_frames",
                        lambda backend, pixels, timer: encoded.extend(pixels) or encode(backend, pixels, timer))
    first = encoder_features(bundled, items[:5], index)
    assert len(encoded) == 5
    done = []
    again = encoder_features(bundled, [*items, items[0]], index, done.append)
    assert (len(encoded), sum(done)) == (12, 13)
    np.testing.assert_array_equal(again[:5], first)
    np.testing.assert_array_equal(again[-1], first[0])
    assert np.array_equal(encoder_features(bundled, items, index), again[:12])
    assert len(encoded) == 12


def test_an_interrupt_leaves_what_was_computed(bundled, items, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(feature_index, "AT_ONCE", 4)
    encode, calls = feature_index.encode_frames, []

    def broken(*arguments):
        calls.append(arguments)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(feature_index, "encode_frames", broken)
    with pytest.raises(KeyboardInterrupt):
        encoder_features(bundled, items, tmp_path / "index.npz")
    monkeypatch.setattr(feature_index, "encode_frames", encode)
    done = []
    encoder_features(bundled, items, tmp_path / "index.npz", done.append)
    assert done[0] == 8


def test_a_long_run_writes_its_index_now_and_then(bundled, items, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(feature_index, "AT_ONCE", 1)
    monkeypatch.setattr(feature_index, "KEPT_AT_ONCE", 2)
    sizes = []
    write = feature_index._write
    monkeypatch.setattr(feature_index, "_write",
                        lambda path, known, identity: sizes.append(len(known)) or write(path, known, identity))
    encoder_features(bundled, items, tmp_path / "index.npz")
    assert sizes == [3, 6, 10, 12]


def test_an_index_of_another_bundle_is_refused(bundled, items, tmp_path, monkeypatch) -> None:
    encoder_features(bundled, items[:2], tmp_path / "index.npz")
    monkeypatch.setattr(bundled, "identity", "bundle 2")
    with pytest.raises(DataError, match="another bundle's encoder"):
        encoder_features(bundled, items, tmp_path / "index.npz")


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(path.read_bytes()[:100]),
    lambda path: path.write_bytes(b""),
    lambda path: np.savez(path, features=np.zeros((2, 3), np.float32)),
    lambda path: np.savez(path, features=np.zeros(3), digests=np.array(["a"]), identity=np.array("bundle 1")),
    lambda path: np.savez(path, features=np.full((1, 3), np.nan, np.float32), digests=np.array(["a"]),
                          identity=np.array("bundle 1")),
    lambda path: np.savez(path, features=np.zeros((1, 3), np.float32), digests=np.array(["a"]),
                          identity=np.array("bundle 1")),
    lambda path: np.savez(path, features=np.array([{}], dtype=object), digests=np.array(["a"]), identity=np.array("b")),
])
def test_a_damaged_index_is_refused(bundled, items, tmp_path, spoil) -> None:
    index = tmp_path / "index.npz"
    encoder_features(bundled, items[:2], index)
    spoil(index)
    with pytest.raises(DataError, match="is no index of features"):
        encoder_features(bundled, items, index)


def test_what_has_no_features_is_told(model, items, tmp_path) -> None:
    with pytest.raises(UsageError, match="p1 has no picture"):
        encoder_features(model, [items[0], replace(items[1], file=None)])
    with pytest.raises(UsageError, match="an index of features belongs to a bundle"):
        encoder_features(model, items, tmp_path / "index.npz")
    with pytest.raises(DataError, match="cannot read"):
        encoder_features(model, [replace(items[0], file=tmp_path / "gone.png")])
