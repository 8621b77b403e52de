"""The stand-ins for cuda-bindings and PyCUDA beside the real libraries, and `Cuda` through these, over a driver in C on
the host's memory. No GPU is needed; a library that is not installed is skipped."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fake_cuda_bindings
import fake_pycuda
import pytest
from fake_cuda_bindings import cuda_bindings
from fake_gpu import CUDA_BINDINGS, LIBRARIES, PYCUDA, FakeGpu

HERE = Path(__file__).parent
EVERY_CALL = """
import ctypes
from cuda_calls import CALLS
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.engines.gpu.nvidia_driver import find_gpu
gpu, cuda = find_gpu(), Cuda()
assert (gpu.name, gpu.capability, gpu.integrated) == ("On the host", "8.6", False), gpu
for call in CALLS:
    call(cuda)
with cuda.current():
    assert cuda.free_bytes() == gpu.memory_bytes, "device memory is not freed"
library = cuda.library
del cuda
driver = ctypes.CDLL("libcuda.so.1")
assert (driver.objects_held(), driver.contexts_retained()) == (0, 0), driver.objects_held()
print(library)
"""
START = """
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.errors import DependencyError
try:
    Cuda()
except DependencyError as error:
    print(error)
"""
PYCUDAS_DOCUMENTATION = """
import json, pycuda, pycuda.driver as driver
from fake_pycuda import CLASSES, FUNCTIONS
documentation = {name: getattr(driver, name).__doc__ for name in FUNCTIONS}
for kind in CLASSES:
    real = getattr(driver, kind.__name__)
    for name in dict.fromkeys((*(each for each in vars(kind) if each[0] != "_"), "__init__", "__call__")):
        if name in vars(kind):
            documentation[f"{kind.__name__}.{name}"] = getattr(real, name).__doc__ or ""
print(json.dumps({
    "documentation": documentation, "version": pycuda.VERSION_TEXT, "get_version": driver.get_version(),
    "numbers": [int(each) for each in (
        driver.device_attribute.INTEGRATED, driver.device_attribute.COMPUTE_CAPABILITY_MAJOR,
        driver.device_attribute.COMPUTE_CAPABILITY_MINOR, driver.event_flags.DEFAULT,
        driver.event_flags.DISABLE_TIMING)],
    "errors": [issubclass(getattr(driver, name), driver.Error) for name in (
        "MemoryError", "LogicError", "LaunchError", "RuntimeError")],
}))
"""


@pytest.fixture(scope="module")
def host_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the driver, compiled. Functions of PyCUDA's extension that it lacks are there, and fail."""
    compiler = shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("gcc, on Linux, compiles the driver")
    folder = tmp_path_factory.mktemp("driver")
    others = folder / "others.c"
    others.write_text("".join(
        f"__attribute__((weak)) int {name}(void) {{ return 801; }}\n" for name in sorted(_symbols_of_pycuda())
    ))
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", HERE / "libcuda_on_host.c", others], check=True
    )
    return folder


def _symbols_of_pycuda() -> set[str]:
    package = importlib.util.find_spec("pycuda")
    nm = shutil.which("nm")
    if package is None or package.origin is None or nm is None:
        return set()
    symbols: set[str] = set()
    for extension in Path(package.origin).parent.glob("_driver*.so"):
        printed = subprocess.run([nm, "-D", "--undefined-only", extension], capture_output=True, text=True, check=True)
        symbols |= set(re.findall(r" U (cu[A-Z]\w*)", printed.stdout))
    return symbols


def _needs(library: str) -> None:
    try:
        found = importlib.util.find_spec({PYCUDA: "pycuda", CUDA_BINDINGS: "cuda.bindings"}[library])
    except ImportError:
        found = None
    if found is None:
        pytest.skip(f"{library} is not installed")


