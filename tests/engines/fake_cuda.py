"""Lets imports find the stand-ins for the libraries that CUDA's driver is called through."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from fake_cuda_bindings import cuda_bindings
from fake_gpu import PYCUDA, FakeGpu
from fake_pycuda import pycuda


def install_cuda(monkeypatch: Any, gpu: FakeGpu) -> None:
    """Install the stand-in for cuda-bindings, and that for PyCUDA if it is the GPU's ``library``."""
    cuda, bindings = ModuleType("cuda"), cuda_bindings(gpu)
    cuda.bindings = bindings
    package = pycuda(gpu) if gpu.library == PYCUDA else None
    modules = {
        "cuda": cuda, "cuda.bindings": bindings, "cuda.bindings.driver": bindings.driver,
        "pycuda": package, "pycuda.driver": package and package.driver,  # None: it is not installed
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def uninstall(monkeypatch: Any, *libraries: str) -> None:
    """Let imports of the modules fail."""
    for name in libraries:
        monkeypatch.setitem(sys.modules, name, None)
