"""The real OpenFlamingo model at any size, filled from the three files that a user has.

The model is built without memory for its weights; tensors are then read, converted and put in place one by one, so that
there is never a second copy of them. Sizes come from the files alone. MPT-1B's query and key norms are added to the
transformers library's MPT, as in `library_models.py`. Where only the speed matters, `random_model` needs no files: it
draws random numbers on the device.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from safetensors import safe_open
from torch import Tensor, nn
from transformers import MptConfig, MptForCausalLM

from benchmarks.peers.library_models import MOSAIC_NAMES, NormedQueryKey

sys.modules.setdefault("wandb", types.ModuleType("wandb"))  # imported by open_flamingo's training code, not used here
from open_flamingo.src.factory import _infer_decoder_layers_attr_name  # noqa: E402
from open_flamingo.src.flamingo import Flamingo  # noqa: E402
from open_flamingo.src.flamingo_lm import FlamingoLMMixin  # noqa: E402
from open_flamingo.src.utils import extend_instance  # noqa: E402

HEAD_WIDTH = 64  # CLIP's encoders have heads of this width
EMBEDDING = "lang_encoder.transformer.wte.weight"
# Tensors of the pooled output, which a Flamingo does not use. Files that hold the used ones alone lack them.
UNUSED = ("vision_encoder.proj", "vision_encoder.ln_post.weight", "vision_encoder.ln_post.bias")


class Sources:
    """checkpoint.pt, vision.safetensors and language/, as ``benchmarks/random_sources.py`` writes them."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint, self.vision = folder / "checkpoint.pt", folder / "vision.safetensors"
        self.language = folder / "language"
        for path in (self.checkpoint, self.vision, self.language / "config.json"):
            if not path.exists():
                sys.exit(f"{path} is missing: benchmarks/compare.py --only sources writes the model's files")
        self.config = json.loads((self.language / "config.json").read_text(encoding="utf-8"))

    def trained(self) -> dict[str, Tensor]:
        """The checkpoint, mapped: a tensor is read when it is looked at."""
        return torch.load(self.checkpoint, mmap=True, weights_only=True)

    def shards(self) -> Iterator[dict[str, Tensor]]:
        """The language model's files, mapped, one by one."""
        for path in sorted(self.language.glob("pytorch_model*.bin")):
            yield torch.load(path, mmap=True, weights_only=True)


