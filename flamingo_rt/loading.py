"""Opening a model: from a bundle or a checkpoint, with the backend that fits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flamingo_rt.backend import Backend
from flamingo_rt.bundle import MANIFEST, Bundle, is_bundle, read_bundle
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import CACHE_FORMS, GRAPHS, IN_PLACE, LANGUAGE_MODEL
from flamingo_rt.engines.tensorrt.local_builds import EngineTrust
from flamingo_rt.errors import DataError, DependencyError, FlamingoError, UsageError
from flamingo_rt.memory_plan import GPU, JETSON, Workload, require_plan, stored_weights
from flamingo_rt.printable import printable
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.runtime.model import Model
from flamingo_rt.runtime.visual_encoder import DEFAULT_BYTES
from flamingo_rt.step_costs import StepCosts
from flamingo_rt.system_memory import available_bytes

if TYPE_CHECKING:
    from flamingo_rt.engines.gpu.nvidia_driver import Gpu
    from flamingo_rt.engines.tensorrt.engine_files import EngineFolder

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "ort", "ort-cuda", "ort-tensorrt-rtx", "tensorrt", "torch")
PACKAGED_BUNDLE = Path(__file__).parent / "models" / "tiny"


def load(
    path: str | os.PathLike | None = None, backend: str = "auto", threads: int | None = None,
    image_cache_bytes: int = DEFAULT_BYTES, spin: bool = True, trust_engines: bool = False,
    allow_host_code: bool = False, workload: Workload | None = None,
) -> Model:
    """Open a model.

    ``path`` is a bundle or a checkpoint folder; by default the bundle in this package. ``backend``: ``ort`` runs a
    bundle on ONNX Runtime's CPU kernels, ``ort-cuda`` on its CUDA kernels, ``ort-tensorrt-rtx`` on TensorRT-RTX as its
    plugin, ``tensorrt`` the engines that ``flamingo-rt build`` put into it, on a GPU, ``torch`` runs a checkpoint in
    PyTorch. ``auto`` takes the first that runs here: engines, if the bundle has any; ``ort-cuda``, if the installed
    onnxruntime has CUDA; the CPU. The choice is logged at level INFO, and as a WARNING with the reasons where a faster
    backend was passed over.

    ``threads`` is the number of cores for one operator of ``ort``. ``image_cache_bytes`` bounds the media kept of
    visuals that were encoded, for when they come again; 0 keeps none. Without ``spin``, waiting threads of ``ort``
    leave the cores to other work at once; a token may take longer.

    Engines are code. Engines that this user built on this machine are used; others need ``trust_engines``, and
    version-compatible engines, which bring a runtime that runs on the host, need ``allow_host_code`` as well.

    ``workload`` is the largest batch that the model is loaded for, by default one row with a picture. Where the memory
    does not hold that beside the weights, a bundle is not loaded.

    Raises `UsageError` for an unknown backend or one that does not fit, `DataError` for a damaged folder and too little
    memory, and `DependencyError` when the backend's library is missing.
    """
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    trust = EngineTrust(trust_engines, allow_host_code)
    folder = PACKAGED_BUNDLE if path is None else Path(path)
    if not folder.exists():
        raise DataError(f"there is no model at {folder}: give a bundle written by flamingo-rt export, or a checkpoint")
    if is_bundle(folder):
        if backend == "torch":
            raise UsageError(
                f"{folder} is a bundle and the torch backend runs a checkpoint: give the checkpoint it was exported "
                "from, or take --backend ort"
            )
        bundle = read_bundle(folder)
        wanted = _within_limits(workload or Workload(), bundle.config)
        return _from_bundle(bundle, backend, threads, image_cache_bytes, spin, trust, wanted)
    if (folder / "config.json").is_file():
        if backend not in ("auto", "torch"):
            raise UsageError(
                f"{folder} is a checkpoint and the {backend} backend runs a bundle: make one with "
                f"flamingo-rt export --ckpt {folder} --out BUNDLE"
            )
        return _from_checkpoint(folder, image_cache_bytes)
    raise DataError(f"{folder} is neither a bundle (no {MANIFEST}) nor a checkpoint (no config.json)")


def _from_bundle(
    bundle: Bundle, backend: str, threads: int | None, image_cache_bytes: int, spin: bool, trust: EngineTrust,
    workload: Workload,
) -> Model:
    def open_backend(name: str) -> Backend:
        if name == "tensorrt":
            return _tensorrt_backend(bundle, trust, workload)
        if name == "ort":
            return _ort_backend(bundle, threads, spin, workload)
        return _ort_gpu_backend(bundle, name, workload)

    opened = _best_backend(bundle, open_backend) if backend == "auto" else open_backend(backend)
    tokenizer = _tokenizer(bundle.tokenizer_path, bundle.config)
    usual = None if bundle.validation is None else bundle.validation.probability
    costs = bundle.step_costs or StepCosts.of(bundle.graphs[LANGUAGE_MODEL].quantization)
    return Model(opened, bundle.config, tokenizer, bundle.identity, image_cache_bytes, usual, costs)


def _best_backend(bundle: Bundle, open_backend: Callable[[str], Backend]) -> Backend:
    """The fastest backend that runs here. Backends that should run and do not are named in a warning."""
    from flamingo_rt.engines.ort_gpu import CUDA_BACKEND, has_cuda_kernels

    passed_over = []
    for backend, fits, doing in (
        ("tensorrt", lambda: bool(_built_targets(bundle)), "its engines run it"),
        (CUDA_BACKEND, has_cuda_kernels, "ONNX Runtime runs it on the GPU"),
    ):
        if not fits():
            continue
        try:
            opened = open_backend(backend)
        except FlamingoError as error:
            passed_over.append((_NOT_RUNNING[backend], str(error)))  # text: the traceback keeps what was loaded
            continue
        _report(bundle, doing, passed_over)
        return opened
    _report(bundle, "ONNX Runtime runs it on the CPU", passed_over)  # logged first, in case opening it fails too
    return open_backend("ort")


_NOT_RUNNING = {"tensorrt": "its engines do not run", "ort-cuda": "not on the GPU"}


def _report(bundle: Bundle, doing: str, passed_over: list[tuple[str, str]]) -> None:
    """Log one line: the backend, and why the ones before it were passed over."""
    why = "".join(f"; {what}: {error}" for what, error in passed_over)
    logger.log(logging.WARNING if passed_over else logging.INFO, "%s: %s%s", printable(str(bundle.path)), doing,
               printable(why))


def _within_limits(workload: Workload, config: FlamingoConfig) -> Workload:
    """The workload, with no more pictures and tokens than the model allows: it refuses those by itself."""
    tokens = max(2, min(workload.tokens, config.language.context))
    return replace(workload, pictures=min(workload.pictures, config.max_visuals), tokens=tokens,
                   answer=min(workload.answer, tokens - 1))


def _ort_gpu_backend(bundle: Bundle, backend: str, workload: Workload) -> Backend:
    from flamingo_rt.engines.gpu.nvidia_driver import find_gpu
    from flamingo_rt.engines.ort_gpu import PROVIDERS, OrtGpuBackend

    provider, gpu = PROVIDERS[backend](), find_gpu()
    if gpu is not None:
        _require_gpu_memory(bundle, gpu, workload)
    return OrtGpuBackend(bundle, provider)


def _require_gpu_memory(
    bundle: Bundle, gpu: Gpu, workload: Workload, engines: dict[str, int] | None = None
) -> None:
    """Raise `DataError` where a GPU cannot hold a workload: not with all of its own memory, or with what is available
    of the machine's, which it may share."""
    available, device = (available_bytes(), JETSON) if gpu.integrated else (gpu.memory_bytes, GPU)
    require_plan(bundle, workload, available, device, engines)


