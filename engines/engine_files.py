"""Engines in a bundle: one file for each graph, and a record of what they were built from and for.

    engines/<target>-<device>/   vision_encoder.engine   resampler.engine   language_model.engine
                                 engine.json   timing.cache (TensorRT only)

Engines are no part of what the bundle's manifest hashes: a bundle is the same with and without them.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flamingo_rt.bundle import Bundle, sha256
from flamingo_rt.config import read_json
from flamingo_rt.contract import GRAPHS, Limits
from flamingo_rt.engines.gpu import Gpu
from flamingo_rt.engines.tensorrt_module import TENSORRT_RTX, TITLES, version_numbers
from flamingo_rt.errors import DataError

RECORD, TIMING_CACHE = "engine.json", "timing.cache"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class BuildOptions:
    """``version_compatible``: newer versions of TensorRT, of the same major one, may run the engines.
    ``weight_stripped``: the engines hold no weights; whoever runs them takes those of the graphs (a refit)."""

    version_compatible: bool = False
    weight_stripped: bool = False

    def arguments(self) -> list[str]:
        """The same as options of the command line."""
        named = {"--version-compatible": self.version_compatible, "--weight-stripped": self.weight_stripped}
        return [option for option, chosen in named.items() if chosen]


@dataclass(frozen=True)
class EngineFolder:
    """The engines of a bundle for one kind of GPU, verified when read.

    ``target`` is ``tensorrt`` or ``tensorrt-rtx``, ``version`` its version when they were built. ``device`` is the name
    of the GPU that they were built on, None for those that were built for the ``capabilities`` (compute capabilities
    such as ``8.6``) of other machines' GPUs. ``lowering`` and ``compute`` are the graphs'.
    """

    path: Path
    target: str
    version: str
    device: str | None
    capabilities: tuple[str, ...]
    lowering: str
    compute: str
    limits: Limits
    options: BuildOptions

    def engine_path(self, graph: str) -> Path:
        """The file of a graph's engine."""
        return self.path / f"{graph}.engine"


def engine_folder_name(target: str, device: str | None, capabilities: tuple[str, ...]) -> str:
    """The name of a folder of engines: by GPU for TensorRT, by compute capabilities for TensorRT-RTX, whose engines run
    on every GPU that has one of them."""
    if target == TENSORRT_RTX or device is None:
        return "-".join([target, *(f"sm{capability.replace('.', '')}" for capability in capabilities)])
    return f"{target}-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}"


def write_record(folder: Path, engines: EngineFolder, bundle: Bundle) -> None:
    """Describe and hash the engines in ``folder``, which becomes ``engines.path``."""
    files = {f"{name}.engine": folder / f"{name}.engine" for name in GRAPHS}
    record = {
        "format_version": FORMAT_VERSION,
        "bundle": bundle.identity,
        **{key: value for key, value in asdict(engines).items() if key != "path"},
        "engines": {name: {"sha256": sha256(file), "bytes": file.stat().st_size} for name, file in files.items()},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_engines(bundle: Bundle, target: str, version: str, gpu: Gpu) -> EngineFolder:
    """The verified engines of ``bundle`` that ``version`` of ``target`` can run on ``gpu``.

    Raises `DataError` with the command that builds them when there are none, or those there are were built from another
    bundle, for another GPU or version, or are damaged.
    """
    top, rebuild = bundle.engines_path, build_command(bundle.path, target)
    found = sorted(file.parent for file in top.glob(f"{target}-*/{RECORD}") if not file.parent.name.startswith("."))
    found = [folder for folder in found if target == TENSORRT_RTX or not folder.name.startswith(TENSORRT_RTX)]
    if not found:
        raise DataError(f"bundle {bundle.path} has no engines for {TITLES[target]}: {rebuild}")
    refused: list[str] = []
    for folder in found:
        engines, identity, hashes = _read_record(folder, target, rebuild)
        again = build_command(bundle.path, target, engines)
        if not _made_for(engines, gpu):
            refused.append(f"{folder.name} is for {_described(engines)}")
            continue
        if identity != bundle.identity:
            raise DataError(f"{folder} was built from another bundle, or from this one before a new export: {again}")
        if not _runs_with(engines, version):
            raise DataError(
                f"{folder} was built with {TITLES[target]} {engines.version}, here is {version}: {again}"
            )
        _verify(engines, hashes, again)
        return engines
    raise DataError(
        f"bundle {bundle.path} has no engines for {gpu.name} (compute capability {gpu.capability}), "
        f"{'; '.join(refused)}: {rebuild}"
    )


def build_command(bundle: Path, target: str, engines: EngineFolder | None = None) -> str:
    """The command that builds engines, with the limits and options of those there were."""
    words = ["flamingo-rt", "build", "--model", str(bundle), "--target", target]
    if engines is not None:
        if engines.device is None:
            words += ["--compute-capability", ",".join(name.replace(".", "") for name in engines.capabilities)]
        words += [word for name, value in asdict(engines.limits).items() for word in (_option(name), str(value))]
        words += engines.options.arguments()
    return shlex.join(words)


def _option(limit: str) -> str:
    return "--capacity" if limit == "capacity" else f"--max-{limit}"


def _described(engines: EngineFolder) -> str:
    return engines.device or "compute capability " + ", ".join(engines.capabilities)


def _made_for(engines: EngineFolder, gpu: Gpu) -> bool:
    if engines.target == TENSORRT_RTX:
        return gpu.capability in engines.capabilities
    return engines.device == gpu.name and gpu.capability in engines.capabilities


def _runs_with(engines: EngineFolder, version: str) -> bool:
    if version == engines.version:
        return True
    built, here = version_numbers(engines.version), version_numbers(version)
    return engines.options.version_compatible and built[:1] == here[:1] and built <= here


def _read_record(folder: Path, target: str, rebuild: str) -> tuple[EngineFolder, str, dict[str, tuple[str, int]]]:
    """What a folder's record says: the engines, the bundle's identity, each file's hash and size."""
    try:
        record = read_json(folder / RECORD)
    except DataError as error:
        raise DataError(f"{error}: {rebuild}") from error
    try:
        written = record["format_version"]
        if written != FORMAT_VERSION:
            raise ValueError(f"format {written!r}, this flamingo-rt reads {FORMAT_VERSION}")
        if record["target"] != target:
            raise ValueError(f"target {record['target']!r}")
        device = record["device"]
        engines = EngineFolder(
            folder, target, str(record["version"]), None if device is None else str(device),
            tuple(map(str, record["capabilities"])), str(record["lowering"]), str(record["compute"]),
            Limits(**_typed(record["limits"], int)), BuildOptions(**_typed(record["options"], bool)),
        )
        entries = {name: record["engines"][f"{name}.engine"] for name in GRAPHS}
        hashes = {name: (str(entry["sha256"]), int(entry["bytes"])) for name, entry in entries.items()}
        return engines, str(record["bundle"]), hashes
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / RECORD} cannot be used ({error!r}): {rebuild}") from error


def _typed(values: Any, kind: type) -> dict[str, Any]:
    for name, value in values.items():
        if type(value) is not kind:
            raise ValueError(f"{name} {value!r}")
    return dict(values)


def _verify(engines: EngineFolder, hashes: dict[str, tuple[str, int]], rebuild: str) -> None:
    for name, (digest, size) in hashes.items():
        file = engines.engine_path(name)
        try:
            if file.stat().st_size != size or sha256(file) != digest:
                raise DataError(f"{file} is damaged: it is not what was built; {rebuild}")
        except OSError as error:
            raise DataError(f"cannot read {file} ({error.strerror or error}): {rebuild}") from error
