"""A bundle: one folder that holds everything a device needs, described and hashed by ``manifest.json``.

    manifest.json   vision_encoder.onnx   resampler.onnx   language_model.onnx   (weights: <graph>.onnx.data)
    tokenizer.json  reference.npz (what `flamingo-rt verify` compares with)
    engines/        (added by `flamingo-rt build`; not in the manifest)

Reading a bundle verifies every file's SHA-256 and never unpickles anything.

Format 5 is the oldest one that is read. Later versions add optional keys to the manifest, and read it without them; a
reader ignores the keys that it does not know. The configuration is the exception: an unknown key of it would change
what is computed, so it is refused.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flamingo_rt.config import FlamingoConfig, read_json
from flamingo_rt.contract import CACHE_FORMS, FLOAT_DTYPES, GRAPHS, LANGUAGE_MODEL
from flamingo_rt.errors import DataError
from flamingo_rt.step_costs import StepCosts

FORMAT_VERSION = 5
MANIFEST, TOKENIZER, REFERENCE = "manifest.json", "tokenizer.json", "reference.npz"
QUANTIZATIONS = ("int8", "fp8", "mixed", "int4")
DTYPE_OPTIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}  # as the command line names them
MOST_BYTES = 1 << 62  # of a graph's weights: what fits a signed 64-bit number, with room to add some up
LONGEST_TEXT = 2000  # characters of a license or a source
MOST_TOLERANCE = 1e9


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of weights that one run of a graph reads. ``stored``: all weights. ``each_run``: read in every run.
    ``each_token``: rows of tables that are only looked up in, for each token. ``each_distance``: tables by distance
    between tokens (relative positions), for each token that is seen."""

    stored: int
    each_run: int
    each_token: int
    each_distance: int = 0

    def read(self, tokens: int, seen: float = 0) -> int:
        """Bytes that a run over ``tokens`` tokens reads, where the last one of the longest row sees ``seen`` tokens."""
        return self.each_run + tokens * self.each_token + round(seen * self.each_distance)

    @staticmethod
    def parse(data: Any) -> WeightBytes:
        """Read a graph's entry of the manifest. Raises `KeyError`, `TypeError` or `ValueError`."""
        found = WeightBytes(*(data[name] for name in ("stored", "each_run", "each_token", "each_distance")))
        if not all(type(value) is int and 0 <= value <= MOST_BYTES for value in asdict(found).values()):
            raise ValueError(f"weight_bytes {data!r}")
        return found


@dataclass(frozen=True)
class GraphEntry:
    """One graph: its file, its lowering, the type of its weights, their quantization (None for none), the type that it
    computes in, and the bytes of weights that a run reads."""

    file: str
    lowering: str
    dtype: str
    quantization: str | None
    compute: str
    weight_bytes: WeightBytes

    @staticmethod
    def parse(data: Any) -> GraphEntry:
        """Read a graph's entry of the manifest. Raises `KeyError`, `TypeError` or `ValueError`."""
        entry = GraphEntry(
            data["file"], data["lowering"], data["dtype"], data["quantization"], data["compute"],
            WeightBytes.parse(data["weight_bytes"]),
        )
        if not (isinstance(entry.file, str) and entry.lowering in CACHE_FORMS
                and entry.quantization in (None, *QUANTIZATIONS)
                and all(dtype in FLOAT_DTYPES for dtype in (entry.dtype, entry.compute))):
            raise ValueError(f"unknown form {entry}")
        return entry


QUANTILE = 0.05  # of the probabilities of captions: the one that `Validation` keeps


@dataclass(frozen=True)
class Validation:
    """Probability of the model's captions of its own kind of pictures: ``probability`` (0 to 1) is the `QUANTILE` over
    ``captions`` captions, ``origin`` names the pictures."""

    probability: float
    captions: int
    origin: str

    @staticmethod
    def parse(data: Any) -> Validation:
        """Read the manifest's entry. Raises `KeyError`, `TypeError` or `ValueError`."""
        found = Validation(*(data[name] for name in ("probability", "captions", "origin")))
        if not (_is_number(found.probability) and 0.0 <= found.probability <= 1.0 and type(found.captions) is int
                and found.captions > 0 and isinstance(found.origin, str)):
            raise ValueError(f"validation {data!r}")
        return found


