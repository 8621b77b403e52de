"""``flamingo-rt doctor``."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable
from functools import partial

import click

from flamingo_rt import __version__
from flamingo_rt.cli.module_places import places
from flamingo_rt.cores import core_count
from flamingo_rt.errors import DataError, DependencyError, FlamingoError

# Distribution -> what it is for.
LIBRARIES = {
    "numpy": "always",
    "Pillow": "always",
    "opencv-python-headless": "clips and training",
    "av": "clips, all kinds of them; extra video",
    "tokenizers": "always",
    "onnxruntime": "backend ort, extra cpu",
    "onnxruntime-gpu": "backends ort and ort-cuda, extra gpu",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13": "backend ort-tensorrt-rtx, extra gpu-rtx",
    "tensorrt": "build for TensorRT, extra tensorrt",
    "tensorrt-rtx-cu13": "build for TensorRT-RTX, extra tensorrt-rtx",
    "pycuda": "all backends on GPUs, extra cuda",
    "cuda-bindings": "CUDA graphs, extra cuda",
    "torch": "backend torch, extras export and train",
    "onnx": "extra export",
    "onnxscript": "extra export",
    "safetensors": "extras export and train",
    "scikit-learn": "extras export and train",
    "matplotlib": "charts of bench, extra bench",
}
# Other distributions of the same module; a system's own may have no record of any.
OTHER_DISTRIBUTIONS = {
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python", "opencv"),
}
MODULES = {"opencv-python-headless": "cv2", "tensorrt": "tensorrt"}  # that a system may bring: JetPack does


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(as_json: bool) -> None:
    """Show what is installed, and which backends work here and why the others don't.

    A backend counts as working once it has computed something. A builder of engines is shown with the lowering that its
    version needs and the GPUs that it builds for. With --json, lowerings are the forms of graphs to export for it, the
    best first.

    \b
    Example:
      flamingo-rt doctor
    """
    libraries = {name: _found(name) for name in LIBRARIES}
    backends = {
        "ort": _try(_try_ort, _cpu_lowerings),
        **{name: _try(partial(_try_ort_gpu, name), partial(_provider_lowerings, name))
           for name in ("ort-cuda", "ort-tensorrt-rtx")},
        "tensorrt": _try(_try_tensorrt),
        "torch": _try(_try_torch),
    }
    warnings = _warnings(libraries)
    builders = {
        target: _try(partial(_try_builder, target), partial(_builder_lowerings, target))
        for target in ("tensorrt", "tensorrt-rtx")
    }
    cuda = _try(_try_cuda)
    system = {
        "flamingo-rt": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": core_count(),
    }
    if as_json:
        click.echo(json.dumps(
            {"system": system, "libraries": libraries, "backends": backends, "builders": builders, "cuda": cuda,
             "warnings": warnings}
        ))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    table = Table("", "", title="This machine", show_header=False, title_justify="left")
    for name, value in system.items():
        table.add_row(name, str(value))
    console.print(table)
    names = Column("library", min_width=max(map(len, libraries)), overflow="fold")  # they have no spaces to break at
    table = Table(names, Column("version", overflow="fold"), "needed for", title="Libraries", title_justify="left")
    for name, version in libraries.items():
        table.add_row(name, version or "[dim]not installed[/]", LIBRARIES[name])
    console.print(table)
    for warning in warnings:
        console.print(f"[yellow]{escape(warning)}[/]")
    for title, states in (("Backends", backends), ("Builders of engines", builders), ("Devices", {"CUDA": cuda})):
        table = Table(title.split()[0].lower().rstrip("s"), "works", "", title=title, title_justify="left")
        for name, state in states.items():
            table.add_row(name, "[green]yes[/]" if state["works"] else "[red]no[/]", escape(str(state["detail"])))
        console.print(table)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _found(distribution: str) -> str | None:
    """The version of a library, with the name of another distribution that brings it, or the place of its module."""
    version = _version(distribution)
    if version is not None:
        return version
    for other in OTHER_DISTRIBUTIONS.get(distribution, ()):
        version = _version(other)
        if version is not None:
            return f"{version} ({other})"
    found = places(MODULES[distribution]) if distribution in MODULES else []
    return f"in {found[0]}" if found else None


def _warnings(libraries: dict[str, str | None]) -> list[str]:
    """Warnings about libraries that do not work beside each other, or hide each other."""
    warnings = []
    if libraries.get("onnxruntime") and libraries.get("onnxruntime-gpu"):
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other's files: pip uninstall "
            "onnxruntime onnxruntime-gpu, then install one of them"
        )
    for distribution, module in MODULES.items():
        found = places(module)
        if len(found) > 1:
            warnings.append(
                f"the {module} in {found[0]} hides another one in {found[1]}: pip uninstall {distribution} leaves the "
                "system's, such as JetPack's"
            )
    return warnings


def _try(check: Callable[[], str], lowerings: Callable[[], tuple[str, ...]] | None = None) -> dict[str, object]:
    """Whether a check succeeds, with what it says, and the lowerings of what runs or builds graphs."""
    try:
        return {"works": True, "detail": check(), **({"lowerings": list(lowerings())} if lowerings else {})}
    except FlamingoError as error:
        return {"works": False, "detail": str(error)}
    except ImportError as error:
        return {"works": False, "detail": f"{error}: pip install 'flamingo-rt[export]'"}
    except Exception as error:  # a broken installation can fail in any way; report it, that is this command's job
        return {"works": False, "detail": f"{type(error).__name__}: {error}"}


def _try_ort() -> str:
    """Answer a text prompt with the packaged bundle."""
    from flamingo_rt.engines.ort import import_onnxruntime
    from flamingo_rt.loading import load

    runtime = import_onnxruntime()
    load(backend="ort").generate("Output:", max_new_tokens=1).result()
    return f"onnxruntime {runtime.__version__}, CPU; runs bundles"


def _cpu_lowerings() -> tuple[str, ...]:
    from flamingo_rt.contract import CACHE_FORMS

    return tuple(CACHE_FORMS)


def _provider_lowerings(backend: str) -> tuple[str, ...]:
    from flamingo_rt.engines.ort_gpu import PROVIDERS

    return PROVIDERS[backend].lowerings


def _builder_lowerings(target: str) -> tuple[str, ...]:
    from flamingo_rt.engines.tensorrt.versions import import_tensorrt

    return import_tensorrt(target).lowerings


def _try_ort_gpu(backend: str) -> str:
    """Multiply two matrices on the GPU."""
    import tempfile
    from pathlib import Path

    import numpy as np

    from flamingo_rt.engines.gpu.cuda import Cuda
    from flamingo_rt.engines.matmul_graph import matmul_graph
    from flamingo_rt.engines.ort_gpu import PROVIDERS

    provider = PROVIDERS[backend]()
    cuda, matrix = Cuda(), np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder, cuda.current():
        path = Path(folder) / "product.onnx"
        path.write_bytes(matmul_graph(len(matrix), weight=matrix))
        product = provider.open(path, cuda.stream).run(None, {"x": matrix})[0]
    if not np.allclose(product, matrix @ matrix, atol=1e-3):
        raise RuntimeError("a product of two matrices came out wrong")
    runs = f"runs bundles of {' and '.join(provider.lowerings)}"
    return f"onnxruntime {provider.runtime.__version__}, {provider.title}, {cuda.device_name}; {runs}"


def _try_tensorrt() -> str:
    """Multiply two matrices on the GPU, with whichever TensorRT is installed."""
    from flamingo_rt.engines.gpu.cuda import Cuda
    from flamingo_rt.engines.gpu.device_probe import DeviceProbe
    from flamingo_rt.engines.gpu.nvidia_driver import required_gpu
    from flamingo_rt.engines.tensorrt.versions import TENSORRT, TENSORRT_RTX, import_tensorrt

    required_gpu("tensorrt")
    try:
        runtime = import_tensorrt(TENSORRT)
    except DependencyError as error:
        try:
            runtime = import_tensorrt(TENSORRT_RTX)
        except DependencyError:
            raise error from None
    cuda = Cuda()
    with DeviceProbe(cuda, runtime, "float16") as probe:
        rate, how = probe.products()
    if rate is None:
        raise RuntimeError(how)
    return f"{runtime.title}, {cuda.device_name}; runs the engines that flamingo-rt build puts into a bundle"


def _try_cuda() -> str:
    """Copy numbers to the GPU and back through PyCUDA, which every backend on a GPU needs."""
    import numpy as np

    from flamingo_rt.engines.gpu.cuda import Cuda, import_cuda_graphs

    cuda = Cuda()
    sent, received = np.arange(64, dtype=np.float32), np.zeros(64, dtype=np.float32)
    with cuda.current():
        memory = cuda.allocate(sent.nbytes, "a test")
        cuda.upload(memory.address, sent)
        cuda.download(received, memory.address)
        cuda.synchronize()
    if not np.array_equal(sent, received):
        raise RuntimeError("numbers that were copied to the GPU came back changed")
    graphs = "CUDA graphs" if import_cuda_graphs() else "no CUDA graphs: cuda-bindings is not installed"
    return f"{cuda.device_name} through PyCUDA, {graphs}"


def _try_torch() -> str:
    """Multiply two matrices, and import what reads checkpoints."""
    import safetensors
    import torch

    if torch.ones(2, 2).matmul(torch.ones(2, 2)).sum() != 8:
        raise RuntimeError("a product of two matrices came out wrong")
    return f"torch {torch.__version__}, CPU, safetensors {safetensors.__version__}; runs checkpoints"


def _try_builder(target: str) -> str:
    """Find the lowering that the installed version needs, and the GPUs it builds for here."""
    from flamingo_rt.engines.gpu.nvidia_driver import find_gpu
    from flamingo_rt.engines.tensorrt.versions import import_tensorrt

    runtime, gpu = import_tensorrt(target), find_gpu()
    known = [f"{number[:-1]}.{number[-1]}" for number in runtime.capabilities()] if runtime.ahead_of_time else []
    if gpu is None and not known:
        raise DataError(f"{runtime.title}: there is no NVIDIA GPU with a driver here; build on the device")
    here = f"{gpu.name} (compute capability {gpu.capability})" if gpu else "no GPU here"
    ahead = f"; ahead of time for compute capabilities {', '.join(known)}" if known else ""
    return f"{runtime.title}, builds graphs exported with --lowering {runtime.lowerings[0]}; {here}{ahead}"
