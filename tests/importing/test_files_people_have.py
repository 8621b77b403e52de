"""Files that differ from what a library writes today, and load all the same; names that lead outside do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peer_model import PeerModel
from safetensors.torch import save_file

from flamingo_rt.errors import DataError
from flamingo_rt.importing.openflamingo import OpenFlamingoFiles, open_openflamingo

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def files(tmp_path: Path) -> OpenFlamingoFiles:
    """The three sources, the language model in two shards of bfloat16."""
    peer = PeerModel("llama-interval4")
    found = peer.write(tmp_path)
    for file in found.language.glob("pytorch_model*"):
        file.unlink()
    tensors = {name: tensor.bfloat16() for name, tensor in peer.tensors("language").items()}
    names = list(tensors)
    placed = {file: names[number::2] for number, file in enumerate(SHARDS)}
    for file, chosen in placed.items():
        save_file({name: tensors[name] for name in chosen}, found.language / file)
    index = {"weight_map": {name: file for file, chosen in placed.items() for name in chosen}}
    (found.language / "model.safetensors.index.json").write_text(json.dumps(index))
    return found


def opened(files: OpenFlamingoFiles) -> tuple:
    """Configuration, tokenizer and every tensor, as bytes in float32."""
    model = open_openflamingo(files).model
    values = {name: tensor.read().float().numpy().tobytes() for name, tensor in model.tensors.items()}
    return model.config, model.tokenizer, values


def test_bfloat16_shards_are_read_as_they_are(files: OpenFlamingoFiles) -> None:
    model = open_openflamingo(files).model
    norm = model.tensors["language.norm.weight"]
    assert norm.dtype == torch.bfloat16
    assert norm.read().dtype == torch.bfloat16
    expected = PeerModel("llama-interval4").tensors("language")["model.norm.weight"].bfloat16()
    assert torch.equal(norm.read(), expected)


@pytest.mark.parametrize("before", [b"", BYTE_ORDER_MARK])
@pytest.mark.parametrize("behind", [b"", b"\r\n \t\n"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"])
def test_a_byte_order_mark_and_white_space_around_json_change_nothing(
    files: OpenFlamingoFiles, name: str, before: bytes, behind: bytes
) -> None:
    expected = opened(files)
    file = files.language / name
    file.write_bytes(before + file.read_bytes() + behind)
    assert opened(files) == expected


def test_an_index_may_say_more_than_where_tensors_are(files: OpenFlamingoFiles) -> None:
    expected = opened(files)
    file = files.language / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    more = {"metadata": {"total_size": 1, "total_parameters": -3, "note": None}, "format": "pt", "weight_maps": {}}
    file.write_text(json.dumps({**more, **index}))
    assert opened(files) == expected


def test_shards_may_be_links_as_in_the_hubs_cache(files: OpenFlamingoFiles, tmp_path: Path) -> None:
    expected = opened(files)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(files.language.iterdir())):
        target = file.rename(blobs / str(number))
        file.symlink_to(target)
    assert opened(files) == expected


@pytest.mark.parametrize("shard", ["../{}", "./../language/{}", "sub/../../{}", "/{}"])
def test_an_index_names_no_file_outside_its_folder(files: OpenFlamingoFiles, shard: str) -> None:
    """Refuse the name although there is such a file, and although the path leads back into the folder."""
    (files.language / SHARDS[0]).rename(files.language.parent / SHARDS[0])
    file = files.language / "model.safetensors.index.json"
    file.write_text(file.read_text().replace(SHARDS[0], shard.format(SHARDS[0])))
    with pytest.raises(DataError, match=r"model\.safetensors\.index\.json names the file '.*', outside its folder"):
        open_openflamingo(files)


@pytest.mark.parametrize("dtype", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["bfloat16", "float16", "auto", None])
def test_the_type_that_the_library_would_load_is_ignored(files: OpenFlamingoFiles, dtype: str, value: object) -> None:
    expected = opened(files)
    file = files.language / "config.json"
    config = {key: kept for key, kept in json.loads(file.read_text()).items() if key not in ("dtype", "torch_dtype")}
    file.write_text(json.dumps({**config, dtype: value}))
    assert opened(files) == expected