def _printed(code: str, driver: Path, library: str, **variables: str) -> str:
    """The last line that ``code`` prints in a process of its own, where the driver and no library but this are found.
    """
    _needs(library)
    hidden = "pycuda" if library == CUDA_BINDINGS else "nothing"
    paths = [HERE, HERE.parent, HERE.parent.parent, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    libraries = [driver, *os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.modules[{hidden!r}] = None\n{code}"], capture_output=True, text=True,
        env={**os.environ, **variables, "PYTHONPATH": _joined(paths), "LD_LIBRARY_PATH": _joined(libraries)},
    )
    assert done.returncode == 0, done.stderr
    assert "PyCUDA WARNING" not in done.stderr
    assert "could not be cleaned up" not in done.stderr
    return done.stdout.strip().splitlines()[-1]


def _joined(paths: list) -> str:
    return os.pathsep.join(str(path) for path in paths if path)


def test_the_stand_in_for_cuda_bindings_has_the_real_names_and_arguments() -> None:
    real = pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)
    stand_in = cuda_bindings(FakeGpu()).driver
    for name in (*fake_cuda_bindings.FUNCTIONS, "cuMemcpy2DAsync"):
        expected, found = (list(inspect.signature(getattr(each, name)).parameters) for each in (real, stand_in))
        assert found == expected, name
    for name in fake_cuda_bindings.Memcpy2D.__slots__:
        assert hasattr(real.CUDA_MEMCPY2D, name), name
    for kind in ("CUresult", "CUstreamCaptureMode", "CUmemorytype", "CUevent_flags", "CUdevice_attribute"):
        for member in getattr(stand_in, kind):
            assert int(getattr(getattr(real, kind), member.name)) == int(member), member
    assert real.CUDA_VERSION >= 12000
    assert int(real.CUstream(7)) == 7


def test_the_stand_in_for_pycuda_has_the_real_names_and_arguments(host_driver) -> None:
    real = json.loads(_printed(PYCUDAS_DOCUMENTATION, host_driver, PYCUDA))
    assert real["numbers"] == [18, 75, 76, 0, 2]
    assert all(real["errors"])
    assert len(real["get_version"]) == 3
    assert real["version"]
    stand_in = fake_pycuda.pycuda(FakeGpu()).driver
    for name, documentation in real["documentation"].items():
        owner, _, method = name.rpartition(".")
        member = getattr(getattr(stand_in, owner) if owner else stand_in, method)
        if not callable(member) or not documentation or "cannot be instantiated" in documentation:
            continue
        found = list(inspect.signature(member).parameters)
        assert any(_takes(expected, found) for expected in _signatures(documentation)), (name, found, documentation)


def _signatures(documentation: str) -> list[list[str]]:
    """The arguments of each overload that Boost.Python documents, such as ``(int)dest, (object)src``."""
    return [re.findall(r"\(\w+\)(\w+)", line) for line in documentation.splitlines() if "->" in line]


def _takes(expected: list[str], found: list[str]) -> bool:
    """Whether these arguments can be given by position. A method of an instance has itself in ``expected`` alone, and
    arguments without a name are called ``arg1``, ``arg2``."""
    for first in (0, 1):
        rest = expected[first:]
        if len(found) <= len(rest) and all(
            one == other or re.fullmatch(r"arg\d+", other) for one, other in zip(found, rest, strict=False)
        ):
            return True
    return False


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_call_works_through_the_real_library(library, host_driver) -> None:
    assert _printed(EVERY_CALL, host_driver, library).lower().startswith(library)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_real_library_finds_no_gpu_where_the_driver_shows_none(library, host_driver) -> None:
    printed = _printed(START, host_driver, library, NO_GPU="1")
    assert re.match(r"CUDA finds no GPU \(cuInit failed: .*\): look at nvidia-smi and CUDA_VISIBLE_DEVICES", printed)


@pytest.mark.parametrize("function", ["cuInit", "cuDevicePrimaryCtxRetain"])
def test_a_driver_that_lacks_a_function_of_the_real_library_says_to_update(function, host_driver) -> None:
    """The driver in C is of CUDA 12.2. PyCUDA's extension would not be imported."""
    printed = _printed(START, host_driver, CUDA_BINDINGS, MISSING_FUNCTION=function)
    assert f"{function} failed: " in printed
    assert re.search("the driver has CUDA 12.2, .*: update it|update the driver|nvidia-smi", printed)
