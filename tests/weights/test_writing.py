"""Written weights come back equal, in files of the size asked for, with the index that readers expect."""

from __future__ import annotations

import json
import os
import resource
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from flamingo_rt.errors import DataError
from flamingo_rt.weights.lazy import LazyTensor
from flamingo_rt.weights.weight_files import open_weights
from flamingo_rt.weights.writing import write_shards, write_tensors

TENSORS = {
    "z": torch.arange(10, dtype=torch.float32),
    "a": torch.arange(6).view(2, 3),
    "half": torch.ones(5, dtype=torch.float16),
    "brain": torch.ones(3, 2, dtype=torch.bfloat16),
    "scalar": torch.tensor(1.5),
    "empty": torch.empty(0, 3),
}


def lazy(tensors: dict[str, Tensor]) -> dict[str, LazyTensor]:
    return {
        name: LazyTensor(tuple(tensor.shape), tensor.dtype, Path("source"), tensor.clone, name)
        for name, tensor in tensors.items()
    }


def test_weights_that_fit_are_one_file(tmp_path):
    write_shards(lazy(TENSORS), tmp_path, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_weights_that_do_not_fit_are_divided_in_order(tmp_path):
    sizes = {"a": 40, "b": 60, "c": 1, "big": 500, "d": 100, "e": 0, "f": 1}
    tensors = {name: torch.full((size,), 1, dtype=torch.uint8) for name, size in sizes.items()}
    write_shards(lazy(tensors), tmp_path, tmp_path, shard_bytes=100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    numbers = {"a": 1, "b": 1, "c": 2, "big": 3, "d": 4, "e": 4, "f": 5}
    assert index == {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {name: f"model-{number:05}-of-00005.safetensors" for name, number in numbers.items()},
    }
    assert list(index["weight_map"]) == list(sizes)
    assert sorted(file.name for file in tmp_path.glob("*.safetensors")) == sorted(set(index["weight_map"].values()))
    found = open_weights(tmp_path)
    assert all(torch.equal(found[name].read(), tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_written_files_have_the_permissions_that_the_user_gives_new_files(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_shards(lazy(TENSORS), tmp_path, tmp_path, shard_bytes=50)
    finally:
        os.umask(before)
    for file in tmp_path.glob("*.safetensors"):
        assert file.stat().st_mode & 0o777 == mode


def test_one_file_is_in_memory_at_a_time(tmp_path):
    alive: set[str] = set()
    most = 0

    def reader(name: str):
        def read() -> Tensor:
            nonlocal most
            values = torch.ones(100, dtype=torch.uint8)
            alive.add(name)
            most = max(most, len(alive))
            weakref.finalize(values, alive.discard, name)
            return values

        return read

    tensors = {
        str(number): LazyTensor((100,), torch.uint8, Path("source"), reader(str(number))) for number in range(9)
    }
    write_shards(tensors, tmp_path, tmp_path, shard_bytes=300)
    assert most == 3


def test_progress_is_advanced_after_every_tensor(tmp_path):
    told = []
    write_shards(lazy(TENSORS), tmp_path, tmp_path, on_tensor=lambda name, nbytes: told.append((name, nbytes)))
    assert told == [(name, tensor.nbytes) for name, tensor in TENSORS.items()]


def test_a_conversion_is_written_converted(tmp_path):
    tensors = {name: tensor.to(torch.float16) for name, tensor in lazy({"weight": torch.randn(4)}).items()}
    write_shards(tensors, tmp_path, tmp_path)
    assert load_file(tmp_path / "model.safetensors")["weight"].dtype == torch.float16


@pytest.mark.parametrize("shard_bytes", [10**9, 1000])
def test_a_full_disk_is_explained_by_the_place_the_user_knows(tmp_path, shard_bytes):
    tensors = lazy({"a": torch.ones(200), "b": torch.ones(900)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write target/model.*safetensors: .*free some space and run again"):
            write_shards(tensors, tmp_path, Path("target"), shard_bytes=shard_bytes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_index_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "model.safetensors.index.json").mkdir()
    with pytest.raises(DataError, match=r"cannot write target/model\.safetensors\.index\.json"):
        write_shards(lazy(TENSORS), tmp_path, Path("target"), shard_bytes=30)


def test_tensors_are_written_with_their_metadata(tmp_path):
    file = tmp_path / "state.safetensors"
    write_tensors({"weight": torch.ones(2, 3).t()}, file, file, {"step": "7"})
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"step": "7"}
        assert torch.equal(opened.get_tensor("weight"), torch.ones(3, 2))
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_folder_that_is_gone_is_explained(tmp_path):
    with pytest.raises(DataError, match="cannot write target"):
        write_tensors({"weight": torch.ones(2)}, tmp_path / "absent" / "file", Path("target"))
