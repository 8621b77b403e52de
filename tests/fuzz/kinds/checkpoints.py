"""Checkpoint folders: configuration, tokenizer and weights, opened and run in PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from small_model import small_checkpoint

import flamingo_rt
from flamingo_rt.presets import PRESETS, preset

from ..corpus.checkpoints import CASES, FOLDER, write_checkpoint
from ..kind import Kind, Seeds
from ..mutators import json_text, raw
from ..sandbox import Sandbox
from .models import answer

WEIGHTS = "model.safetensors"


def _seeds(folder: Path) -> Seeds:
    made = small_checkpoint(folder / "checkpoint")
    return {file.name: file.read_bytes() for file in sorted(made.iterdir())}


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    files, choice = dict(seeds), rng.random()
    if choice < 0.65:
        text = files["config.json"]
        if rng.random() < 0.1:
            text = json_text.dumped(preset(rng.choice(sorted(PRESETS))).to_dict())
        config = json.loads(text)
        part = rng.choice(sorted(config))
        changed = json_text.changed(rng, config[part]) if rng.random() < 0.7 and isinstance(config[part],
                                                                                            dict) else None
        if changed is not None:
            files["config.json"] = json_text.dumped({**config, part: changed})
        else:
            files["config.json"] = json_text.mutate(rng, text)
    elif choice < 0.8:
        files[WEIGHTS] = safetensors(rng, files[WEIGHTS])
    elif choice < 0.9:
        files["tokenizer.json"] = json_text.mutate(rng, files["tokenizer.json"])
    else:
        names = sorted(json.loads(files[WEIGHTS][8 : 8 + int.from_bytes(files[WEIGHTS][:8], "little")]))
        index = {"weight_map": {name: WEIGHTS for name in names if name != "__metadata__"}}
        shard = rng.choice(("shard.safetensors", WEIGHTS))
        files[f"{WEIGHTS}.index.json"] = json_text.mutate(rng,
                                                          json_text.dumped(index).replace(WEIGHTS.encode(),
                                                                                          shard.encode()))
        files[shard] = files.pop(WEIGHTS)
    write_checkpoint(sandbox, files)


def safetensors(rng: Random, data: bytes) -> bytes:
    """Change the header by the rules of JSON, its length kept right, or the bytes."""
    if rng.random() < 0.3:
        return raw.mutate(rng, data)
    length = int.from_bytes(data[:8], "little")
    header = json_text.mutate(rng, data[8 : 8 + length])
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _run(sandbox: Sandbox) -> None:
    answer(flamingo_rt.load(sandbox.input / FOLDER))


CHECKPOINTS = Kind("checkpoints", _seeds, _write, _run, CASES, first=150)
