"""Features on disk: what was written comes back, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import small_config, small_flamingo

from flamingo_rt import files
from flamingo_rt.errors import DataError
from flamingo_rt.training.data.samples import DamagedSample, Visual
from flamingo_rt.training.feature_cache import FeatureCache, as_stored, content_key, encoder_identity

KEY, OTHER = "ab" + "0" * 62, "cd" + "1" * 62
FEATURES = torch.linspace(-3, 3, 2 * 4 * 6).reshape(2, 4, 6)
FP32 = "fp32 cpu"
FILE_BYTES = 128 + 2 * FEATURES.numel() + 4


def cache_in(folder, most_bytes=10**6, identity="e" * 16, **arguments) -> FeatureCache:
    return FeatureCache(folder, identity, (4, 6), most_bytes, **arguments)


def holds(cache: FeatureCache, key: str) -> bool:
    return cache.read(key, 2) is not None


# What comes back


def test_features_come_back_in_float16(tmp_path) -> None:
    cache = cache_in(tmp_path)
    assert not holds(cache, KEY)
    cache.write(KEY, FEATURES)
    found = cache_in(tmp_path).read(KEY, 2)
    assert found.dtype == np.float16
    assert torch.equal(torch.from_numpy(found), FEATURES.half())
    assert not holds(cache, OTHER)
    assert np.load(cache.path(KEY)).shape == (2, 4, 6)  # a file of numpy's, whatever follows


def test_transposed_features_of_one_picture_come_back(tmp_path) -> None:
    cache, picture = cache_in(tmp_path), FEATURES[:1]
    cache.write(KEY, picture.mT.contiguous().mT)  # as an NFNet gives them
    assert torch.equal(torch.from_numpy(cache.read(KEY, 1)), picture.half())


def test_features_that_need_a_gradient_or_are_bfloat16_are_kept_too(tmp_path) -> None:
    cache = cache_in(tmp_path)
    cache.write(KEY, FEATURES.clone().requires_grad_())
    cache.write(OTHER, FEATURES.bfloat16())
    assert torch.equal(torch.from_numpy(cache.read(OTHER, 2)), FEATURES.bfloat16().half())
    assert holds(cache, KEY)


def test_features_too_large_for_float16_are_its_largest_and_those_with_nan_are_not_kept(tmp_path) -> None:
    cache, large = cache_in(tmp_path), FEATURES.clone()
    large[0, 0, :2] = torch.tensor([1e6, -torch.inf])
    cache.write(KEY, large)
    assert cache.read(KEY, 2)[0, 0, :2].tolist() == [65504, -65504]
    assert torch.equal(torch.from_numpy(cache.read(KEY, 2)), as_stored(large))
    large[0, 0, 0] = torch.nan
    cache.write(OTHER, large)
    assert not holds(cache, OTHER)


def test_another_encoder_or_another_number_of_frames_finds_nothing(tmp_path) -> None:
    cache = cache_in(tmp_path)
    cache.write(KEY, FEATURES)
    assert cache.read(KEY, 1) is None
    assert not holds(cache_in(tmp_path, identity="f" * 16), KEY)
    assert FeatureCache(tmp_path, "e" * 16, (6, 4), 10**6).read(KEY, 2) is None


@pytest.mark.parametrize("damage", ["empty", "cut off", "longer", "one bit", "other type", "text", "zeros"])
def test_a_damaged_file_counts_as_missing_and_is_written_anew(tmp_path, damage: str) -> None:
    cache = cache_in(tmp_path)
    cache.write(KEY, FEATURES)
    path = cache.path(KEY)
    whole = path.read_bytes()
    assert len(whole) == FILE_BYTES
    if damage == "other type":
        np.save(path, FEATURES.numpy())
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"empty": b"", "cut off": whole[:-1], "longer": whole + b"\0", "one bit": flipped,
                          "text": b"a text", "zeros": bytes(len(whole))}[damage])
    assert not holds(cache, KEY)
    cache.write(KEY, FEATURES)
    assert path.read_bytes() == whole
    assert holds(cache, KEY)


def test_a_write_that_fails_leaves_nothing_behind_and_ends_the_adding(tmp_path, monkeypatch) -> None:
    said: list[str] = []
    cache = cache_in(tmp_path, say=said.append)
    cache.write(KEY, FEATURES)

    def full(path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_flush", full)
        cache.write(OTHER, FEATURES)
        cache.write(KEY, FEATURES + 1)
    cache.write(OTHER, FEATURES)
    assert not holds(cache, OTHER)
    assert torch.equal(torch.from_numpy(cache.read(KEY, 2)), FEATURES.half())
    assert len(said) == 1
    assert said[0].startswith("no more features are kept: no space left")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [cache.path(KEY)]


# The bound


def test_nothing_is_added_beyond_the_bound_which_is_said_once(tmp_path) -> None:
    said: list[str] = []
    cache = cache_in(tmp_path, 2 * FILE_BYTES, say=said.append)
    keys = [f"{number:064x}" for number in range(4)]
    for key in keys:
        cache.write(key, FEATURES)
    assert [holds(cache, key) for key in keys] == [True, True, False, False]
    assert len(said) == 1
    assert "no more features are kept" in said[0]


def test_the_bound_counts_what_is_there_already_also_of_other_encoders(tmp_path) -> None:
    cache_in(tmp_path, identity="f" * 16).write(KEY, FEATURES)
    cache_in(tmp_path).write(KEY, FEATURES)
    cache = cache_in(tmp_path, 3 * FILE_BYTES)
    cache.write(KEY, FEATURES)  # in place of what is there
    cache.write(OTHER, FEATURES)
    cache.write("ef" + KEY, FEATURES)
    assert [holds(cache, key) for key in (KEY, OTHER, "ef" + KEY)] == [True, True, False]


def test_processes_share_what_is_free(tmp_path) -> None:
    caches = [cache_in(tmp_path, 4 * FILE_BYTES + 3, writers=2) for _ in range(2)]
    for number in range(3):
        for rank, cache in enumerate(caches):
            cache.write(f"{rank}{number}" + KEY, FEATURES)
    assert 2 <= len(list(tmp_path.rglob("*.npy"))) <= 4


def test_a_folder_that_cannot_be_made_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot keep features in .*file: Not a directory; choose another folder"):
        cache_in(tmp_path / "file")


# Names


def test_a_key_is_that_of_the_content_and_of_the_frames_taken(tmp_path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"content")
    image = Visual("image", b"content", "one")
    assert content_key(image, 1, 1.0) == content_key(Visual("image", path, "another"), 1, 2.0)
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    keys = {content_key(visual, frames, fps) for visual, frames, fps in [
        (image, 1, 1.0), (Visual("image", b"contenu", "one"), 1, 1.0), (Visual("video", b"content", "one"), 8, 1.0),
        (Visual("video", b"content", "one"), 4, 1.0), (Visual("video", b"content", "one"), 8, 2.0),
        (Visual("image", pixels, "one"), 1, 1.0), (Visual("image", pixels.reshape(1, 4, 3), "one"), 1, 1.0),
        (Visual("image", pixels.tobytes(), "one"), 1, 1.0),
    ]}
    assert len(keys) == 8
    assert all(len(key) == 64 for key in keys)
    strided = np.stack([pixels, pixels], -1)[..., 0]
    assert content_key(Visual("image", strided, "one"), 1, 1.0) == content_key(Visual("image", pixels, "one"), 1, 1.0)


def test_a_file_that_cannot_be_read_is_a_damaged_sample(tmp_path) -> None:
    with pytest.raises(DamagedSample, match=r"the sample: .*nowhere\.png cannot be read: No such file"):
        content_key(Visual("image", tmp_path / "nowhere.png", "the sample"), 1, 1.0)


def test_an_encoder_is_known_by_its_weights_its_sizes_and_the_preprocessing() -> None:
    config, tensors = small_config(), small_flamingo().vision.state_dict()
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    changed["blocks.0.skip_gain"] += 1e-6  # a scalar
    names = [
        encoder_identity(tensors, config, FP32), encoder_identity(tensors, config, "bf16 cpu"),
        encoder_identity(tensors, config, "fp32 cuda"), encoder_identity(changed, config, FP32),
        encoder_identity({name: tensor.bfloat16() for name, tensor in tensors.items()}, config, FP32),
        encoder_identity(tensors, replace(config, vision=replace(config.vision, image_size=64)), FP32),
        encoder_identity(tensors, replace(config, preprocessing=replace(config.preprocessing, resize="squash")), FP32),
    ]
    assert len(set(names)) == len(names)
    assert all(len(name) == 16 and set(name) <= set("0123456789abcdef") for name in names)
    again = dict(reversed(small_flamingo().vision.state_dict().items()))
    assert encoder_identity(again, replace(config, name="another"), FP32) == names[0]
