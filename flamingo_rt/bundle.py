"""A bundle: one folder that holds everything a device needs, described and hashed by ``manifest.json``.

    manifest.json   vision_encoder.onnx   resampler.onnx   language_model.onnx   (weights: <graph>.onnx.data)
    tokenizer.json  engines/ (what flamingo-rt build adds; not in the manifest)

Reading a bundle verifies every file's SHA-256 and never unpickles anything.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flamingo_rt.config import FlamingoConfig, read_json
from flamingo_rt.contract import CACHE_FORMS, FLOAT_DTYPES, GRAPHS, LANGUAGE_MODEL
from flamingo_rt.errors import DataError

FORMAT_VERSION = 4
MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
QUANTIZATIONS = ("int8", "fp8", "mixed", "int4")


@dataclass(frozen=True)
class GraphEntry:
    """One graph: its file, which lowering it has, the type of its weights, how they are quantized, if at all, and the
    type that it computes in."""

    file: str
    lowering: str
    dtype: str
    quantization: str | None
    compute: str = "float32"


QUANTILE = 0.05  # of the probabilities of captions: what `Validation` keeps of them


@dataclass(frozen=True)
class Validation:
    """How likely the model's captions of its own kind of pictures were: ``probability`` (0 to 1) is the `QUANTILE` of
    those of ``captions``, ``origin``."""

    probability: float
    captions: int
    origin: str

    @staticmethod
    def parse(data: Any) -> Validation | None:
        """From the manifest's optional entry; keys that are not known are for newer versions. Raises `ValueError`."""
        if data is None:
            return None
        found = Validation(*(data[name] for name in ("probability", "captions", "origin")))
        number = isinstance(found.probability, (int, float)) and not isinstance(found.probability, bool)
        if not (number and 0.0 <= found.probability <= 1.0 and type(found.captions) is int and found.captions > 0
                and isinstance(found.origin, str)):
            raise ValueError(f"validation {data!r}")
        return found


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk. ``parity`` is the largest deviation from PyTorch per graph, measured at export;
    ``quantization``, for a quantized bundle, is how its weights are stored and what that cost; ``rounding``, for one
    that computes in half precision, is the largest deviation per graph that this makes in PyTorch; ``validation``,
    where it was measured, is how likely its captions are."""

    path: Path
    config: FlamingoConfig
    graphs: dict[str, GraphEntry]
    parity: dict[str, float]
    quantization: dict[str, Any] | None = None
    rounding: dict[str, float] | None = None
    validation: Validation | None = None

    def graph_path(self, name: str) -> Path:
        """The ``.onnx`` file of a graph."""
        return self.path / self.graphs[name].file

    @property
    def identity(self) -> str:
        """What tells it from other bundles: the SHA-256 of its manifest, which holds that of every other file."""
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


def write_manifest(
    folder: Path, config: FlamingoConfig, graphs: dict[str, GraphEntry], parity: dict[str, float],
    quantization: dict[str, Any] | None = None, rounding: dict[str, float] | None = None,
    validation: Validation | None = None,
) -> None:
    """Describe and hash all files in ``folder``."""
    files = {
        file.name: {"sha256": sha256(file), "bytes": file.stat().st_size}
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != MANIFEST
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "config": config.to_dict(),
        "graphs": {name: asdict(entry) for name, entry in graphs.items()},
        "parity": parity,
        "quantization": quantization,
        "rounding": rounding,
        **({} if validation is None else {"validation": asdict(validation)}),
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle.

    Raises `DataError` when it is no bundle, of a newer format, or when a file is missing or has changed.
    """
    if not path.exists():
        raise DataError(f"there is no bundle at {path}: flamingo-rt export --ckpt CHECKPOINT --out {path} makes one")
    if not is_bundle(path):
        raise DataError(f"{path} is not a bundle: it has no {MANIFEST}; flamingo-rt export writes one")
    manifest = read_json(path / MANIFEST)
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if type(version) is not int or version < 1:
        raise DataError(f"{path / MANIFEST} is damaged: format_version is {version!r}; export the model again")
    if version < FORMAT_VERSION:
        raise DataError(
            f"bundle {path} has format {version}, of an older flamingo-rt; this one reads {FORMAT_VERSION}: export the "
            "model again"
        )
    if version > FORMAT_VERSION:
        raise DataError(
            f"bundle {path} has format {version}, this flamingo-rt reads up to {FORMAT_VERSION}: upgrade flamingo-rt"
        )
    try:
        graphs = {name: GraphEntry(**manifest["graphs"][name]) for name in GRAPHS}
        files: dict[str, Any] = dict(manifest["files"])
        parity = {name: float(value) for name, value in manifest["parity"].items()}
        quantization, rounding = manifest.get("quantization"), manifest.get("rounding")
        if rounding is not None:
            rounding = {name: float(value) for name, value in rounding.items()}
        if quantization is not None and not isinstance(quantization, dict):
            raise ValueError(f"quantization {quantization!r}")
        validation = Validation.parse(manifest.get("validation"))
        names = [name for entry in graphs.values() for name in (entry.file, f"{entry.file}.data")]
        for name in [TOKENIZER, *names]:
            files[name]
        for entry in graphs.values():
            known = entry.lowering in CACHE_FORMS and entry.quantization in (None, *QUANTIZATIONS)
            if not known or any(dtype not in FLOAT_DTYPES for dtype in (entry.dtype, entry.compute)):
                raise ValueError(f"unknown form {entry}")
        hashes = {name: (str(entry["sha256"]), int(entry["bytes"])) for name, entry in files.items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path / MANIFEST} is damaged ({error!r}): export the model again") from error
    for name, (digest, size) in hashes.items():
        if not is_file_name(name):
            raise DataError(f"{path / MANIFEST} names a file outside the bundle: {name!r}; do not use this bundle")
        try:
            _verify(path, name, digest, size)
        except (OSError, ValueError, RuntimeError) as error:  # a name no file can have, a loop of links, no permission
            raise DataError(f"bundle {path}: cannot read {name!r} ({error}); copy or export it again") from error
    config = FlamingoConfig.from_dict(manifest.get("config"))
    return Bundle(path, config, graphs, parity, quantization, rounding, validation)


def is_file_name(name: str) -> bool:
    """Whether a name can only be that of a file in the folder it is looked for in, on every system. Where that file
    really is does not matter, its SHA-256 is known: caches (Hugging Face's) hold links."""
    return name not in ("", ".", "..") and not any(character in name for character in "/\\:\0")


def _verify(path: Path, name: str, digest: str, size: int) -> None:
    file = path / name
    if not file.is_file():
        raise DataError(f"bundle {path} lacks {name}: copy it again, or export the model again")
    found = file.stat().st_size
    if found != size:
        raise DataError(f"bundle {path}: {name} has {found} bytes, the manifest says {size}; copy or export it again")
    if sha256(file) != digest:
        raise DataError(f"bundle {path}: {name} was changed since the export (SHA-256 differs); export the model again")


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
