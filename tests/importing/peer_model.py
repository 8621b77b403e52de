"""The files of a small OpenFlamingo model, made again from a fixture, and what the real open_flamingo answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from benchmarks.peers.random_weights import TABLE, random_pixels, random_tensor
from flamingo_rt.importing.openflamingo import OpenFlamingoFiles

FIXTURES = Path(__file__).parent.parent / "fixtures" / "openflamingo"
CASES = sorted(path.stem for path in FIXTURES.glob("*.json"))
IMAGE_SIZE = 28
WORDS = 60  # tokens of the language model before OpenFlamingo adds its own


@dataclass(frozen=True)
class PeerPrompt:
    """One row: token ids, pictures [V, 3, H, W], the peer's logits [T, vocab] and its 32 greedy tokens."""

    input_ids: np.ndarray
    pixels: np.ndarray
    logits: np.ndarray
    greedy: np.ndarray

    def media_index(self, image_id: int) -> np.ndarray:
        return np.cumsum(self.input_ids == image_id)


class PeerFiles:
    """The tensors of a model from its description, and its three files; ``sharded``: the language model's are two."""

    def __init__(self, about: dict[str, Any], sharded: bool = False) -> None:
        self.about, self._sharded = about, sharded

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors of one of the three files: checkpoint, language or vision."""
        names, seed = self.about.get("aliases", {}), self.about["seed"]
        found = {
            name: torch.from_numpy(random_tensor(seed, names.get(name, name), shape))
            for name, shape in self.about["files"][part].items()
        }
        for name in found if part == "checkpoint" and "silent" in self.about else ():
            if TABLE.search(name) and len(found[name]) == self.about["rows"]:
                found[name][self.about["silent"]] = 0.0
        return found

    def write(self, folder: Path, write_text: Callable[[Path], None] | None = None) -> OpenFlamingoFiles:
        """The three sources as files, in one of the forms people have them in; ``write_text`` writes the tokenizer."""
        checkpoint: dict[str, Any] = self.tensors("checkpoint")
        if self.about["checkpoint_wrapping"] != "plain":
            checkpoint = {"epoch": 3, "model_state_dict": {f"module.{name}": t for name, t in checkpoint.items()}}
        torch.save(checkpoint, folder / "checkpoint.pt")
        language = folder / "language"
        language.mkdir()
        (language / "config.json").write_text(json.dumps(self.about["language_config"]))
        (write_text or write_tokenizer)(language)
        (write_shards if self._sharded else write_single)(self.tensors("language"), language)
        vision = folder / "vision"
        vision.mkdir()
        if self.about["vision"] == "transformers":
            (vision / "config.json").write_text(json.dumps(self.about["vision_config"]))
            save_file(self.tensors("vision"), vision / "model.safetensors")
        else:
            sizes, quick = self.about["vision_sizes"], self.about["activation"] == "quick_gelu"
            stated = {"model_cfg": {"quick_gelu": quick, "vision_cfg": {"head_width": sizes["head_width"]}}}
            (vision / "open_clip_config.json").write_text(json.dumps(stated))
            torch.save(self.tensors("vision"), vision / "open_clip_pytorch_model.bin")
        return OpenFlamingoFiles(folder / "checkpoint.pt", vision, language, post_norm=self.about["post_norm"])


class PeerModel(PeerFiles):
    """A case by name: its files, and its prompts."""

    def __init__(self, name: str) -> None:
        super().__init__(json.loads((FIXTURES / f"{name}.json").read_text()), bool(CASES.index(name) % 2))
        self.name = name
        data = np.load(FIXTURES / f"{name}.npz")
        ends = np.cumsum(data["lengths"])
        self.prompts = [
            PeerPrompt(
                data["input_ids"][row, :length],
                np.stack([random_pixels(self.about["seed"], index, IMAGE_SIZE) for index in self.about["pixels"][row]]),
                data["logits"][end - length : end], data["greedy"][row],
            )
            for row, (length, end) in enumerate(zip(data["lengths"], ends, strict=True))
        ]
        # Three prompts alone, then three as one batch.
        self.batches = [[self.prompts[row] for row in rows] for rows in self.about["prompts"].values()]


def write_tokenizer(folder: Path, words: int = WORDS) -> None:
    """A tokenizer that reads "w3 w5" as 3, 5."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "w2"}))


def write_single(tensors: dict[str, Tensor], folder: Path) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def write_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Two files and their index."""
    names = list(tensors)
    files = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for file, chosen in files.items():
        torch.save({name: tensors[name] for name in chosen}, folder / file)
    index = {"weight_map": {name: file for file, chosen in files.items() for name in chosen}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
