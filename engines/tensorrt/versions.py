"""TensorRT and TensorRT for RTX: two Python modules with one interface, and what their versions can do.

    tensorrt       8.6 to 10.14: lowering tensorrt-classic; 10.15 and later: tensorrt as well
    tensorrt_rtx   1.7 and later: both lowerings

8.6 chooses the type of each layer by itself, with a flag for half precision. Later versions take the types of the graph
(strongly typed networks): a flag of the network in 9 and 10, always so in 11 and RTX.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from flamingo_rt.errors import DataError, DependencyError, UsageError

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}  # by target
TITLES = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}
OLDEST = {TENSORRT: (8, 6), TENSORRT_RTX: (1, 7)}
# The first versions with layers that write a cache in place and attend to it.
IN_PLACE_SINCE = {TENSORRT: (10, 15), TENSORRT_RTX: (1, 7)}
LOWERING, CLASSIC_LOWERING = "tensorrt", "tensorrt-classic"


@dataclass(frozen=True)
class TensorRT:
    """One of the two modules, imported."""

    target: str
    module: Any
    version: str

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version as numbers."""
        return version_numbers(self.version)

    @property
    def title(self) -> str:
        """Name and version, such as TensorRT-RTX 1.7.1.116."""
        return f"{TITLES[self.target]} {self.version}"

    @property
    def lowerings(self) -> tuple[str, ...]:
        """The lowerings whose graphs it can compile, the one that suits it first."""
        return lowerings(self.target, self.version)

    @property
    def ahead_of_time(self) -> bool:
        """Whether it compiles for GPUs that are not in this machine, by compute capability."""
        return self.target == TENSORRT_RTX

    @property
    def strongly_typed(self) -> bool:
        """Whether layers compute in the types of the graph."""
        return self.target == TENSORRT_RTX or self.numbers >= (9,)

    def network_flags(self) -> int:
        """Flags for `create_network`."""
        flags = self.module.NetworkDefinitionCreationFlag
        if self.target == TENSORRT_RTX or self.numbers >= (11,):
            return 0
        if self.strongly_typed:
            return 1 << int(flags.STRONGLY_TYPED)
        return 1 << int(flags.EXPLICIT_BATCH)

    def choose_types(self, config: Any, dtype: str) -> None:
        """Let a builder's configuration compute in ``dtype``, and in no other type."""
        flags = self.module.BuilderFlag
        if dtype == "float32":  # the rounding of TF32 is not what was exported
            config.clear_flag(flags.TF32)
        if dtype == "float16" and not self.strongly_typed:
            config.set_flag(flags.FP16)

    def capabilities(self) -> dict[str, Any]:
        """The compute capabilities that it compiles for ahead of time: the module's members by names such as ``86``."""
        names = getattr(self.module, "ComputeCapability", None)
        members = names.__members__.items() if names is not None else ()
        return {name[2:]: value for name, value in members if name.startswith("SM")}


def import_tensorrt(target: str) -> TensorRT:
    """Import the module of a target.

    Raises `UsageError` for an unknown target, `DependencyError` when it is missing or too old.
    """
    if target not in MODULES:
        raise UsageError(f"unknown target {target!r}; known: {', '.join(MODULES)}")
    name = MODULES[target]
    try:
        module = importlib.import_module(name)
        version = str(module.__version__)
    except Exception as error:  # its libraries may be missing, or the driver's: any kind of error
        remedy = f"pip install 'flamingo-rt[{target}]'"
        if target == TENSORRT:
            remedy += "; on a Jetson it comes with JetPack: make the environment with --system-site-packages"
        raise DependencyError(f"{name} cannot be imported ({error}): {remedy}") from error
    if version_numbers(version) < OLDEST[target]:
        oldest = ".".join(map(str, OLDEST[target]))
        raise DependencyError(f"{TITLES[target]} {version} is too old: {oldest} or newer is needed")
    return TensorRT(target, module, version)


def lowerings(target: str, version: str) -> tuple[str, ...]:
    """The lowerings whose graphs a version can compile, the one that suits it first."""
    if version_numbers(version) >= IN_PLACE_SINCE[target]:
        return LOWERING, CLASSIC_LOWERING
    return (CLASSIC_LOWERING,)


def version_numbers(version: str) -> tuple[int, ...]:
    """``10.3.0.26`` as numbers; what follows them (``10.3.0rc1``) is left out."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def check_graphs(runtime: TensorRT, lowering: str, compute: str, export: str) -> None:
    """Raise `DataError` unless the version compiles graphs of the ``lowering`` that compute in the type ``compute``.
    ``export`` is the command that writes such graphs, up to the options for both."""
    if lowering not in runtime.lowerings:
        raise DataError(
            f"{runtime.title} does not compile graphs of the lowering {lowering}, it needs {runtime.lowerings[0]}: "
            f"{export} --lowering {runtime.lowerings[0]} --compute fp16"
        )
    if compute == "bfloat16" and not runtime.strongly_typed:
        raise DataError(f"{runtime.title} does not compute in bf16: {export} --lowering {lowering} --compute fp16")