def _ort_backend(bundle: Bundle, threads: int | None, spin: bool, workload: Workload) -> Backend:
    from flamingo_rt.engines.ort import OrtBackend

    graphs = {name: bundle.graph_path(name) for name in bundle.graphs}
    require_plan(bundle, workload, available_bytes())
    return OrtBackend(graphs, bundle.config, threads, spin=spin, dtype=bundle.compute, cache=bundle.cache_form)


def _built_targets(bundle: Bundle) -> list[str]:
    """The TensorRT libraries that the bundle has engines for, the likely faster one first."""
    if not bundle.engines_path.is_dir():  # most bundles have none: then TensorRT's modules are not imported
        return []
    from flamingo_rt.engines.tensorrt.engine_files import RECORD
    from flamingo_rt.engines.tensorrt.versions import TENSORRT, TENSORRT_RTX

    folders = [file.parent.name for file in bundle.engines_path.glob(f"*/{RECORD}")]
    rtx = [name for name in folders if name.startswith(TENSORRT_RTX)]
    built = {TENSORRT: len(folders) > len(rtx), TENSORRT_RTX: bool(rtx)}
    return [target for target, there in built.items() if there]


def _tensorrt_backend(bundle: Bundle, trust: EngineTrust, workload: Workload) -> Backend:
    """A backend over the bundle's engines that run here. Raises the error of the first library when none do."""
    from flamingo_rt.engines.gpu.nvidia_driver import required_gpu
    from flamingo_rt.engines.tensorrt.engine_files import read_engines
    from flamingo_rt.engines.tensorrt.runner import TensorRtBackend
    from flamingo_rt.engines.tensorrt.versions import TENSORRT, import_tensorrt

    gpu = required_gpu("tensorrt")
    refused: FlamingoError | None = None
    for target in _built_targets(bundle) or [TENSORRT]:
        try:
            tensorrt = import_tensorrt(target)
            engines = read_engines(bundle, target, tensorrt.version, gpu, trust)
            _require_gpu_memory(bundle, gpu, _with_capacity(workload, engines), _engine_bytes(bundle, engines))
            return TensorRtBackend(bundle, engines, tensorrt)
        except FlamingoError as error:
            refused = refused or type(error)(str(error))  # a copy: the error's traceback keeps what was loaded
    raise refused or AssertionError("no target was tried")


