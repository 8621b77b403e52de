"""Arrays of other libraries in device memory: camera frames, torch tensors, CuPy arrays.

They are read through DLPack (``__dlpack__``, version 0 of its structure), else ``__cuda_array_interface__`` (versions 2
and 3). DLPack comes first because its producer makes our stream wait for its own; the other protocol names a stream
only in version 3. The memory is used in place; nothing is copied.

A producer uses the stream and device that are current in the calling thread, so call `device_array` in the thread that
made the array.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

DLPACK_CUDA, DLPACK_CUDA_MANAGED = 2, 13  # DLDeviceType
NO_STREAM = -1  # for `device_array` when only shape and type are wanted: DLPack's producer does not wait then
DLPACK_TYPES = {  # DLDataType: code and bits; numpy has no bfloat16, its bits are kept as uint16
    (0, 32): "int32", (0, 64): "int64", (2, 16): "float16", (2, 32): "float32", (4, 16): "uint16",
}


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array in device memory. ``stream`` is the handle of the stream whose work makes its content, where
    its owner names one; ``owner`` keeps the memory."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype
    stream: int | None
    owner: Any


@dataclass(frozen=True, eq=False)
class DeviceFrames:
    """Frames [F, ...] of an array of another library, whose shape may lack the first axis. A slice only moves the
    address: some libraries have no slices that are views."""

    array: Any
    shape: tuple[int, ...]
    first: int = 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, frames: slice) -> DeviceFrames:
        start, stop, _ = frames.indices(len(self))
        return replace(self, shape=(max(0, stop - start), *self.shape[1:]), first=self.first + start)


def is_device_array(value: Any) -> bool:
    """Whether it is an array in device memory, or frames of one."""
    if isinstance(value, np.ndarray):
        return False
    return isinstance(value, DeviceFrames) or _on_device(value) or _interface(value) is not None


def device_array(value: Any, stream: int) -> DeviceArray:
    """The array, or the frames of one, as it lies in device memory. ``stream`` is the handle of the stream that will
    read it.

    Raises `ValueError` for one that is not C-contiguous, on another GPU than the first, or of a type that the graphs do
    not have, and what its library raises (torch: `BufferError` for one that requires gradients).
    """
    if isinstance(value, DeviceFrames):
        whole = device_array(value.array, stream)
        offset = value.first * math.prod(value.shape[1:]) * whole.dtype.itemsize
        return replace(whole, address=whole.address + offset, shape=value.shape)
    if _on_device(value):
        return _from_dlpack(value, stream)
    interface = _interface(value)
    if interface is None:
        raise ValueError(f"{type(value).__name__} is not an array in device memory")
    return _from_interface(interface, value)


def _on_device(value: Any) -> bool:
    """Whether it has DLPack's methods and lies in device memory."""
    describe = getattr(value, "__dlpack_device__", None)
    return describe is not None and int(describe()[0]) in (DLPACK_CUDA, DLPACK_CUDA_MANAGED)


def _interface(value: Any) -> dict[str, Any] | None:
    try:
        return getattr(value, "__cuda_array_interface__", None)
    except (TypeError, RuntimeError):  # torch: the array lies elsewhere, or its type has no interface (bfloat16)
        return None


def _from_interface(interface: dict[str, Any], owner: Any) -> DeviceArray:
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    _check_contiguous(shape, strides, dtype.itemsize)
    if interface.get("mask") is not None:
        raise ValueError("a device array with a mask cannot be read")
    return DeviceArray(int(interface["data"][0]), shape, dtype, interface.get("stream"), owner)


def _check_contiguous(shape: tuple[int, ...], strides: Sequence[int] | None, step: int) -> None:
    """Raise `ValueError` unless ``strides`` are C-contiguous, the last one ``step``; None means that they are."""
    for extent, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if extent > 1 and stride != step:
            raise ValueError(f"a device array {list(shape)} of strides {strides} is not C-contiguous: make it so")
        step *= extent


class _Tensor(ctypes.Structure):
    """``DLTensor`` of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_dlpack(value: Any, stream: int) -> DeviceArray:
    capsule = value.__dlpack__(stream=stream)  # the producer lets our stream wait for its own
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    # DLManagedTensor begins with the tensor. The capsule is kept, not consumed: it frees the tensor when it goes.
    tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
    name = DLPACK_TYPES.get((tensor.code, tensor.bits))
    if name is None or tensor.lanes != 1:
        raise ValueError(f"a device array of DLPack type {tensor.code} with {tensor.bits} bits cannot be read")
    if tensor.device_id:
        raise ValueError(f"a device array on GPU {tensor.device_id} cannot be read: engines run on GPU 0")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    _check_contiguous(shape, tensor.strides[: tensor.ndim] if tensor.strides else None, 1)
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, np.dtype(name), None, (value, capsule))
