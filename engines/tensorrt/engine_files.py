"""Engines in a bundle: one file for each graph, and a record of what they were built from and for.

    engines/<target>-<device>/   vision_encoder.engine   resampler.engine   language_model.engine
                                 engine.json   timing.cache (TensorRT only)

The bundle's manifest does not hash engines: a bundle is the same with and without them. They are code: those that this
user did not build (`local_builds`) are used only when the user asks for it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flamingo_rt.bundle import Bundle, sha256
from flamingo_rt.contract import CACHE_FORMS, FLOAT_DTYPES, GRAPHS, Limits
from flamingo_rt.engines.gpu.nvidia_driver import Gpu
from flamingo_rt.engines.tensorrt.local_builds import OWN_ALONE, EngineTrust, is_local_build
from flamingo_rt.engines.tensorrt.versions import TENSORRT_RTX, TITLES, version_numbers
from flamingo_rt.errors import DataError
from flamingo_rt.json_files import parse_json

RECORD, TIMING_CACHE = "engine.json", "timing.cache"
FORMAT_VERSION = 1
MOST_RECORD_BYTES = 1 << 20  # a record has 2 kB
MOST_LIMIT = 2**31 - 1  # sizes of tensors are 32-bit numbers to many kernels
# They become part of commands that are shown.
_CAPABILITY, _VERSION = re.compile(r"[0-9]{1,2}\.[0-9]"), re.compile(r"[0-9][0-9A-Za-z.+_-]{0,40}")


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build. ``version_compatible``: newer versions of TensorRT, with the same major number, may run the
    engines. ``weight_stripped``: the engines hold no weights; they get those of the graphs when they are loaded."""

    version_compatible: bool = False
    weight_stripped: bool = False

    def arguments(self) -> list[str]:
        """The options on the command line that choose the same."""
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


@dataclass(frozen=True)
class _Record:
    """Contents of ``engine.json``: the engines, the identity of the bundle they were built from, and each engine's
    SHA-256 and size. ``content`` holds the file's bytes."""

    engines: EngineFolder
    bundle: str
    hashes: Mapping[str, tuple[str, int]]
    content: bytes


def write_record(folder: Path, engines: EngineFolder, bundle: Bundle) -> bytes:
    """Write the record of the engines in ``folder``, which is to become ``engines.path``. Returns its bytes."""
    timings = folder / TIMING_CACHE
    files = {f"{name}.engine": folder / f"{name}.engine" for name in GRAPHS}
    record = {
        "format_version": FORMAT_VERSION,
        "bundle": bundle.identity,
        **{key: value for key, value in asdict(engines).items() if key != "path"},
        "engines": {name: {"sha256": sha256(file), "bytes": file.stat().st_size} for name, file in files.items()},
        "timings": sha256(timings) if timings.exists() else None,
    }
    content = (json.dumps(record, indent=1) + "\n").encode()
    (folder / RECORD).write_bytes(content)
    return content


def read_timings(folder: Path) -> bytes:
    """Read TensorRT's timing cache beside the engines in ``folder``; empty unless this user built them."""
    try:
        content, timings = _content(folder / RECORD), (folder / TIMING_CACHE).read_bytes()
        known = is_local_build(content) and parse_json(content)["timings"] == hashlib.sha256(timings).hexdigest()
    except (OSError, ValueError, LookupError, TypeError):  # there are none yet
        return b""
    return timings if known else b""


def read_engines(
    bundle: Bundle, target: str, version: str, gpu: Gpu, trust: EngineTrust = OWN_ALONE
) -> EngineFolder:
    """Find and verify the engines of ``bundle`` that ``version`` of ``target`` can run on ``gpu``: this user's own, and
    others' as far as ``trust`` goes.

    Raises `DataError` with the command that builds them when there are none, or those that are there were built from
    another bundle, for another GPU or version, by somebody else, or are damaged.
    """
    top, rebuild = bundle.engines_path, build_command(bundle.path, target)
    found = sorted(file.parent for file in top.glob(f"{target}-*/{RECORD}") if not file.parent.name.startswith("."))
    found = [folder for folder in found if target == TENSORRT_RTX or not folder.name.startswith(TENSORRT_RTX)]
    if not found:
        raise DataError(f"bundle {bundle.path} has no engines for {TITLES[target]}: {rebuild}")
    others: list[str] = []
    refused: DataError | None = None
    records: list[_Record] = []
    for folder in found:  # one that cannot be used, a stranger's for instance, hides none of those behind it
        try:
            records.append(_read_record(folder, target, rebuild))
        except DataError as error:
            refused = refused or error
    for record in sorted(records, key=lambda record: not is_local_build(record.content)):  # the user's own first
        try:
            if not _made_for(record.engines, gpu):
                others.append(f"{record.engines.path.name} is for {_described(record.engines)}")
                continue
            return _usable(record, bundle, version, trust)
        except DataError as error:
            refused = refused or error
    raise refused or DataError(
        f"bundle {bundle.path} has no engines for {gpu.name} (compute capability {gpu.capability}), "
        f"{'; '.join(others)}: {rebuild}"
    )