def make_model(folder: Path, end_of_chunk: int, media: int, dtype: torch.dtype) -> Flamingo:
    """The filled model. Ends the program when a file and the model do not fit each other."""
    sources = Sources(folder)
    trained = {name: tensor.shape for name, tensor in sources.trained().items()}
    with torch.device("meta"):
        model = _build(_shape_of(sources, trained), end_of_chunk, media)
    filler = _Filler(model, dtype, MOSAIC_NAMES if sources.config["model_type"] == "mosaic_gpt" else ())
    with safe_open(sources.vision, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            filler.take("vision_encoder." + name.removeprefix("visual."), file.get_tensor(name))
    for shard in sources.shards():
        for name, tensor in shard.items():
            if f"lang_encoder.{name}" not in trained:  # the checkpoint's embedding replaces the language model's
                filler.take(f"lang_encoder.{name}", tensor)
        del shard
        gc.collect()
    for name, tensor in sources.trained().items():
        filler.take(name, tensor)
    gc.collect()
    filler.finish()
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. ``language`` is what ``language/config.json`` says, ``rows`` the embedding's with the added
    tokens; every ``interval``-th layer is gated."""

    vision_width: int
    vision_layers: int
    patch: int
    picture: int
    language: dict[str, Any]
    rows: int
    interval: int


def random_model(
    shape: Shape, end_of_chunk: int, media: int, dtype: torch.dtype, device: str | torch.device
) -> Flamingo:
    """A model of random weights on a device. Their values keep activations near 1; gates are open."""
    with torch.device("meta"):
        model = _build(shape, end_of_chunk, media)
    model = model.to(dtype).to_empty(device=device)
    model.lang_encoder.tie_weights()
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            parameter.data.fill_(0.5)
        elif parameter.ndim < 2:
            parameter.data.fill_(float(name.endswith("weight")))
        else:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    if any(True for _ in model.buffers()):
        sys.exit("the peer has buffers, which would be random: another version of open_flamingo?")
    return model.eval().requires_grad_(False)


def _shape_of(sources: Sources, trained: dict[str, torch.Size]) -> Shape:
    with safe_open(sources.vision, "pt") as file:
        patches = file.get_slice("visual.conv1.weight").get_shape()
        places = file.get_slice("visual.positional_embedding").get_shape()[0]
        layers = len({match[1] for name in file.keys() if (match := re.search(r"resblocks\.(\d+)\.", name))})  # noqa: SIM118
    gated = {int(match[1]) for name in trained if (match := re.search(r"gated_cross_attn_layers\.(\d+)\.", name))}
    picture = int((places - 1) ** 0.5) * patches[2]
    return Shape(patches[0], layers, patches[2], picture, sources.config, trained[EMBEDDING][0], min(gated) + 1)


def _build(shape: Shape, end_of_chunk: int, media: int) -> Flamingo:
    width = shape.vision_width
    vision = CLIPVisionCfg(
        image_size=shape.picture, patch_size=shape.patch, width=width, layers=shape.vision_layers,
        head_width=HEAD_WIDTH, mlp_ratio=4.0, output_tokens=True,
    )
    visual = _build_vision_tower(width, vision, quick_gelu=True)
    visual.final_ln_after_pool = True  # tokens before the final norm, as the checkpoints were trained
    config = _language_config(shape.language, shape.rows)
    language = MptForCausalLM(config)
    if shape.language.get("attn_qk_ln"):
        for block in language.transformer.blocks:
            block.attn.Wqkv = NormedQueryKey(config.d_model)
    # As open_flamingo.src.factory does it; the embedding has its final number of rows already.
    extend_instance(language, FlamingoLMMixin)
    language.set_decoder_layers_attr_name(_infer_decoder_layers_attr_name(language))
    holder = nn.Module()
    holder.visual = visual
    return Flamingo(holder, language, end_of_chunk, media, width, shape.interval)


def _language_config(stated: dict[str, Any], rows: int) -> MptConfig:
    """The library's configuration; ``mosaic_gpt`` is MPT-1B's own code, which the library's MPT took over."""
    if stated["model_type"] not in ("mosaic_gpt", "mpt"):
        sys.exit(f"language/config.json is of a {stated['model_type']!r}: the peer is built for mosaic_gpt and mpt")
    sizes = {name: stated[name] for name in ("d_model", "n_heads", "n_layers", "max_seq_len")}
    return MptConfig(**sizes, vocab_size=rows, expansion_ratio=4, no_bias=True, use_cache=True)


class _Filler:
    """Puts tensors into a model that has none yet, and knows which are still missing."""

    def __init__(self, model: Flamingo, dtype: torch.dtype, renamed: Iterable[tuple[str, str]]) -> None:
        self._model, self._dtype = model, dtype
        self._missing = {name for name, _ in model.named_parameters()}
        self._places = {_file_name(name, renamed): name for name in self._missing}

    def take(self, name: str, tensor: Tensor) -> None:
        """Copy ``tensor`` to where the file's ``name`` belongs; rows beyond the model's are dropped, as on resizing."""
        place = self._places.get(name)
        if place is None:
            sys.exit(f"the peer has no place for tensor {name}: other files, or another version of open_flamingo?")
        parent, _, leaf = place.rpartition(".")
        module = self._model.get_submodule(parent)
        old = getattr(module, leaf)
        if tensor.shape[1:] != old.shape[1:] or tensor.shape[:1] < old.shape[:1]:
            sys.exit(f"tensor {name} is {list(tensor.shape)}, the peer needs {list(old.shape)}")
        rows = tensor[: old.shape[0]] if old.ndim else tensor
        setattr(module, leaf, nn.Parameter(rows.to(self._dtype, copy=True), requires_grad=False))
        self._missing.discard(place)

    def finish(self) -> None:
        """Tie the head, fill what is not used, and check that nothing else is left."""
        language = self._model.lang_encoder
        language.tie_weights()
        for name in UNUSED:
            if name in self._missing:
                parent, _, leaf = name.rpartition(".")
                module = self._model.get_submodule(parent)
                blank = torch.zeros(getattr(module, leaf).shape, dtype=self._dtype)
                setattr(module, leaf, nn.Parameter(blank, requires_grad=False))
        empty = [name for name, tensor in (*self._model.named_parameters(), *self._model.named_buffers())
                 if tensor.is_meta]
        if empty:
            sys.exit(f"the files hold no values for {len(empty)} tensors of the peer: {', '.join(empty[:3])}")


def _file_name(place: str, renamed: Iterable[tuple[str, str]]) -> str:
    """The name in the three files of what the peer calls ``place``; ``renamed``: the library's part, the file's."""
    place = place.replace(".decoder_layer.", ".")
    if ".gated_cross_attn_layer." in place:
        return re.sub(r"transformer\.blocks\.(\d+)\.gated_cross_attn_layer\.", r"gated_cross_attn_layers.\1.", place)
    if place.startswith("lang_encoder."):
        for ours, theirs in renamed:
            place = place.replace(ours, theirs)
    return place
