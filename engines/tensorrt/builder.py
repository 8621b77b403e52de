"""Compiling a bundle's graphs with TensorRT or TensorRT-RTX, with the same calls for every version of both."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_rt.bundle import Bundle
from flamingo_rt.contract import GRAPHS, IN_PLACE, Limits, graph_specs, size_ranges
from flamingo_rt.engines.gpu.nvidia_driver import Gpu
from flamingo_rt.engines.tensorrt.callbacks import SCALE, Caught, make_log, make_monitor
from flamingo_rt.engines.tensorrt.engine_files import (
    TIMING_CACHE,
    BuildOptions,
    EngineFolder,
    engine_folder_name,
    read_timings,
    write_record,
)
from flamingo_rt.engines.tensorrt.local_builds import remember_build
from flamingo_rt.engines.tensorrt.memory_estimate import (
    MemoryNeeds,
    check_building,
    check_running,
    memory_needs,
    out_of_memory,
    what_would_fit,
)
from flamingo_rt.engines.tensorrt.versions import TensorRT, check_graphs
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.files import check_output, check_space, new_directory
from flamingo_rt.graph_files import read_graph
from flamingo_rt.printable import printable
from flamingo_rt.progress import Progress, silent
from flamingo_rt.protobuf import field, fields
from flamingo_rt.system_memory import available_bytes, readable_bytes

logger = logging.getLogger(__name__)

SHOWN_ERRORS = 4  # at most, of those that TensorRT gives for one graph


@dataclass(frozen=True)
class Destination:
    """The GPUs that engines are for: ``gpu``, this machine's, or, ahead of time, None for all that have one of the
    ``capabilities``. These are compute capabilities such as ``8.6``; with a ``gpu``, its own."""

    gpu: Gpu | None
    capabilities: tuple[str, ...] = ()

    @staticmethod
    def of(runtime: TensorRT, gpu: Gpu | None, numbers: tuple[str, ...] = ()) -> Destination:
        """Choose the destination of a build. ``numbers`` are compute capabilities without a point, such as ``86``; by
        default the engines are for ``gpu``, the GPU of this machine if it has one.

        Raises `UsageError` for capabilities that the version does not compile for, `DataError` without capabilities
        and GPU.
        """
        known = runtime.capabilities() if runtime.ahead_of_time else {}
        if numbers and not runtime.ahead_of_time:
            raise UsageError(
                f"{runtime.title} compiles for the GPU of this machine alone: leave out --compute-capability, or take "
                "--target tensorrt-rtx"
            )
        for number in numbers:
            if number not in known:
                raise UsageError(
                    f"{runtime.title} does not compile for compute capability {number!r}; known: {', '.join(known)}"
                )
        if numbers:
            return Destination(None, tuple(dict.fromkeys(f"{number[:-1]}.{number[-1]}" for number in numbers)))
        if gpu is None and runtime.ahead_of_time:
            raise DataError(
                "there is no NVIDIA GPU with a driver here: say for which the engines are, such as "
                f"--compute-capability 86 (known: {', '.join(known)})"
            )
        if gpu is None:
            raise DataError(
                f"there is no NVIDIA GPU with a driver here, and {runtime.title} compiles for the GPU of this machine "
                "alone: build on the device, or with --target tensorrt-rtx"
            )
        return Destination(gpu, (gpu.capability,))


@dataclass(frozen=True)
class Build:
    """A build: the engines of ``bundle``, compiled by ``runtime`` for ``destination``.

    Raises `DataError` when the version does not compile such graphs.
    """

    bundle: Bundle
    runtime: TensorRT
    destination: Destination
    limits: Limits
    options: BuildOptions = BuildOptions()

    def __post_init__(self) -> None:
        export = "flamingo-rt export --ckpt CHECKPOINT --out BUNDLE"
        for entry in self.bundle.graphs.values():
            check_graphs(self.runtime, entry.lowering, entry.compute, export)
        if self.options.weight_stripped and not hasattr(self.runtime.module.BuilderFlag, "STRIP_PLAN"):
            raise UsageError(f"{self.runtime.title} builds no engines without weights: leave out --weight-stripped")
        if self.options.weight_stripped and self.destination.gpu is None:  # 1.7.1 ends in an internal error
            raise UsageError("--weight-stripped needs the GPU that the engines are for: leave out --compute-capability")

    @property
    def folder(self) -> EngineFolder:
        """Description of the engines to be built."""
        runtime, gpu, capabilities = self.runtime, self.destination.gpu, self.destination.capabilities
        name = engine_folder_name(runtime.target, gpu.name if gpu else None, capabilities)
        graphs = self.bundle.graphs.values()
        return EngineFolder(
            self.bundle.engines_path / name, runtime.target, runtime.version, gpu.name if gpu else None, capabilities,
            next(entry.lowering for entry in graphs), self.bundle.compute, self.limits, self.options,
        )

    def memory(self) -> MemoryNeeds:
        """Estimate the memory that compiling and running takes."""
        weights = {name: _weight_bytes(self.bundle.graph_path(name)) for name in GRAPHS}
        gpu = self.destination.gpu
        return memory_needs(
            self.bundle.config, weights, self.limits, self.bundle.compute, self.bundle.cache_form,
            shared=gpu is not None and gpu.integrated,
        )

    def run(self, progress: Progress = silent, force: bool = False) -> EngineFolder:
        """Compile the three graphs. Engines that were there before are replaced when all three are compiled.

        Raises `DataError` when TensorRT refuses a graph, with what it says and the node, or when there is too little
        memory or disk space; ``force`` compiles even with less memory than should be needed. Raises `UsageError` when
        the folder for the engines holds other files.
        """
        needs, folder = self.memory(), self.folder
        if not force:
            check_building(needs, available_bytes(), self.bundle.compute)
            if self.destination.gpu is not None:
                check_running(needs, self.limits, self.destination.gpu.memory_bytes)
        self._check_folder(folder.path)
        timings = read_timings(folder.path)
        with new_directory(folder.path, overwrite=True) as beside:
            compiler = _Compiler(self, needs, timings)
            for name in GRAPHS:
                with progress(f"{name} engine", SCALE) as advance:
                    compiler.compile(name, folder.engine_path(name).name, beside, advance)
            if compiler.timings:
                (beside / TIMING_CACHE).write_bytes(compiler.timings)
            with progress("checksums", 0):
                _remember(write_record(beside, folder, self.bundle), folder.path)
        return folder

    def _check_folder(self, path: Path) -> None:
        """Raise, before compiling, where the engines cannot be written."""
        try:
            check_output(path, overwrite=True)
            if not self.options.weight_stripped:
                check_space(path, sum(_weight_bytes(self.bundle.graph_path(name)) for name in GRAPHS))
        except UsageError as error:
            raise UsageError(f"{path} holds other files too, or is none of ours: move it away") from error
        except DataError as error:  # there is no option for another place
            raise DataError(str(error).split("; choose")[0].split(", or choose")[0]) from error


class _Compiler:
    """Compiles one graph after the other; ``timings`` is TensorRT's timing cache, of the kernels that it has timed."""

    def __init__(self, build: Build, needs: MemoryNeeds, timings: bytes) -> None:
        self._build, self._needs, self.timings = build, needs, timings
        self._runtime, self._module, self._bundle = build.runtime, build.runtime.module, build.bundle
        self._caught = Caught()
        self._log = make_log(self._module, self._caught)
        self._specs = graph_specs(self._bundle.config, self._bundle.compute, self._bundle.cache_form)
        self._ranges = size_ranges(self._bundle.config, build.limits, self._bundle.cache_form)

    def compile(self, name: str, file: str, folder: Path, advance: Any) -> None:
        """Compile the graph ``name``, and write its engine to ``file`` in ``folder``. Raises `DataError` when TensorRT
        refuses it or it does not fit the configuration."""
        self._log.errors.clear()
        try:
            builder = self._module.Builder(self._log)
        except Exception as error:  # pybind11's TypeError: the factory gave nothing
            raise self._refusal(name, [*self._log.errors, str(error)]) from error
        network = builder.create_network(self._runtime.network_flags())
        parser = self._parse(name, network)
        self._check_interface(name, network)
        config = self._config(builder)
        monitor = make_monitor(self._module, advance, self._caught)
        if monitor is not None:
            config.progress_monitor = monitor
        self._add_profiles(name, builder, config)
        engine = builder.build_serialized_network(network, config)
        self._caught.check()
        if engine is None:
            raise self._refusal(name, self._log.errors)
        (folder / file).write_bytes(memoryview(engine))
        if not self._runtime.ahead_of_time:
            self.timings = bytes(memoryview(config.get_timing_cache().serialize()))
        del parser  # it must live until the engine is built, and be gone before the network is

    def _parse(self, name: str, network: Any) -> Any:
        file = read_graph(self._bundle.graph_path(name))
        model = file.model
        if self._bundle.cache_form == IN_PLACE:  # such a layer takes a cache of one capacity alone
            model = with_sizes(model, {"C": self._build.limits.capacity})
        parser = self._module.OnnxParser(network, self._log)
        parsed = parser.parse(model, file.beside)
        self._caught.check()
        if not parsed or parser.num_errors:
            raise self._refusal(name, [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)])
        return parser

    def _check_interface(self, name: str, network: Any) -> None:
        spec = self._specs[name]
        for kind, tensors, count, get in (
            ("inputs", spec.inputs, network.num_inputs, network.get_input),
            ("outputs", spec.outputs, network.num_outputs, network.get_output),
        ):
            found, expected = {get(i).name for i in range(count)}, {tensor.name for tensor in tensors}
            if found != expected:
                raise DataError(
                    f"{self._bundle.graph_path(name)} does not fit the configuration: its {kind} differ in "
                    f"{', '.join(sorted(found ^ expected))}; export the model again"
                )

    def _config(self, builder: Any) -> Any:
        config, flags, options = builder.create_builder_config(), self._module.BuilderFlag, self._build.options
        self._runtime.choose_types(config, self._bundle.compute)
        if options.version_compatible:
            config.set_flag(flags.VERSION_COMPATIBLE)
        if options.weight_stripped:
            config.set_flag(flags.STRIP_PLAN)
            if hasattr(flags, "REFIT_IDENTICAL"):
                config.set_flag(flags.REFIT_IDENTICAL)
        if self._runtime.ahead_of_time:
            self._choose_capabilities(config)
        else:
            self._remember_timings(config)
        return config

    def _choose_capabilities(self, config: Any) -> None:
        destination, known = self._build.destination, self._runtime.capabilities()
        if destination.gpu is None:
            config.num_compute_capabilities = len(destination.capabilities)
            for index, capability in enumerate(destination.capabilities):
                config.set_compute_capability(known[capability.replace(".", "")], index)

    def _remember_timings(self, config: Any) -> None:
        """Let the compiler use the timings so far, and add to them. TensorRT refuses those of another version or GPU,
        and starts without any."""
        if self.timings:
            cache = config.create_timing_cache(self.timings)
            if cache is not None and config.set_timing_cache(cache, False):
                return
        config.set_timing_cache(config.create_timing_cache(b""), False)
        self._log.errors.clear()

    def _add_profiles(self, name: str, builder: Any, config: Any) -> None:
        for case, ranges in self._ranges[name].items():
            profile = builder.create_optimization_profile()
            for tensor in self._specs[name].inputs:
                shapes = (
                    tensor.resolve({letter: getattr(sizes, bound) for letter, sizes in ranges.items()})
                    for bound in ("min", "opt", "max")
                )
                profile.set_shape(tensor.name, *shapes)
            if config.add_optimization_profile(profile) < 0:
                raise self._refusal(name, [f"the sizes of {case} are refused", *self._log.errors])

    def _refusal(self, name: str, errors: list[str]) -> DataError:
        title, path = self._runtime.title, self._bundle.graph_path(name)
        if out_of_memory(errors):
            needs, limits, gpu = self._needs, self._build.limits, self._build.destination.gpu
            return DataError(
                f"{title} ran out of memory on {path}: compiling takes about {readable_bytes(needs.building)}, the "
                f"engines and their buffers {readable_bytes(needs.running)}, of which the cache "
                f"{readable_bytes(needs.cache)}; {what_would_fit(needs, limits, gpu.memory_bytes if gpu else 0)} "
                f"({_shown(errors)})"
            )
        return DataError(f"{title} cannot compile {path}: {_shown(errors)}")