@dataclass(frozen=True)
class ReferenceEntry:
    """The reference outputs that `flamingo-rt verify` compares with: their ``file``, the largest deviation that is
    accepted of each graph, relative to a tensor's scale, and the ``origin``: what computed them."""

    file: str
    tolerance: dict[str, float]
    origin: str

    @staticmethod
    def parse(data: Any) -> ReferenceEntry:
        """Read the manifest's entry. Raises `KeyError`, `TypeError` or `ValueError`."""
        tolerance = {name: data["tolerance"][name] for name in GRAPHS}
        found = ReferenceEntry(data["file"], tolerance, data["origin"])
        if not (isinstance(found.file, str) and isinstance(found.origin, str)
                and all(_is_number(value) and 0.0 < value <= MOST_TOLERANCE for value in tolerance.values())):
            raise ValueError(f"reference {data!r}")
        return found


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. Attributes with a default are optional.

    ``parity``: the largest deviation from PyTorch per graph, measured at export; empty where nothing was compared.
    ``quantization``: how the weights are stored, and what that cost. ``rounding``: the largest deviation per graph that
    half precision makes in PyTorch, with the weights before quantization. ``validation``: how likely its captions are.
    ``reference``: what `flamingo-rt verify` compares with. ``step_costs``: costs of decode steps of several tokens.
    ``license`` and ``source`` of the weights, as given when they were exported.
    """

    path: Path
    config: FlamingoConfig
    graphs: dict[str, GraphEntry]
    parity: dict[str, float]
    quantization: dict[str, Any] | None = None
    rounding: dict[str, float] | None = None
    validation: Validation | None = None
    reference: ReferenceEntry | None = None
    step_costs: StepCosts | None = None
    license: str | None = None
    source: str | None = None

    def graph_path(self, name: str) -> Path:
        """The ``.onnx`` file of a graph."""
        return self.path / self.graphs[name].file

    @property
    def identity(self) -> str:
        """The SHA-256 of the manifest, which holds that of every other file: it identifies the bundle."""
        return sha256(self.path / MANIFEST)

    @property
    def compute(self) -> str:
        """The type that the graphs compute in, one of `FLOAT_DTYPES`."""
        return self.graphs[LANGUAGE_MODEL].compute

    @property
    def cache_form(self) -> str:
        """The form of the language model's cache, see `flamingo_rt.contract`."""
        return CACHE_FORMS[self.graphs[LANGUAGE_MODEL].lowering]

    @property
    def engines_path(self) -> Path:
        """The folder that `flamingo-rt build` adds."""
        return self.path / "engines"

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's file."""
        return self.path / TOKENIZER


def is_bundle(path: Path) -> bool:
    """Whether the folder looks like a bundle."""
    return (path / MANIFEST).is_file()


