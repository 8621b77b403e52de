"""Arrays of any library as numpy arrays. What lies in device memory is copied by its own library, which knows the
stream, the strides and the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamingo_rt.errors import DataError

DLPACK_HOST = (1, 3)  # DLDeviceType: the CPU's memory, and that of it which is pinned for CUDA
COPIES = ("cpu", "get", "copy_to_host")  # methods of torch; of CuPy and PyCUDA; of numba


def host_array(value: Any, label: str) -> np.ndarray:
    """The array in host memory: as it is where it lies there, else a copy. Call it in the thread that gave the array:
    a library copies behind what was put on the stream that is current there.

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
            return np.from_dlpack(copy())  # numpy's own of most, a tensor of torch
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):  # JAX
        return np.asarray(value)
    raise DataError(
        f"{label} has none of the methods that copy an array to the host ({', '.join(COPIES)}): give a numpy array "
        "(jetson-utils: cudaToNumpy)"
    )
