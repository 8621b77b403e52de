"""Writing of safetensors files: a single one, or shards with an index, of which one is in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from flamingo_rt.errors import DataError
from flamingo_rt.weights.lazy import LazyTensor

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
METADATA = {"format": "pt"}  # Hugging Face's readers ask for it
REMEDY = "free some space and run again"


def write_tensors(tensors: dict[str, Tensor], file: Path, target: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that will be renamed to ``target``. Raises `DataError`, on a full disk for instance."""
    try:
        file.touch()
        mode = file.stat().st_mode & 0o777  # a new file's, by the user's umask
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
        file.chmod(mode)  # safetensors lets only the owner read it
    except (SafetensorError, OSError) as error:  # safetensors turns the second into the first
        raise DataError(f"cannot write {target}: {error}; {REMEDY}") from error


def _ignore(name: str, nbytes: int) -> None:
    pass


def write_shards(
    tensors: Mapping[str, LazyTensor],
    folder: Path,
    target: Path,
    *,
    shard_bytes: int = 1_000_000_000,
    on_tensor: Callable[[str, int], None] = _ignore,
) -> None:
    """Write ``model.safetensors``, or several ``model-00001-of-0000N.safetensors`` and their index, into ``folder``.

    Tensors keep their order. No file has more than ``shard_bytes`` of values, except one with a single larger tensor,
    and one file is in memory at a time. ``on_tensor(name, bytes)`` is called after each tensor is read. ``folder``
    exists and will be renamed to ``target``, the name used in messages. Raises `DataError` when a tensor cannot be read
    or a file cannot be written.
    """
    shards = _divided(tensors, shard_bytes)
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [WEIGHTS]
    for file, names in zip(files, shards, strict=True):
        values = {}
        for name in names:
            values[name] = tensors[name].read()
            on_tensor(name, tensors[name].nbytes)
        write_tensors(values, folder / file, target / file, METADATA)
        del values  # before the next one is read
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        try:
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot write {target / INDEX}: {error}; {REMEDY}") from error


def _divided(tensors: Mapping[str, LazyTensor], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= tensor.nbytes
    return shards