def _with_capacity(workload: Workload, engines: EngineFolder) -> Workload:
    """The workload with the cache that engines allocate: one in place always has its full capacity."""
    if CACHE_FORMS[engines.lowering] != IN_PLACE:
        return workload
    return replace(workload, tokens=max(workload.tokens, engines.limits.capacity))


def _engine_bytes(bundle: Bundle, engines: EngineFolder) -> dict[str, int]:
    """Bytes of each engine with its weights."""
    added = stored_weights(bundle) if engines.options.weight_stripped else dict.fromkeys(GRAPHS, 0)
    return {name: engines.engine_path(name).stat().st_size + added[name] for name in GRAPHS}


def _from_checkpoint(folder: Path, image_cache_bytes: int) -> Model:
    try:
        from flamingo_rt.checkpoints import TOKENIZER, open_checkpoint
        from flamingo_rt.model.torch_backend import TorchBackend
    except ImportError as error:
        raise DependencyError(
            f"the torch backend cannot be imported ({error}): pip install 'flamingo-rt[export]', or export the "
            "checkpoint elsewhere and run the bundle here"
        ) from error
    model = open_checkpoint(folder).load()
    tokenizer = _tokenizer(folder / TOKENIZER, model.config)
    return Model(TorchBackend(model), model.config, tokenizer, image_cache_bytes=image_cache_bytes)


def _tokenizer(path: Path, config: FlamingoConfig) -> TextTokenizer:
    return TextTokenizer(path, config.tokens, config.language.vocab_size)
