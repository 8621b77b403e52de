"""Bundles as a whole: manifest, graphs, weights, tokenizer, engines; the manifest mostly has the right hashes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

import flamingo_rt
from flamingo_rt.bundle import REFERENCE, read_description
from flamingo_rt.runtime.reference_outputs import read_reference
from flamingo_rt.runtime.verification import verify

from ..corpus.bundles import CASES, FOLDER, engine_record, restated, write_bundle
from ..kind import Kind, Seeds
from ..mutators import json_text, npy, protobuf, raw, zip_archive
from ..sandbox import Sandbox
from .models import FILES, answer, packaged_files

GRAPHS = [name for name in FILES if name.endswith(".onnx")]


def _seeds(folder: Path) -> Seeds:
    return packaged_files(*FILES)


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    files, choice = dict(seeds), rng.random()
    if choice < 0.5:
        files["manifest.json"] = json_text.mutate(rng, files["manifest.json"])
        if rng.random() < 0.5:  # else most changes hit sizes in the configuration
            manifest = json.loads(seeds["manifest.json"])
            part = rng.choice(("config", "graphs", "files", "parity"))
            manifest[part] = json_text.changed(rng, manifest[part])
            files["manifest.json"] = json_text.dumped(manifest)
    elif choice < 0.75:
        name = rng.choice(GRAPHS)
        files[name] = protobuf.mutate(rng, files[name]) if rng.random() < 0.8 else raw.mutate(rng, files[name])
        if rng.random() < 0.3:
            files["hostile.data"] = bytes(1000)
    elif choice < 0.85:
        files["tokenizer.json"] = json_text.mutate(rng, files["tokenizer.json"])
    elif choice < 0.88:
        files[REFERENCE] = zip_archive.mutate(rng, files[REFERENCE], lambda rng, member, data: npy.mutate(rng, data))
    elif choice < 0.9:
        name = rng.choice([f"{graph}.data" for graph in GRAPHS])
        files[name] = raw.mutate(rng, files[name])
    else:
        files["engines/tensorrt-x/engine.json"] = json_text.mutate(rng, engine_record())
        files |= {f"engines/tensorrt-x/{graph[:-5]}.engine": b"x" for graph in GRAPHS if rng.random() < 0.7}
    if choice >= 0.5 and choice < 0.9:
        files = restated(files)
    folder = write_bundle(sandbox, files)
    if rng.random() < 0.05:  # no file, or one that nobody writes to
        victim = folder / rng.choice(FILES)
        victim.unlink()
        rng.choice((lambda: victim.symlink_to("missing"), lambda: victim.symlink_to(victim.name), victim.mkdir,
                    lambda: os.mkfifo(victim)))()


def _run(sandbox: Sandbox) -> None:
    folder = sandbox.input / FOLDER
    model = flamingo_rt.load(folder, threads=1)
    answer(model)
    bundle = read_description(folder)
    if bundle.reference is not None:
        reference = read_reference(folder / bundle.reference.file, bundle.config)
        verify(model.backend, bundle.config, reference, bundle.reference.tolerance)


BUNDLES = Kind("bundles", _seeds, _write, _run, CASES, seconds=20, first=60, share=2.0)
