"""The state of an unfinished training, which ``train --resume`` goes on from."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import torch
from small_model import small_config

from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.training.sharding import World
from flamingo_rt.training.state import RunPosition, load_state, save_state, trained_parameters

from ..corpus.training_state import CASES, FOLDER, RUN, SHARD, write_state
from ..kind import Kind, Seeds
from ..mutators import json_text, raw
from ..sandbox import Sandbox
from .checkpoints import safetensors

IDENTITY = {"options": {"seed": 0, "learning_rate": 1e-3}, "datasets": {"scenes": [1.0, "drawn"]}}


def _model() -> tuple[Flamingo, torch.optim.AdamW]:
    model = Flamingo(small_config())
    return model, torch.optim.AdamW(trained_parameters(model).values())


def _seeds(folder: Path) -> Seeds:
    torch.manual_seed(0)
    save_state(folder / FOLDER, *_model(), RunPosition(3, 24, 1), IDENTITY, World())
    return {file.name: file.read_bytes() for file in (folder / FOLDER).iterdir()}


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    files = dict(seeds)
    if rng.random() < 0.4:
        files[RUN] = json_text.mutate(rng, files[RUN])
    elif rng.random() < 0.3:
        data = files[SHARD]
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        about = header["__metadata__"]
        key = rng.choice(sorted(about))
        about[key] = raw.mutate(rng, about[key].encode()).decode("latin-1")
        text = json.dumps(header).encode()
        files[SHARD] = len(text).to_bytes(8, "little") + text + data[8 + length :]
    else:
        files[SHARD] = safetensors(rng, files[SHARD])
    write_state(sandbox, files)


def _run(sandbox: Sandbox) -> None:
    load_state(sandbox.input / FOLDER, *_model(), IDENTITY, World())


TRAINING_STATE = Kind("training state", _seeds, _write, _run, CASES, first=100, share=0.5)
