"""What is here: GPU, driver, libraries, which backends can run, and how fast the GPU moves its memory.

    python -m benchmarks.gpu_parts.facts [--peer-python FILE]

Its last row is ``available``: by backend or target of engines, the lowerings that it runs, or why it does not run.
"""

from __future__ import annotations

import argparse
import subprocess
from typing import Any

from benchmarks.gpu_parts.rows import reporting, tell
from flamingo_rt.bench.machine import describe_machine
from flamingo_rt.bench.units import scaled
from flamingo_rt.child_process import child_environment
from flamingo_rt.contract import CACHE_FORMS
from flamingo_rt.engines.execution_providers import PROVIDERS
from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.engines.gpu.device_probe import DeviceProbe
from flamingo_rt.engines.gpu.nvidia_driver import find_gpu
from flamingo_rt.engines.tensorrt.versions import MODULES, import_tensorrt
from flamingo_rt.errors import FlamingoError

IMPORT_PEER = "import sys; sys.path[:] = filter(None, sys.path); import open_flamingo, torch"


def describe() -> None:
    """Rows of the machine."""
    machine, gpu = describe_machine(), find_gpu()
    tell("processor", f"{machine.cpu}, {machine.cores} cores")
    if gpu is None:
        tell("GPU", "none: no NVIDIA driver, or no GPU")
    else:
        tell("GPU", f"{gpu.name}, compute capability {gpu.capability}, {scaled(gpu.memory_bytes, 'B')}")
    for each in machine.gpus or ():
        limit = f", power limit {each.power_limit:.0f} W" if each.power_limit else ""
        tell("driver, clocks", f"{each.driver}, SM {each.sm_clock} MHz, memory {each.memory_clock} MHz{limit}")
    tell("libraries", ", ".join(f"{name} {version}" for name, version in machine.libraries.items() if version))


def bandwidth() -> float | None:
    """Bytes per second, read and written, of copies within the GPU; by PyTorch where there is no PyCUDA."""
    try:
        rate, how = DeviceProbe(Cuda(), None, "float16").bandwidth()
    except FlamingoError as error:
        rate, how = copied_by_torch(str(error))
    if rate is None:
        tell("memory of the GPU", "not measured", note=how)
    else:
        tell("memory of the GPU", round(rate / 1e9, 1), "GB/s", key="bandwidth", note=how)
    return rate


def copied_by_torch(why_not_ours: str) -> tuple[float | None, str]:
    """The same through PyTorch; ``why_not_ours`` is said where it has no CUDA either."""
    try:
        import torch
    except ImportError:
        return None, why_not_ours
    if not torch.cuda.is_available():
        return None, f"{why_not_ours}; PyTorch {torch.__version__} has no CUDA here"
    source = torch.zeros(1 << 28, dtype=torch.uint8, device="cuda")
    target, best = torch.empty_like(source), 0.0
    for _ in range(4):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(8):
            target.copy_(source)
        end.record()
        end.synchronize()
        best = max(best, 16 * source.nbytes / start.elapsed_time(end) * 1e3)
    return best, f"copies by PyTorch {torch.__version__}, read and written ({why_not_ours})"


def available() -> dict[str, Any]:
    """By target of engines and by backend: the lowerings, the best first, or why there are none."""
    found: dict[str, Any] = {"ort": list(CACHE_FORMS)}
    for target in MODULES:
        try:
            found[target] = list(import_tensorrt(target).lowerings)
            Cuda()
        except FlamingoError as error:
            found[target] = str(error)
    for backend, provider in PROVIDERS.items():
        try:
            found[backend] = list(provider().lowerings)
            Cuda()
        except FlamingoError as error:
            found[backend] = str(error)
    return found


def peer(python: str) -> str:
    """Why the peer cannot run; nothing where it can."""
    try:
        done = subprocess.run(
            [python, "-c", IMPORT_PEER], capture_output=True, text=True,
            env=child_environment({"PYTHONSAFEPATH": "1"}),  # which Python 3.10 does not know
        )
    except OSError as error:
        return f"{python}: {error.strerror}"
    return "" if done.returncode == 0 else f"{python}: {(done.stderr.strip().splitlines() or ['it fails'])[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", metavar="FILE")
    options = parser.parse_args()
    with reporting():
        describe()
        bandwidth()
        gpu = find_gpu()
        tell("backends", "see the result file", key="available", available=available(),
             gpu=None if gpu is None else gpu.name,
             peer=peer(options.peer_python) if options.peer_python else "no --peer-python")


if __name__ == "__main__":
    main()
