"""Tensors of TorchScript archives, in which CLIP's weights were first published.

Such an archive is a program, and ``torch.jit.load`` would compile and run parts of it: so this reader is our own. It
reads ``data.pkl`` alone, by an unpickler that knows tensors and takes every module as a dictionary of its attributes.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass

import torch

from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable
from flamingo_rt.weights.archive import PICKLE, Archive
from flamingo_rt.weights.flattening import MOST_NAME, flattened
from flamingo_rt.weights.lazy import LazyTensor
from flamingo_rt.weights.pickle_scan import PickleScan
from flamingo_rt.weights.regions import AGAIN, Region

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


def open_torchscript(archive: Archive) -> dict[str, LazyTensor]:
    """Tensors among the attributes of the archive's modules, buffers of any kind included, by their dotted names.

    Raises `DataError` when the archive is damaged or its ``data.pkl`` asks for anything but tensors and modules.
    """
    file = archive.file
    if not archive.is_native:
        raise DataError(f"{file} was written on a machine of the other byte order: convert it to safetensors there")
    content = archive.content(PICKLE)
    try:
        PickleScan().scan(io.BytesIO(content))
        tensors = flattened(_Unpickler(content, archive).load(), _Tensor)
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        reason = printable(str(error))[:200]
        raise DataError(f"cannot read {file}: its {PICKLE} is damaged ({reason}); {AGAIN}") from error
    return {
        name: tensor.region.tensor(name, tensor.dtype, tensor.shape, tensor.strides, tensor.first)
        for name, tensor in tensors.items()
    }


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


@dataclass(frozen=True)
class _Tensor:
    region: Region
    dtype: torch.dtype
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Module(dict):
    """A module of the program, of whatever class: a dictionary of its attributes."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):  # other states have no attributes
            self.update(state)


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage: tuple, first: int, shape: tuple, strides: tuple, *_: object) -> _Tensor:
        region, dtype = storage
        return _Tensor(region, dtype, first, tuple(shape), tuple(strides))


class _First:
    """Stand-in for functions whose result is their first argument."""

    __slots__ = ()

    def __call__(self, value: object, *_: object) -> object:
        return value


# Stand-ins for the functions that an archive may name. None is torch's own: a pickle can reach nothing that does more
# than the code above, and gets new instances each time, so it cannot change them for later either.
STAND_INS = {
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor,
    ("torch._utils", "_rebuild_parameter"): _First,
    ("torch", "device"): _First,
    **{
        ("torch.jit._pickle", name): _First
        for name in (
            "build_intlist",
            "build_tensorlist",
            "build_doublelist",
            "build_boollist",
            "build_tensor_from_id",
            "restore_type_tag",
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, archive: Archive) -> None:
        super().__init__(io.BytesIO(content))
        self.archive = archive

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in STAND_INS:
            return STAND_INS[module, name]()
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return _StorageType(STORAGES[name])
        if module.split(".")[0] == "__torch__":
            return type(name.rpartition(".")[2], (_Module,), {})
        raise DataError(
            f"{self.archive.file} wants to run code ({module}.{name}) when it is read, so it was not read: "
            "save its weights as a plain state dict or as safetensors"
        )

    def persistent_load(self, key: tuple) -> tuple[Region, torch.dtype]:
        kind, storage_type, record, *_ = key
        # A record that is not a text may be far longer when printed than it is in the pickle.
        named = isinstance(record, str) and len(record) <= MOST_NAME
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not named:
            raise DataError(f"cannot read {self.archive.file}: it refers to something that is not a storage; {AGAIN}")
        for name in (f"data/{record}", f"constants/{record}"):
            if name in self.archive.regions:
                return self.archive.regions[name], storage_type.dtype
            if name in self.archive.compressed:
                raise DataError(f"{self.archive.file} is compressed: unpack it and zip it again with zip -0")
        raise DataError(f"cannot read {self.archive.file}: it lacks data/{record}; {AGAIN}")
