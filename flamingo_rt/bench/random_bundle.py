"""A bundle of a preset's shape with random weights, kept in a folder of the user: as fast as a trained one."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flamingo_rt import __version__
from flamingo_rt.bundle import FORMAT_VERSION, is_bundle
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError
from flamingo_rt.files import check_output, check_space
from flamingo_rt.model_memory import require_memory
from flamingo_rt.presets import own_preset
from flamingo_rt.progress import Progress, silent

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
LEAST_BYTES = {**BYTES, "int8": 1, "fp8": 1, "mixed": 0.5, "int4": 0.5}  # of a parameter, where it runs


@dataclass(frozen=True)
class RandomBundle:
    """A bundle of random weights: the preset's name, the type of its matrices, their quantization, the folder to keep
    it in, the type that its graphs compute in, and their lowering.

    Raises `UsageError` for an unknown preset, and one with an encoder of another project.
    """

    preset: str
    dtype: str = "fp32"
    quantize: str | None = None
    work: Path | None = None
    compute: str = "fp32"
    lowering: str = "ort"

    def __post_init__(self) -> None:
        own_preset(self.preset)

    @property
    def path(self) -> Path:
        """The folder it is kept in: one for each form and version."""
        types = [self.dtype] if self.compute == "fp32" else ["computes", self.compute]
        lowering = [self.lowering] if self.lowering != "ort" else []
        form = "-".join([self.preset, *lowering, *types, *([self.quantize] if self.quantize else [])])
        return (self.work or default_work()) / f"{form}-{__version__}-{FORMAT_VERSION}"

    def ready(self) -> bool:
        """Whether it is there already."""
        return is_bundle(self.path)

    def make(self, say: Callable[[str], None], progress: Progress = silent) -> None:
        """Write it, after telling ``say`` how large it gets. Needs the extra ``export``.

        Raises `DataError` for a model that would not fit into memory, and when the folder cannot be written or has no
        room; `ModuleNotFoundError` without the extra.
        """
        from flamingo_rt.export.pipeline import export_model
        from flamingo_rt.export.quantization.quantization_options import Quantize
        from flamingo_rt.export.random_model import random_model

        config = own_preset(self.preset)
        require_memory(config, LEAST_BYTES[self.quantize or self.dtype], f"running {self.preset}")
        size = stored_bytes(config, self.dtype)
        most = "at most " if self.quantize else "about "
        say(f"{self.preset} with random weights, {self.quantize or self.dtype}: writing {most}{size / 1e9:.2f} GB to "
            f"{self.path}, once")
        try:
            check_output(self.path, overwrite=True)
            check_space(self.path, size)
        except DataError as error:
            raise DataError(str(error).replace("--out", "--work")) from error
        export_model(
            random_model(config), self.path, lowering=self.lowering, dtype=self.dtype, compute=self.compute,
            overwrite=True, compare=False, progress=progress,
            quantize=Quantize(self.quantize, rounding="nearest") if self.quantize else None,
        )


def stored_bytes(config: FlamingoConfig, dtype: str) -> int:
    """Bytes of a model's weights, all of them in ``dtype``."""
    from flamingo_rt.checkpoints import expected_shapes

    return sum(math.prod(shape) for shape in expected_shapes(config).values()) * BYTES[dtype]


def default_work() -> Path:
    """The folder for such bundles, within the system's folder for caches."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "flamingo-rt" / "bench"
