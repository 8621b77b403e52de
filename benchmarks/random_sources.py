"""An OpenFlamingo model's three source files with random values: what a user has, at any size.

    python -m benchmarks.random_sources --preset openflamingo-3b --out FOLDER

Writes checkpoint.pt, vision.safetensors and language/ (configuration, shards, tokenizer), each tensor made in memory by
itself. The values are drawn from a fixed seed. `large_model.py` and `compare.py` use it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from benchmarks.comparison.shapes import SHAPES, shape_of
from benchmarks.peers.random_weights import offset_and_scale
from benchmarks.processes import folder_bytes
from flamingo_rt.checkpoints import expected_shapes
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.importing.clip import vision_tensors
from flamingo_rt.importing.families import FAMILIES
from flamingo_rt.importing.openflamingo_checkpoint import cross_attention_tensors, resampler_tensors
from flamingo_rt.importing.sources import Source, TensorSlice

# Settings in the language models' own files that matter here.
MOSAIC = {"model_type": "mosaic_gpt", "alibi": True, "alibi_bias_max": 8, "attn_qk_ln": True, "no_bias": True}
MPT = {"model_type": "mpt", "attn_config": {"alibi": True, "qk_ln": False}, "no_bias": True}
NEOX = {"model_type": "gpt_neox", "rotary_pct": 1.0, "use_parallel_residual": False, "eos_token_id": 0}
LANGUAGE_ROWS = {"mosaic_gpt": 50368, "mpt": 50432, "gpt_neox": 50432}
TOKENIZER_SIZE = 50277
LAST_NORM = re.compile(r"\.(ln_f|norm_f)\.weight$")
EMBEDDING = re.compile(r"\.(wte|embed_in)\.weight$")
SHARD_BYTES = 2_000_000_000


def language_settings(config: FlamingoConfig) -> dict:
    """A ``config.json`` for the preset's language model."""
    language = config.language
    if language.positions == "rotary":
        return NEOX | {
            "hidden_size": language.width, "num_hidden_layers": language.layers, "intermediate_size": language.ff_width,
            "num_attention_heads": language.heads, "max_position_embeddings": language.context,
        }
    sizes = {
        "d_model": language.width, "n_layers": language.layers, "n_heads": language.heads,
        "max_seq_len": language.context,
    }
    return (MOSAIC if language.query_key_norm else MPT) | sizes


def foreign_shapes(
    slices: Mapping[str, TensorSlice], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the foreign tensors that ``slices`` are cut from."""
    return {
        part.name: (shapes[name][0] * part.count, *shapes[name][1:]) if shapes[name] else ()
        for name, part in slices.items()
    }


def random_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform, sized as `random_weights` has it, so that all parts of the model matter, but for what repeats one token:
    such an answer would say little about a runtime and flatter speculation.

    The embedding is larger, or every step would be the same function of the same picture. Signs of the last norm are
    random: with a tied head the likeliest token would else be the last one again.
    """
    offset, scale = offset_and_scale(name, shape)
    if EMBEDDING.search(name):
        scale *= 4
    values = torch.empty(shape).uniform_(-scale, scale).add_(offset)
    return values * torch.randint(0, 2, shape).mul_(2).sub_(1) if LAST_NORM.search(name) else values


def write_sources(config: FlamingoConfig, folder: Path) -> None:
    """checkpoint.pt, vision.safetensors and language/, each made in memory by itself."""
    torch.manual_seed(0)
    settings = language_settings(config)
    family, rows = FAMILIES[settings["model_type"]], LANGUAGE_ROWS[settings["model_type"]]
    shapes = expected_shapes(config)
    language = folder / "language"
    language.mkdir(parents=True)
    (language / "config.json").write_text(json.dumps(settings))
    (language / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    write_tokenizer(language / "tokenizer.json")

    marker = {"transformer.blocks.0.ln_1.weight": None} if settings["model_type"] == "mosaic_gpt" else {}
    slices = family.tensors(Source("", folder, marker), config.language)
    ours = {name.removeprefix("language."): shape for name, shape in shapes.items() if name.startswith("language.")}
    names = {family.embedding: (rows, config.language.width)} | foreign_shapes(slices, ours)
    if not config.language.tied_head:
        names[family.head] = (rows, config.language.width)
    write_shards(names, language)

    trained = resampler_tensors(config.resampler) | cross_attention_tensors(config.cross_layers)
    tensors = {
        (name if name.startswith("perceiver.") else f"lang_encoder.{name}"): random_tensor(name, shape)
        for name, shape in foreign_shapes(trained, shapes).items()
    }
    embedded = (config.language.vocab_size, config.language.width)
    tensors[f"lang_encoder.{family.embedding}"] = random_tensor(family.embedding, embedded)
    torch.save(tensors, folder / "checkpoint.pt")
    del tensors

    marker = {"visual.class_embedding": None}
    slices = vision_tensors(Source("", folder, marker), config.vision)
    save_file(
        {name: random_tensor(name, shape) for name, shape in foreign_shapes(slices, shapes).items()},
        folder / "vision.safetensors",
    )


def write_shards(names: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """pytorch_model-*.bin and their index."""
    groups, room = [[]], SHARD_BYTES
    for name, shape in names.items():
        size = 4 * int(np.prod(shape))
        if groups[-1] and size > room:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(name)
        room -= size
    index = {}
    for number, group in enumerate(groups, 1):
        file = f"pytorch_model-{number:05}-of-{len(groups):05}.bin"
        torch.save({name: random_tensor(name, names[name]) for name in group}, folder / file)
        index |= dict.fromkeys(group, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def write_tokenizer(path: Path) -> None:
    """A byte-level tokenizer with as many tokens as GPT-NeoX's; all but the bytes are made up and never met."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {letter: number for number, letter in enumerate(letters, 1)}
    for number in range(len(vocabulary), TOKENIZER_SIZE):
        vocabulary[f"<unused{number}>"] = number
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


def ensure_sources(config: FlamingoConfig, folder: Path) -> None:
    """Write the sources into ``folder`` unless it is there; a killed run leaves nothing that looks whole."""
    if folder.exists():
        return
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    start = time.perf_counter()
    write_sources(config, partial)
    partial.rename(folder)
    print(f"wrote {folder_bytes(folder) / 1e9:.1f} GB of random sources in {time.perf_counter() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="openflamingo-3b", help=f"a preset, or of {', '.join(SHAPES)}")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    options = parser.parse_args()
    ensure_sources(shape_of(options.preset), options.out)


if __name__ == "__main__":
    main()