def write_manifest(folder: Path, bundle: Bundle) -> None:
    """Describe ``bundle`` and hash all files in ``folder``, where it is now; optional keys that are None are left
    out."""
    files = {
        file.name: {"sha256": sha256(file), "bytes": file.stat().st_size}
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != MANIFEST
    }
    optional = {
        "quantization": bundle.quantization,
        "rounding": bundle.rounding,
        "validation": bundle.validation and asdict(bundle.validation),
        "reference": bundle.reference and asdict(bundle.reference),
        "step_costs": bundle.step_costs and bundle.step_costs.to_json(),
        "license": bundle.license,
        "source": bundle.source,
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "config": bundle.config.to_dict(),
        "graphs": {name: asdict(entry) for name, entry in bundle.graphs.items()},
        "parity": bundle.parity,
        **{key: value for key, value in optional.items() if value is not None},
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle.

    Raises `DataError` when it is not a bundle, has another format, or a file is missing or has changed.
    """
    bundle, files = _read(path)
    for name, stated in files.items():
        _verify(path, name, stated)
    return bundle


def read_description(path: Path) -> Bundle:
    """Read a bundle's manifest alone: none of its other files is looked at.

    Raises `DataError` when it is not a bundle, or has another format.
    """
    return _read(path)[0]


@dataclass(frozen=True)
class _StatedFile:
    """A file as the manifest states it."""

    sha256: str
    bytes: int


def _read(path: Path) -> tuple[Bundle, dict[str, _StatedFile]]:
    """The bundle as its manifest describes it, and its files."""
    if not path.exists():
        raise DataError(f"there is no bundle at {path}: flamingo-rt export --ckpt CHECKPOINT --out {path} makes one")
    if not is_bundle(path):
        raise DataError(f"{path} is not a bundle: it has no {MANIFEST}; flamingo-rt export writes one")
    manifest = read_json(path / MANIFEST)
    _check_format(path, manifest)
    try:
        graphs = {name: GraphEntry.parse(manifest["graphs"][name]) for name in GRAPHS}
        parity = _numbers(manifest["parity"])
        optional = {
            key: parse(manifest[key]) for key, parse in _OPTIONAL.items() if manifest.get(key) is not None
        }
        files = {
            name: _StatedFile(str(entry["sha256"]), int(entry["bytes"])) for name, entry in manifest["files"].items()
        }
        needed = [TOKENIZER, *(name for entry in graphs.values() for name in (entry.file, f"{entry.file}.data"))]
        if "reference" in optional:
            needed.append(optional["reference"].file)
        for name in needed:
            if name not in files:
                raise ValueError(f"it has no SHA-256 of {name!r}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path / MANIFEST} is damaged ({error!r}): export the model again") from error
    for name in files:
        if not is_file_name(name):
            raise DataError(f"{path / MANIFEST} names a file outside the bundle: {name!r}; do not use this bundle")
    return Bundle(path, FlamingoConfig.from_dict(manifest.get("config")), graphs, parity, **optional), files


def _check_format(path: Path, manifest: Any) -> None:
    """Raise `DataError` unless a manifest has a format that this version reads."""
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if type(version) is not int or version < 1:
        raise DataError(f"{path / MANIFEST} is damaged: format_version is {version!r}; export the model again")
    if version < FORMAT_VERSION:
        raise DataError(
            f"bundle {path} has format {version}, of an older flamingo-rt; this one reads {FORMAT_VERSION}: export the "
            f"model again: {_export_command(path, manifest)}"
        )
    if version > FORMAT_VERSION:
        raise DataError(
            f"bundle {path} has format {version}, this flamingo-rt reads {FORMAT_VERSION}: upgrade flamingo-rt"
        )


def _export_command(path: Path, manifest: Mapping[str, Any]) -> str:
    """The command that exports a bundle of an older format again, with the options that its manifest still states."""
    try:
        entry = manifest["graphs"][LANGUAGE_MODEL]
        lowering, scheme = entry.get("lowering"), entry.get("quantization")
        compute, dtype = DTYPE_OPTIONS.get(entry.get("compute")), DTYPE_OPTIONS.get(entry.get("dtype"))
        words = ["--lowering", lowering] if lowering in CACHE_FORMS and lowering != "ort" else []
        words += ["--compute", compute] if compute not in (None, "fp32") else []
        words += ["--dtype", dtype] if dtype not in (None, "fp32", compute) else []
        words += ["--quantize", scheme] if scheme in QUANTIZATIONS else []
        words += ["--calibration", "FILE"] if scheme in ("mixed", "int4") else []
    except (KeyError, TypeError, AttributeError):
        words = []
    return shlex.join(["flamingo-rt", "export", "--ckpt", "CHECKPOINT", *words, "--overwrite", "--out", str(path)])


def _numbers(data: Any) -> dict[str, float]:
    """Numbers by graph."""
    return {str(name): float(value) for name, value in data.items()}


def _text(data: Any) -> str:
    if not isinstance(data, str) or len(data) > LONGEST_TEXT:
        raise ValueError(f"a text of at most {LONGEST_TEXT} characters was expected, not {str(data)[:60]!r}")
    return data


def _record(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"quantization {data!r}")
    return data


# Each raises `KeyError`, `TypeError`, `ValueError` or `AttributeError` for an entry that is damaged.
_OPTIONAL: dict[str, Callable[[Any], Any]] = {
    "quantization": _record, "rounding": _numbers, "validation": Validation.parse, "reference": ReferenceEntry.parse,
    "step_costs": StepCosts.parse, "license": _text, "source": _text,
}


def is_file_name(name: str) -> bool:
    """Whether a name can only be that of a file in the bundle's own folder, on every system. A link there may lead
    anywhere, as in Hugging Face's cache: the SHA-256 is compared."""
    return name not in ("", ".", "..") and not any(character in name for character in "/\\:\0")


def _verify(path: Path, name: str, stated: _StatedFile) -> None:
    """Raise `DataError` unless a file is there and has the stated size and hash."""
    file = path / name
    try:
        if not file.is_file():
            raise DataError(f"bundle {path} lacks {name}: copy it again, or export the model again")
        found = file.stat().st_size
        if found != stated.bytes:
            raise DataError(
                f"bundle {path}: {name} has {found} bytes, the manifest says {stated.bytes}; copy or export it again"
            )
        if sha256(file) != stated.sha256:
            raise DataError(
                f"bundle {path}: {name} was changed since the export (SHA-256 differs); export the model again"
            )
    except (OSError, ValueError, RuntimeError) as error:  # a name no file can have, a loop of links, no permission
        raise DataError(f"bundle {path}: cannot read {name!r} ({error}); copy or export it again") from error


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