def _usable(record: _Record, bundle: Bundle, version: str, trust: EngineTrust) -> EngineFolder:
    """Verify the engines of a record, which are for the GPU at hand. Raises `DataError` unless they may and can run."""
    engines = record.engines
    folder, again = engines.path, build_command(bundle.path, engines.target, engines)
    if record.bundle != bundle.identity:
        raise DataError(f"{folder} was built from another bundle, or from this one before a new export: {again}")
    if not _runs_with(engines, version):
        title = TITLES[engines.target]
        raise DataError(f"{folder} was built with {title} {engines.version}, here is {version}: {again}")
    _check_trust(record, trust, again)
    _verify(engines, record.hashes, again)
    return engines


def build_command(bundle: Path, target: str, engines: EngineFolder | None = None) -> str:
    """The command that builds engines, with the limits and options of ``engines`` where they are given."""
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


def _check_trust(record: _Record, trust: EngineTrust, rebuild: str) -> None:
    """Raise `DataError` for engines that this user did not build, unless ``trust`` covers them."""
    if is_local_build(record.content):
        return
    path = record.engines.path
    if not trust.engines:
        raise DataError(
            f"{path} was not built by this user on this machine, and engines are code: build your own ({rebuild}), or, "
            "if you trust whoever built them, use --trust-engines (load(..., trust_engines=True))"
        )
    if record.engines.options.version_compatible and not trust.host_code:
        raise DataError(
            f"{path} is version-compatible: its engines bring a runtime that runs on the host as any program does, and "
            f"were not built by this user on this machine: build your own ({rebuild}), or, if you trust whoever built "
            "them, use --allow-engine-host-code too (load(..., allow_host_code=True))"
        )


def _content(file: Path) -> bytes:
    """Read a record's bytes. Raises `OSError`, and `ValueError` for a file that is too large to be one."""
    if file.stat().st_size > MOST_RECORD_BYTES:
        raise ValueError(f"{file} has more than {MOST_RECORD_BYTES:,} bytes")
    return file.read_bytes()


def _read_record(folder: Path, target: str, rebuild: str) -> _Record:
    try:
        content = _content(folder / RECORD)
        record = parse_json(content)
    except OSError as error:
        raise DataError(f"cannot read {folder / RECORD}: {error.strerror or error}: {rebuild}") from error
    except ValueError as error:
        raise DataError(f"{folder / RECORD} is not valid JSON ({error}): {rebuild}") from error
    try:
        written = record["format_version"]
        if written != FORMAT_VERSION:
            raise ValueError(f"format {written!r}, this flamingo-rt reads {FORMAT_VERSION}")
        if record["target"] != target:
            raise ValueError(f"target {record['target']!r}")
        device = record["device"]
        capabilities = tuple(_fitting(text, _CAPABILITY) for text in list(record["capabilities"]))
        if record["lowering"] not in CACHE_FORMS or record["compute"] not in FLOAT_DTYPES:
            raise ValueError(f"graphs {record['lowering']!r}, {record['compute']!r}")
        engines = EngineFolder(
            folder, target, _fitting(record["version"], _VERSION), None if device is None else str(device),
            capabilities, record["lowering"], record["compute"],
            Limits(**_limits(record["limits"])), BuildOptions(**_typed(record["options"], bool)),
        )
        entries = {name: record["engines"][f"{name}.engine"] for name in GRAPHS}
        hashes = {name: (str(entry["sha256"]), int(entry["bytes"])) for name, entry in entries.items()}
        return _Record(engines, str(record["bundle"]), hashes, content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{folder / RECORD} cannot be used ({error!r}): {rebuild}") from error


def _fitting(text: Any, form: re.Pattern[str]) -> str:
    if not isinstance(text, str) or not form.fullmatch(text):
        raise ValueError(f"{text!r}")
    return text


def _limits(values: Any) -> dict[str, Any]:
    for name, value in _typed(values, int).items():
        if not 1 <= value <= MOST_LIMIT:
            raise ValueError(f"{name} is not from 1 to {MOST_LIMIT}")
    return dict(values)


def _typed(values: Any, kind: type) -> dict[str, Any]:
    for name, value in values.items():
        if type(value) is not kind:
            raise ValueError(f"{name} {value!r}")
    return dict(values)


def _verify(engines: EngineFolder, hashes: Mapping[str, tuple[str, int]], rebuild: str) -> None:
    for name, (digest, size) in hashes.items():
        file = engines.engine_path(name)
        try:
            if file.stat().st_size != size or sha256(file) != digest:
                raise DataError(f"{file} is damaged: it is not what was built; {rebuild}")
        except OSError as error:
            raise DataError(f"cannot read {file} ({error.strerror or error}): {rebuild}") from error
