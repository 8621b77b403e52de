"""Files of ``torch.save``: state dicts, alone or in a training checkpoint. No code of theirs is run.

Values are read from the places that PyTorch notes while it loads a file without them (`_checkpoint_offset`), where that
can be checked against the zip directory. ``torch.load(mmap=True)`` serves the other files: whatever is read of a mapped
file stays in resident memory as long as it is open.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import re
import tarfile
import warnings
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable
from flamingo_rt.weights.archive import PICKLE, Archive, open_archive
from flamingo_rt.weights.flattening import flattened, unwrapped
from flamingo_rt.weights.lazy import LazyTensor
from flamingo_rt.weights.pickle_scan import PickleScan
from flamingo_rt.weights.regions import AGAIN
from flamingo_rt.weights.torchscript import open_torchscript

LEGACY_PICKLES = 5  # magic number, version, machine, content, names of the storages; then the values
PLAIN = "save its weights as a plain state dict or as safetensors"


def open_zip(file: Path) -> dict[str, LazyTensor]:
    """Tensors of a file in PyTorch's zip format or of a TorchScript archive, by name, with nothing read yet.

    Raises `DataError` when the file is damaged or would run code.
    """
    archive = open_archive(file)
    if archive.is_torchscript:
        return open_torchscript(archive)
    _check_pickles(file, io.BytesIO(archive.content(PICKLE)), PickleScan(), 1)
    tensors = _open_lazily(archive)
    # A map reads compressed records as they are, so torch may make one only when there are none.
    return tensors if tensors is not None else _open_whole(file, mmap=not archive.compressed)


def open_legacy(file: Path) -> dict[str, LazyTensor]:
    """Tensors of a file from before PyTorch 1.6, by name. The whole file is read and kept in memory.

    Raises `DataError` when the file is damaged or would run code.
    """
    if tarfile.is_tarfile(file):  # torch would unpack it, whatever else it looks like
        raise DataError(f"{file} is a tar file, as PyTorch wrote before 0.4: {PLAIN}")
    # Reading from a map ends with the file, whatever length an opcode states.
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _check_pickles(file, content, PickleScan(most_values=len(content)), LEGACY_PICKLES)
    return _open_whole(file, mmap=False)


def _check_pickles(file: Path, content: BinaryIO | mmap.mmap, scan: PickleScan, count: int) -> None:
    """Scan ``count`` pickles at the beginning of ``content`` for anything that takes unlimited memory or time."""
    try:
        for _ in range(count):
            scan.scan(content)
            if not content.read(1):
                break
            content.seek(-1, os.SEEK_CUR)
    except (ValueError, OverflowError) as error:
        reason = printable(str(error))[:200]
        raise DataError(f"cannot read {file}: its pickle is damaged or cut short ({reason}); {AGAIN}") from error


def _open_lazily(archive: Archive) -> dict[str, LazyTensor] | None:
    """The tensors by their place in the file, or None when torch itself has to read it.

    On the meta device torch loads no values, and notes at each storage where in the file they are, in an attribute that
    is private: without it, as with any place that is not in the zip directory, torch reads the whole file. It computes
    the places from the order in which it writes files itself, so those of another writer are checked first.
    """
    storages = {name: region for name, region in archive.regions.items() if name.startswith("data/")}
    if ".format_version" in archive.regions and list(storages) != [f"data/{key}" for key in range(len(storages))]:
        return None
    if archive.compressed or not archive.is_native:
        return None
    try:
        tensors = _load(archive.file, "meta", mmap=False)
    except Exception:  # quantized tensors, for instance; where the file is to blame, reading it whole says so
        return None
    regions = {region.offset: region for region in storages.values() if region.nbytes}
    found = {}
    for name, tensor in tensors.items():
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
            return None
        if tensor.is_conj() or tensor.is_neg():  # a flag that stands for values other than the file's
            return None
        storage = tensor.untyped_storage()
        offset: int | None = getattr(storage, "_checkpoint_offset", None)
        region = None if offset is None else regions.get(offset)
        if region is None or region.nbytes != storage.nbytes():
            if tensor.numel():
                return None
            region = archive.regions["data.pkl"]  # any will do: nothing is read
        found[name] = region.tensor(name, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()))
    return found


def _open_whole(file: Path, mmap: bool) -> dict[str, LazyTensor]:
    try:
        tensors = _load(file, "cpu", mmap)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise _refused(file, str(error)) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"cannot read {file}: damaged or cut short ({_brief(str(error))}); {AGAIN}") from error
    return {
        name: LazyTensor(tuple(tensor.shape), tensor.dtype, file, partial(_copied, file, name, tensor), name)
        for name, tensor in tensors.items()
    }


def _load(file: Path, device: str, mmap: bool) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about how the file was written
        content = torch.load(file, map_location=device, weights_only=True, mmap=mmap)
    return flattened(unwrapped(content), Tensor)


def _copied(file: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided:
        raise DataError(f"{file}: tensor {name} is {tensor.layout}, only dense ones are read: {PLAIN}, made dense")
    return tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _refused(file: Path, message: str) -> DataError:
    """The gist of torch's long message, without its advice to load the file regardless."""
    code = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", message)
    if code:
        return DataError(f"{file} wants to run code ({code[1]}) when it is loaded, so it was not loaded: {PLAIN}")
    reason = _brief(message.partition("WeightsUnpickler error:")[2] or message)
    return DataError(
        f"{file} holds a pickle that is damaged or more than weights ({reason}), and could run code, "
        f"so it was not loaded: copy it again, or {PLAIN}"
    )


def _brief(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0][:200] if lines else "no reason given"
