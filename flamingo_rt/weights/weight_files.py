"""Weight files of every format, and folders of them, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

from flamingo_rt.errors import DataError
from flamingo_rt.weights.flattening import without_shared_prefix
from flamingo_rt.weights.folders import INDEX, read_index, weights_in
from flamingo_rt.weights.lazy import LazyTensor
from flamingo_rt.weights.pytorch import open_legacy, open_zip
from flamingo_rt.weights.regions import AGAIN
from flamingo_rt.weights.safetensors_reading import open_safetensors

KNOWN = "safetensors, a PyTorch state dict or a TorchScript archive"


def open_weights(path: Path) -> dict[str, LazyTensor]:
    """Tensors of a weight file, or of a folder of them, by name.

    A file is safetensors, a state dict that ``torch.save`` wrote (by itself or in a training checkpoint), a
    TorchScript archive, or the index of several; a folder has one of these. No code in a file is run. Values are read
    by `LazyTensor.read`, except for files from before PyTorch 1.6 and for tensors without plain values, such as
    quantized ones, which are read at once. Raises `DataError` when there is nothing to read or it is damaged.
    """
    path = Path(path)
    try:
        found = _open(weights_in(path) if path.is_dir() else path)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror or error}; check the file") from error
    if not found:
        raise DataError(f"{path} holds no named tensors: it needs a state dict, names to tensors")
    if any(tensor.file.suffix == ".safetensors" for tensor in found.values()):
        return found
    return without_shared_prefix(found)


def _open(file: Path) -> dict[str, LazyTensor]:
    return _open_index(file) if file.name.endswith(INDEX) and file.is_file() else _open_file(file)


def _open_index(index: Path) -> dict[str, LazyTensor]:
    promised = read_index(index)
    found: dict[str, LazyTensor] = {}
    for shard, names in promised.items():
        if not shard.is_file():
            raise DataError(f"{shard} is missing: {index.name} says that it holds {_listed(names)}; copy it there too")
        tensors = _open_file(shard)
        absent = [name for name in names if name not in tensors]
        if absent:
            raise DataError(f"{shard} lacks {_listed(absent)}, which {index.name} says it holds; {AGAIN}")
        found |= {name: tensors[name] for name in names}
    return found


def _open_file(file: Path) -> dict[str, LazyTensor]:
    if not file.exists():
        raise DataError(f"{file} does not exist: give a weight file, or a folder with one")
    if not file.is_file():
        raise DataError(f"{file} is not a regular file: give a weight file, or a folder with one")
    with file.open("rb") as opened:
        start = opened.read(64)
    if not start:
        raise DataError(f"{file} is empty; {AGAIN}")
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{file} is a git-lfs pointer, not the weights themselves: git lfs pull fetches them")
    if file.suffix == ".safetensors" or _is_safetensors(start):
        return open_safetensors(file)
    if start.startswith(b"PK\x03\x04"):
        return open_zip(file)
    if start.startswith(b"\x80"):  # a pickle of protocol 2 or later
        return open_legacy(file)
    raise DataError(f"{file} is not a weight file: it begins with {start[:8]!r}; give {KNOWN}")


def _is_safetensors(start: bytes) -> bool:
    # The header's length in 8 bytes, then the header, which is JSON; the library takes none above 100 MB.
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= 100_000_000


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
