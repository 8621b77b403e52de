"""Compiled prompts, ``.prompt``: archives of arrays with a JSON object about them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np

from flamingo_rt import Image

from ..corpus.prompts import CASES, FILE
from ..kind import Kind, Seeds
from ..mutators import json_text, npy, raw, zip_archive
from ..sandbox import Sandbox
from .models import PICTURE, answer, packaged


def _seeds(folder: Path) -> Seeds:
    model, end = packaged(), packaged().config.tokens.end_of_chunk
    about = {"command": "flamingo-rt prompt compile --shot a.png x --out x", "task": "caption",
             "shots": [{"file": "a.png", "sha256": "0" * 64, "text": "a red star"}]}
    model.prompt([Image(PICTURE), f"Output: a star{end}"]).save(folder / "shot", about)
    model.prompt(f"Output: a star{end}").save(folder / "text", {})
    return {name: (folder / name).read_bytes() for name in ("shot", "text")}


def _member(rng: Random, name: str, content: bytes) -> bytes:
    if name != "about.npy":
        return npy.mutate(rng, content)
    length = 10 + int.from_bytes(content[8:10], "little")
    if rng.random() < 0.2:
        return npy.mutate(rng, content)
    try:
        about = json.loads(content[length:])
    except ValueError:  # a change before this one has left no JSON
        return npy.mutate(rng, content)
    if not isinstance(about, dict):
        about = {}
    if rng.random() < 0.3:
        about["bundle"] = rng.choice(("0" * 64, "\x1b[2J", None, 7))
        about["model"] = rng.choice(json_text.TEXTS)
    text = json_text.mutate(rng, json_text.dumped(about))
    return npy.packed(repr({"descr": "|u1", "fortran_order": False, "shape": (len(text),)}), text)


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    content = seeds[rng.choice(sorted(seeds))]
    if rng.random() < 0.2:
        content = raw.mutate(rng, content, seeds["text"])
    else:
        content = zip_archive.mutate(rng, content, _member)
    (sandbox.input / FILE).write_bytes(content)


def _run(sandbox: Sandbox) -> None:
    model = packaged()
    with np.errstate(all="ignore"):
        state = model.load_prompt(sandbox.input / FILE)
        model.generate("Output:", prefix=state, max_new_tokens=1).result()
        answer(model)  # loading has not changed the model


PROMPTS = Kind("prompts", _seeds, _write, _run, CASES, first=300)
