"""Bundles: graphs whose weights lie elsewhere, names that lead outside, layouts people have."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from flamingo_rt.bundle import REFERENCE

from ..kind import Case, Seeds
from ..mutators import protobuf
from ..sandbox import Sandbox

FOLDER = "bundle"
LANGUAGE = "language_model.onnx"


def restated(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same files, with a manifest that has the hash and size of each."""
    manifest = json.loads(files["manifest.json"])
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in files.items() if name in manifest["files"]
    }
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def write_bundle(sandbox: Sandbox, files: Mapping[str, bytes], folder: str = FOLDER) -> Path:
    """A bundle of files."""
    top = sandbox.input / folder
    for name, content in files.items():
        place = top / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return top


def engine_record() -> bytes:
    """The record of engines, with everything that would let them run."""
    return json.dumps({
        "format_version": 1, "bundle": "0" * 64, "target": "tensorrt", "version": "10.15.0", "device": "x",
        "capabilities": ["8.6"], "lowering": "tensorrt", "compute": "float32",
        "limits": {"max_batch": 1, "max_tokens": 64, "max_visuals": 1, "max_frames": 1, "capacity": 64},
        "options": {"version_compatible": True, "weight_stripped": False},
        "engines": {name: {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
                    for name in ("vision_encoder", "resampler", "language_model")},
    }).encode()


def _case(name: str, change: Callable[[dict[str, bytes], Sandbox], dict[str, bytes]],
          refused: bool | None = True) -> Case:
    return Case(name, lambda sandbox, seeds: write_bundle(sandbox, change(dict(seeds), sandbox)) and None, refused)


def _located(location: str, more: bytes | None = None) -> Callable[[dict[str, bytes], Sandbox], dict[str, bytes]]:
    """The language model's weights at another place; ``more`` is a file of that name in the bundle, in no manifest."""

    def change(files: dict[str, bytes], sandbox: Sandbox) -> dict[str, bytes]:
        place = location.format(sandbox.outside)
        files[LANGUAGE] = protobuf.replaced(files[LANGUAGE], f"{LANGUAGE}.data".encode(), place.encode())
        files = restated(files)
        return files if more is None else {**files, location: files[f"{LANGUAGE}.data"]}

    return change


def _named(name: str, bytes_: int = 24) -> Callable[[dict[str, bytes], Sandbox], dict[str, bytes]]:
    """A manifest with one more file."""

    def change(files: dict[str, bytes], sandbox: Sandbox) -> dict[str, bytes]:
        manifest = json.loads(files["manifest.json"])
        manifest["files"][name.format(sandbox.outside)] = {"sha256": "0" * 64, "bytes": bytes_}
        return {**files, "manifest.json": json.dumps(manifest).encode()}

    return change


def _as_downloaded(sandbox: Sandbox, seeds: Seeds) -> None:
    """The layout of the Hugging Face cache: every file a link to a blob that is named by its hash."""
    blobs, folder = sandbox.input / "blobs", sandbox.input / FOLDER
    blobs.mkdir()
    folder.mkdir()
    for name, content in seeds.items():
        blob = blobs / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (folder / name).symlink_to(os.path.relpath(blob, folder))


def _linked_outside(sandbox: Sandbox, seeds: Seeds) -> None:
    folder = write_bundle(sandbox, _located("extra.data")(dict(seeds), sandbox))
    (folder / "extra.data").symlink_to(sandbox.outside / "secret.txt")


def _with_engines(files: dict[str, bytes], sandbox: Sandbox) -> dict[str, bytes]:
    record = json.loads(engine_record())
    record["bundle"] = hashlib.sha256(files["manifest.json"]).hexdigest()
    graphs = ("vision_encoder", "resampler", "language_model")
    return {**files, "engines/tensorrt-x/engine.json": json.dumps(record).encode(),
            **{f"engines/tensorrt-x/{graph}.engine": b"x" for graph in graphs}}


def _config(part: str, key: str, value: object) -> Callable[[dict[str, bytes], Sandbox], dict[str, bytes]]:
    def change(files: dict[str, bytes], sandbox: Sandbox) -> dict[str, bytes]:
        manifest = json.loads(files["manifest.json"])
        manifest["config"][part][key] = value
        return {**files, "manifest.json": json.dumps(manifest).encode()}

    return change


def _reference(change: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes], Sandbox], dict[str, bytes]]:
    """Other reference outputs, in a manifest that agrees."""
    return lambda files, sandbox: restated({**files, REFERENCE: change(files[REFERENCE])})


def _with_nan(content: bytes) -> bytes:
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name].copy() for name in file.files}
    arrays["features"][0] = np.nan
    written = io.BytesIO()
    np.savez(written, **arrays)
    return written.getvalue()


def _without_reference(files: dict[str, bytes], sandbox: Sandbox) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name != REFERENCE}


CASES = (
    _case("reference outputs that are missing", _without_reference),
    _case("reference outputs cut short", _reference(lambda content: content[: len(content) // 2])),
    _case("reference outputs that are no archive", _reference(lambda content: b"x" * 100)),
    _case("reference outputs with NaN", _reference(_with_nan)),
    _case("weights above the bundle", _located("../../outside/secret.txt")),
    _case("weights at an absolute path", _located("{0}/secret.txt")),
    _case("weights in a file of no manifest", _located("extra.data", b"")),
    _case("weights of another graph", _located("resampler.onnx.data")),
    Case("weights behind a link to outside", _linked_outside),
    Case("layout of the Hugging Face cache", _as_downloaded, False),
    _case("manifest that names a file above", _named("../../outside/secret.txt")),
    _case("manifest that names an absolute path", _named("{0}/secret.txt")),
    _case("manifest that names what a terminal obeys", _named("\x1b]52;c;aGFjaw==\x07")),
    _case("manifest that names a NUL", _named("a\x00b")), _case("manifest that names the folder", _named(".", 4096)),
    _case("manifest with a size of 400 digits", _named("tokenizer.json", 10**400)),
    _case("engines of a stranger", _with_engines, None),
    _case("width of 10^18", _config("language", "width", 10**18)),
    _case("a million layers", _config("language", "layers", 10**6)),
    _case("context of 10^18", _config("language", "context", 10**18)),
    _case("token that a terminal obeys", _config("tokens", "image", "\x1b]52;c;aGFjaw==\x07")),
)
