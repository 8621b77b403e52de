"""A stand-in for the modules tensorrt and tensorrt_rtx: it records what it is asked for, in order, and knows what
each version knows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from flamingo_rt.engines.gpu.nvidia_driver import Gpu
from flamingo_rt.engines.tensorrt.versions import TENSORRT, TENSORRT_RTX, TensorRT

ORIN = Gpu("Orin", "8.7", 8 << 30, integrated=True)


class MadeUpTensorRT:
    """``calls`` is what was asked for. The attributes say how it fails: ``parser_errors`` by graph, ``fails`` with the
    errors that building ``graph`` logs, ``during`` is called while it builds."""

    def __init__(self, version: str, rtx: bool = False) -> None:
        self.__version__ = version
        numbers = tuple(int(part) for part in version.split("."))
        self.calls: list[tuple[Any, ...]] = []
        self.parser_errors: dict[str, list[SimpleNamespace]] = {}
        self.fails: dict[str, list[str]] = {}
        self.during: Any = None
        self.no_gpu = False
        self.refuses_sizes = False
        self.models: list[bytes] = []
        self.timings: bytes | None = None  # returned as its timing cache instead of the given one
        fake = self

        class ILogger:
            ERROR, WARNING = 1, 2

        class IProgressMonitor:
            pass

        class Network:
            def __init__(self) -> None:
                self.graph = ""
                self.names: tuple[list[str], list[str]] = ([], [])
                self.num_inputs = self.num_outputs = 0

            def get_input(self, index: int) -> SimpleNamespace:
                return SimpleNamespace(name=self.names[0][index])

            def get_output(self, index: int) -> SimpleNamespace:
                return SimpleNamespace(name=self.names[1][index])

        class Profile:
            def __init__(self) -> None:
                self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

            def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
                self.shapes[name] = shapes

        class Config:
            def __init__(self) -> None:
                self.profiles: list[Profile] = []
                self.progress_monitor: Any = None
                self.num_compute_capabilities = 1

            def set_flag(self, flag: str) -> None:
                fake.calls.append(("set_flag", flag))

            def clear_flag(self, flag: str) -> None:
                fake.calls.append(("clear_flag", flag))

            def set_compute_capability(self, capability: str, index: int) -> None:
                fake.calls.append(("capability", index, capability))

            def create_timing_cache(self, content: bytes) -> bytes | None:
                fake.calls.append(("timings", content))
                return None if content == b"of another version" else content

            def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
                self.cache = cache
                return not ignore_mismatch

            def get_timing_cache(self) -> SimpleNamespace:
                return SimpleNamespace(serialize=lambda: fake.timings or self.cache + b"+")

            def add_optimization_profile(self, profile: Profile) -> int:
                self.profiles.append(profile)
                return -1 if fake.refuses_sizes else len(self.profiles) - 1

        class Builder:
            def __init__(self, log: Any) -> None:
                if fake.no_gpu:
                    log.log(1, "CUDA initialization failure with error: 35")
                    raise TypeError("pybind11::init(): factory function returned nullptr")
                self.log = log

            def create_network(self, flags: int) -> Network:
                fake.calls.append(("network", flags))
                return Network()

            def create_builder_config(self) -> Config:
                return Config()

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
                fake.calls.append(("build", network.graph, [profile.shapes for profile in config.profiles]))
                if fake.during is not None:
                    fake.during(network.graph, config.progress_monitor)
                if network.graph in fake.fails:
                    for text in fake.fails[network.graph]:
                        self.log.log(1, text)
                    self.log.log(2, "a warning")
                    return None
                return f"engine of {network.graph} by {version}".encode()

        class OnnxParser:
            def __init__(self, network: Network, log: Any) -> None:
                self.network, self.log = network, log

            def parse(self, model: bytes, path: str) -> bool:
                import onnx

                graph = path.rsplit("/", 1)[-1].removesuffix(".onnx")
                fake.calls.append(("parse", graph))
                fake.models.append(model)
                parsed = onnx.load_from_string(model).graph
                self.network.graph = graph
                self.network.names = [v.name for v in parsed.input], [v.name for v in parsed.output]
                self.network.num_inputs, self.network.num_outputs = map(len, self.network.names)
                return graph not in fake.parser_errors

            @property
            def num_errors(self) -> int:
                return len(fake.parser_errors.get(self.network.graph, ()))

            def get_error(self, index: int) -> SimpleNamespace:
                return fake.parser_errors[self.network.graph][index]

        flags = {"FP16": "FP16", "TF32": "TF32", "VERSION_COMPATIBLE": "VERSION_COMPATIBLE"}
        if rtx or numbers >= (10,):
            flags |= {"STRIP_PLAN": "STRIP_PLAN", "REFIT_IDENTICAL": "REFIT_IDENTICAL"}
            self.IProgressMonitor = IProgressMonitor
        if rtx or numbers >= (11,):
            del flags["FP16"]
        networks = {} if rtx or numbers >= (11,) else {"EXPLICIT_BATCH": 0}
        if rtx or numbers >= (9,):
            networks["STRONGLY_TYPED"] = 1
        if rtx:
            names = {name: name for name in ("NONE", "CURRENT", "SM86", "SM89", "SM120")}
            self.ComputeCapability = SimpleNamespace(__members__=names)
        self.ILogger, self.Builder, self.OnnxParser = ILogger, Builder, OnnxParser
        self.BuilderFlag = SimpleNamespace(**flags)
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**networks)

    def asked(self, kind: str) -> list[tuple[Any, ...]]:
        """The calls of one kind, in order."""
        return [call[1:] for call in self.calls if call[0] == kind]


def tensorrt(version: str) -> TensorRT:
    """A version of TensorRT, made up."""
    return TensorRT(TENSORRT, MadeUpTensorRT(version), version)


def rtx(version: str = "1.7.1.116") -> TensorRT:
    """A version of TensorRT-RTX, made up."""
    return TensorRT(TENSORRT_RTX, MadeUpTensorRT(version, rtx=True), version)