def _shown(errors: list[str]) -> str:
    texts = list(dict.fromkeys(" ".join(error.split()) for error in errors if error.strip()))
    if not texts:
        return "it does not say why"
    more = f"; and {len(texts) - SHOWN_ERRORS} more" if len(texts) > SHOWN_ERRORS else ""
    return "; ".join(texts[:SHOWN_ERRORS]) + more


def _parser_error(error: Any) -> str:
    """The parser's message with the node's name and operator; TensorRT 8.6 gives the node's number alone."""
    name, operator = (getattr(error, part, str)() for part in ("node_name", "node_operator"))
    where = f"node {name} ({operator})" if name else f"node {error.node()}"
    return f"{where}: {error.desc()}"


def _weight_bytes(path: Path) -> int:
    return path.with_name(f"{path.name}.data").stat().st_size


def _remember(record: bytes, path: Path) -> None:
    """Remember that this user built the engines. Where that fails it is logged: they need --trust-engines to run."""
    try:
        remember_build(record, path)
    except DataError as error:
        unknown = "%s: that you built it cannot be remembered (%s): it will run with --trust-engines"
        logger.warning(unknown, printable(str(path)), printable(str(error)))


# Where onnx.proto keeps dimensions: ModelProto.graph, GraphProto.input, output and value_info, ValueInfoProto.type,
# TypeProto.tensor_type, Tensor.shape, TensorShapeProto.dim.
GRAPH, VALUES, DIMENSION = 7, (11, 12, 13), (2, 1, 2, 1)
DIM_VALUE, DIM_PARAM = 1, 2


def with_sizes(model: bytes, sizes: Mapping[str, int]) -> bytes:
    """The ``.onnx`` file ``model``, its free dimensions that ``sizes`` names fixed at these sizes. Raises `ValueError`
    when the bytes are no ONNX file."""
    replaced = {name.encode(): field(DIM_VALUE, size) for name, size in sizes.items()}
    return _rewritten(memoryview(model), ((GRAPH,), VALUES, *((number,) for number in DIMENSION)), replaced)


def _rewritten(data: memoryview, path: tuple[tuple[int, ...], ...], replaced: Mapping[bytes, bytes]) -> bytes:
    """A protobuf message whose fields at ``path``, numbers from the outermost message to the innermost, are replaced
    where they are named dimensions."""
    parts = []
    for number, value in fields(data):
        if isinstance(value, int):
            parts.append(field(number, value))
        elif path and number in path[0]:
            parts.append(field(number, _rewritten(value, path[1:], replaced)))
        else:
            fixed = replaced.get(bytes(value)) if not path and number == DIM_PARAM else None
            parts.append(fixed or field(number, bytes(value)))
    return b"".join(parts)
