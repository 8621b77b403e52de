"""Weight files: safetensors and their index, PyTorch's archives and older pickles, TorchScript."""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save

from flamingo_rt.weights.weight_files import open_weights

from ..corpus.weights import CASES, FOLDER, write_weights
from ..kind import Kind, Seeds
from ..mutators import json_text, pickle_opcodes, raw, zip_archive
from ..sandbox import Sandbox
from .checkpoints import safetensors

LARGEST = 50_000_000  # bytes of a tensor that is read: who reads more knows the shape beforehand


class _Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.register_buffer("count", torch.arange(4))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layer(values)


def _seeds(folder: Path) -> Seeds:
    values = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = OrderedDict(a=values, b=values[1], c=torch.ones(5, dtype=torch.int64), d=values.half().t(),
                          e=values.bfloat16())
    seeds = {"model.safetensors": save({name: tensor.clone().contiguous() for name, tensor in tensors.items()},
                                       {"format": "pt"})}
    for name, content, options in (
        ("plain.pt", tensors, {}), ("nested.pt", {"state_dict": tensors, "epoch": 3, "optimizer": {"lr": [0.1]}}, {}),
        ("old.bin", tensors, {"_use_new_zipfile_serialization": False}),
        ("module.pt", OrderedDict((f"module.{name}", torch.nn.Parameter(values)) for name in "ab"), {}),
    ):
        file = io.BytesIO()
        torch.save(content, file, **options)
        seeds[name] = file.getvalue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.trace(_Small(), torch.ones(1, 3)), folder / "script.pt")
    return {**seeds, "script.pt": (folder / "script.pt").read_bytes()}


def _member(rng: Random, name: str, content: bytes) -> bytes:
    return pickle_opcodes.mutate(rng, content) if name.endswith(".pkl") else raw.mutate(rng, content)


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    name = rng.choice(sorted(seeds))
    content = seeds[name]
    if rng.random() < 0.1:
        index = {"weight_map": dict.fromkeys("abc", name), "metadata": {"total_size": 100}}
        text = json_text.mutate(rng, json_text.dumped(index))
        write_weights(sandbox, {"model.safetensors.index.json": text, name: content})
        return
    if rng.random() < 0.15:
        content = raw.mutate(rng, content, seeds[rng.choice(sorted(seeds))])
    elif name == "model.safetensors":
        content = safetensors(rng, content)
    elif content.startswith(b"PK"):
        content = zip_archive.mutate(rng, content, _member)
        if rng.random() < 0.8:  # mostly what is in data.pkl matters
            content = zip_archive.mutate(rng, seeds[name], lambda rng, member, data: (
                pickle_opcodes.mutate(rng, data) if member.endswith("data.pkl") else data
            ))
    else:
        content = pickle_opcodes.mutate(rng, content)
    write_weights(sandbox, {name: content})


def _run(sandbox: Sandbox) -> None:
    for tensor in open_weights(sandbox.input / FOLDER).values():
        if tensor.nbytes <= LARGEST:
            tensor.to(torch.float32).read()


WEIGHTS = Kind("weights", _seeds, _write, _run, CASES, first=400)
