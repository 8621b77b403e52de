"""Other projects' folders, as ``import openflamingo`` reads them: CLIP, language models and their tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from peer_model import PeerModel

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.importing.openflamingo import OpenFlamingoFiles, open_openflamingo

from ..corpus.importing import CASES, add_changed, write_sources
from ..kind import Kind, Seeds
from ..mutators import json_text, raw
from ..sandbox import Sandbox

MODELS = ("gpt_neox-interval4", "llama-interval4", "mosaic_gpt-interval4", "mpt-interval4", "opt-interval4")
LARGEST = 1_000_000
PICTURES = {
    "crop_size": {"height": 28, "width": 28}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 28}, "image_processor_type": "CLIPImageProcessor",
}
OPEN_CLIP = {
    "model_cfg": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": {"image_size": 28, "layers": 2, "width": 128,
                                                                      "patch_size": 14,
                  "head_width": 64}},
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic",
                       "resize_mode": "shortest"},
}


def _seeds(folder: Path) -> Seeds:
    seeds = {}
    for name in MODELS:
        (folder / name).mkdir()
        PeerModel(name).write(folder / name)
        for file in (folder / name).rglob("*"):
            if file.is_file():
                seeds[str(file.relative_to(folder))] = file.read_bytes()
    return seeds


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    model = rng.choice(MODELS)
    files = {name.partition("/")[2]: content for name, content in seeds.items() if name.startswith(f"{model}/")}
    extra = {
        "vision/preprocessor_config.json": PICTURES,
        "language/special_tokens_map.json": {"eos_token": {"content": "w2"}},
        "language/generation_config.json": {"eos_token_id": [2, 3]}, "vision/open_clip_config.json": OPEN_CLIP,
    }
    if rng.random() < 0.5:
        name = rng.choice(sorted(extra))
        files[name] = json_text.dumped(extra[name])
    texts = [name for name in sorted(files) if name.endswith(".json")]
    for name in rng.sample(texts, rng.choice((1, 1, 1, 2))):
        if rng.random() < 0.15:
            files[name] = raw.mutate(rng, files[name])
        elif name.endswith("config.json") and rng.random() < 0.2:
            files[name] = json_text.dumped(add_changed(rng, json.loads(files[name])))
        else:
            files[name] = json_text.mutate(rng, files[name])
    write_sources(sandbox, files)


def _run(sandbox: Sandbox) -> FlamingoConfig:
    top = sandbox.input
    model = open_openflamingo(OpenFlamingoFiles(top / "checkpoint.pt", top / "vision", top / "language")).model
    for tensor in list(model.tensors.values())[::9]:
        if tensor.nbytes <= LARGEST:
            tensor.read()
    return model.config


IMPORTING = Kind("importing", _seeds, _write, _run, CASES, first=100)
