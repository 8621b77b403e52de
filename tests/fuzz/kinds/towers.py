"""Folders of a single tower, which stages 1 and 2 of training write, as stage 3 joins them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import torch
from small_model import TEXTS, small_config, small_flamingo

from flamingo_rt.config import FlamingoConfig, TokensConfig
from flamingo_rt.model.language_model import LanguageModel
from flamingo_rt.training.options import FlamingoOptions
from flamingo_rt.training.parts import join_parts
from flamingo_rt.training.tokenizer_training import train_tokenizer
from flamingo_rt.training.towers import write_tower

from ..corpus.towers import CASES, LANGUAGE, VISION, write_towers
from ..kind import Kind, Seeds
from ..mutators import json_text
from ..sandbox import Sandbox
from .checkpoints import safetensors

LARGEST = 1_000_000  # bytes of a tensor that is read


def _seeds(folder: Path) -> Seeds:
    config, tokens = small_config(), TokensConfig()
    vision = {f"vision.{name}": tensor for name, tensor in small_flamingo().vision.state_dict().items()}
    write_tower(folder / VISION, "vision",
                {"vision": asdict(config.vision), "preprocessing": asdict(config.preprocessing)},
                vision | {"text.weight": torch.zeros(2)}, None)
    tokenizer = train_tokenizer(TEXTS, 280, tokens)
    language = replace(config.language, vocab_size=tokenizer.get_vocab_size())
    tensors = {f"language.{name}": tensor for name, tensor in LanguageModel(language).state_dict().items()}
    write_tower(folder / LANGUAGE, "language", {"language": asdict(language), "tokens": asdict(tokens)}, tensors,
                tokenizer.to_str())
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    files = dict(seeds)
    name = rng.choice([name for name in sorted(files) for _ in range(3 if name.endswith("config.json") else 1)])
    change = safetensors if name.endswith(".safetensors") else json_text.mutate
    files[name] = change(rng, files[name])
    write_towers(sandbox, files)


def _run(sandbox: Sandbox) -> FlamingoConfig:
    joined = join_parts(FlamingoOptions(vision=str(sandbox.input / VISION), language=str(sandbox.input / LANGUAGE)))
    for tensor in joined.tensors.values():
        if tensor.nbytes <= LARGEST:
            tensor.read()
    return joined.config


TOWERS = Kind("towers", _seeds, _write, _run, CASES, first=80)
