"""The state of an unfinished training, which ``train --resume`` goes on from."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import torch
from small_model import TEXTS, small_config

from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.training.tokenizer_training import train_tokenizer
from flamingo_rt.training.trainer import MOMENTS, Run, TrainedParts, TrainingOptions, _optimizer, resume_run, save_run
from flamingo_rt.training.vision_task import VisionTask

from ..corpus.training_state import CASES, FILE
from ..kind import Kind, Seeds
from ..mutators import json_text, raw
from ..sandbox import Sandbox
from .checkpoints import safetensors

OPTIONS = TrainingOptions(steps=3)


def _seeds(folder: Path) -> Seeds:
    config = small_config()
    torch.manual_seed(0)
    parts = TrainedParts(Flamingo(config), VisionTask(config))
    tokenizer = train_tokenizer(TEXTS, config.language.vocab_size, config.tokens)
    run = Run(parts, tokenizer, _optimizer(parts, OPTIONS), OPTIONS, 1)
    for parameter in parts.parameters():
        run.optimizer.state[parameter] = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
    save_run(run, folder / FILE)
    return {FILE: (folder / FILE).read_bytes()}


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    data = seeds[FILE]
    if rng.random() < 0.6:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        about = header["__metadata__"]
        key = rng.choice(sorted(about))
        change = raw.mutate(rng, about[key].encode()).decode("latin-1") if rng.random() < 0.3 else None
        about[key] = change if change is not None else json_text.mutate(rng, about[key].encode()).decode("latin-1")
        text = json.dumps(header).encode()
        data = len(text).to_bytes(8, "little") + text + data[8 + length :]
    else:
        data = safetensors(rng, data)
    (sandbox.input / FILE).write_bytes(data)


def _run(sandbox: Sandbox) -> None:
    resume_run(sandbox.input / FILE, small_config(), OPTIONS)


TRAINING_STATE = Kind("training state", _seeds, _write, _run, CASES, first=100, share=0.5)
