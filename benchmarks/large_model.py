"""Time and peak memory of import, export and infer for a model of a released size, with random weights.

    python benchmarks/large_model.py --preset openflamingo-3b --work /path/with/40GB

Writes the three source files that a user of OpenFlamingo has (checkpoint.pt, CLIP's weights, the language model's
folder) with random values, once, then runs the command line on them, each command in a process of its own whose largest
resident memory the kernel reports. Mapped files count: a page that is read is resident. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from flamingo_rt.checkpoints import expected_shapes
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.importing.clip import vision_tensors
from flamingo_rt.importing.families import FAMILIES
from flamingo_rt.importing.sources import Source, Take
from flamingo_rt.importing.trained import cross_attention_tensors, resampler_tensors
from flamingo_rt.presets import preset

# What the language models' own files say, as far as it matters here.
MOSAIC = {"model_type": "mosaic_gpt", "alibi": True, "alibi_bias_max": 8, "attn_qk_ln": True, "no_bias": True}
MPT = {"model_type": "mpt", "attn_config": {"alibi": True, "qk_ln": False}, "no_bias": True}
NEOX = {"model_type": "gpt_neox", "rotary_pct": 1.0, "use_parallel_residual": False, "eos_token_id": 0}
LANGUAGE_ROWS = {"mosaic_gpt": 50368, "mpt": 50432, "gpt_neox": 50432}
TOKENIZER_SIZE = 50277
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


def foreign_shapes(takes: Mapping[str, Take], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the foreign tensors that ``takes`` reads."""
    return {
        take.name: (shapes[name][0] * take.count, *shapes[name][1:]) if shapes[name] else ()
        for name, take in takes.items()
    }


def random_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Normal, with the deviation of a fan-in initialisation; norms near 1, gates open."""
    if name.endswith("gate"):
        return torch.full(shape, 0.5)
    if len(shape) < 2:
        return (torch.randn(shape) * 0.1) + (1.0 if name.endswith("weight") else 0.0)
    return torch.empty(shape).normal_(std=float(np.prod(shape[1:])) ** -0.5)


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
    takes = family.tensors(Source("", folder, marker), config.language)
    ours = {name.removeprefix("language."): shape for name, shape in shapes.items() if name.startswith("language.")}
    names = {family.embedding: (rows, config.language.width)} | foreign_shapes(takes, ours)
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
    takes = vision_tensors(Source("", folder, marker), config.vision)
    save_file(
        {name: random_tensor(name, shape) for name, shape in foreign_shapes(takes, shapes).items()},
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


def measure(command: list[str]) -> tuple[float, int, str]:
    """Seconds, peak resident bytes and output of a process. Ends this program when it fails."""
    print("$", " ".join(command), flush=True)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.append(process.stdout.read()))
    reader.start()
    _, status, usage = os.wait4(process.pid, 0)
    reader.join()
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"failed with status {status}: {' '.join(command)}")
    return seconds, usage.ru_maxrss * 1024, output[0].strip()


def folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="openflamingo-3b")
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for four times the model")
    parser.add_argument("--dtype", action="append", choices=["fp32", "fp16", "bf16"], help="repeatable; default fp32")
    parser.add_argument("--direct", action="store_true", help="export from the three sources too")
    parser.add_argument("--keep", action="store_true", help="keep checkpoint and bundle")
    options = parser.parse_args()
    config, sources = preset(options.preset), options.work / options.preset
    if not sources.exists():
        partial = sources.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        start = time.perf_counter()
        write_sources(config, partial)
        partial.rename(sources)
        print(f"wrote {folder_bytes(sources) / 1e9:.1f} GB of random sources in {time.perf_counter() - start:.0f} s")
    picture = options.work / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(picture)
    files = ["--vision", str(sources / "vision.safetensors"), "--language", str(sources / "language")]
    tool, rows = [sys.executable, "-m", "flamingo_rt"], []

    def run(name: str, dtype: str, command: list[str], weights: int, out: Path | None) -> None:
        seconds, peak, output = measure(tool + command)
        written = folder_bytes(out) if out else weights
        rows.append({"step": name, "dtype": dtype, "seconds": round(seconds, 1), "peak_bytes": peak,
                     "weight_bytes": written, "ratio": round(peak / written, 3), "output": output.splitlines()[-1]})
        memory = f"peak {peak / 1e9:.2f} GB = {peak / written:.2f} of {written / 1e9:.2f} GB"
        print(f"{name} {dtype}: {seconds:.0f} s, {memory}")

    for dtype in options.dtype or ["fp32"]:
        checkpoint, bundle, direct = (options.work / f"{dtype}-{name}" for name in ("checkpoint", "bundle", "direct"))
        for folder in (checkpoint, bundle, direct):
            shutil.rmtree(folder, ignore_errors=True)
        run("import", dtype, ["import", "openflamingo", "--checkpoint", str(sources / "checkpoint.pt"), *files,
                              "--preset", options.preset, "--dtype", dtype, "--out", str(checkpoint)], 0, checkpoint)
        run("export", dtype, ["export", "--ckpt", str(checkpoint), "--dtype", dtype, "--out", str(bundle)], 0, bundle)
        weights = folder_bytes(bundle)
        run("infer", dtype, ["infer", "--model", str(bundle), "--image", str(picture), "--max-new-tokens", "8",
                             "--json"], weights, None)
        if not options.keep:
            shutil.rmtree(checkpoint)
        if options.direct:
            run("export from the sources", dtype, ["export", "--ckpt", str(sources / "checkpoint.pt"), *files,
                                                   "--dtype", dtype, "--out", str(direct)], 0, direct)
            shutil.rmtree(direct)
        if not options.keep:
            shutil.rmtree(bundle)
    print(json.dumps({
        "preset": options.preset, "cores": os.cpu_count(), "machine": platform.machine(),
        "python": platform.python_version(), "torch": torch.__version__, "runs": rows,
    }))


if __name__ == "__main__":
    main()
