"""Arrays of any library as numpy arrays. Arrays in device memory are copied by their own library, which knows the
stream, the strides and the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamingo_rt.errors import DataError

DLPACK_HOST = (1, 3)  # DLDeviceType: CPU memory, and CPU memory pinned for CUDA
COPIES = ("cpu", "get", "copy_to_host")  # methods of torch; of CuPy and PyCUDA; of numba


def host_array(value: Any, label: str) -> np.ndarray:
    """The array in host memory: itself if it is there already, else a copy. Call it in the thread that made the array:
    a library orders its copy after the work on that thread's current stream.

    Raises `DataError` when it cannot be read or copied; ``label`` is its name in the message.
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.from_dlpack(value) if _in_host_memory(value) else _copy(value, label)
    except DataError:
        raise
    except Exception as error:  # libraries raise anything at all: for gradients, types numpy lacks, a lost GPU
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{label} cannot be read: {reason}; give it as a numpy array") from error


def _in_host_memory(value: Any) -> bool:
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in DLPACK_HOST


def _copy(value: Any, label: str) -> np.ndarray:
    for name in COPIES:
        copy = getattr(value, name, None)
        if callable(copy):
            return np.from_dlpack(copy())  # numpy arrays from most libraries, a tensor from torch
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):  # JAX
        return np.asarray(value)
    raise DataError(
        f"{label} has none of the methods that copy an array to the host ({', '.join(COPIES)}): give a numpy array "
        "(jetson-utils: cudaToNumpy)"
    )
