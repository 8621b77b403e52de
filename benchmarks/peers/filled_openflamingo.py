"""The real OpenFlamingo model of a case, filled the way OpenFlamingo is: two pretrained files, then a checkpoint."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import dataclass
from typing import Any

import torch
from open_flamingo.src.factory import _infer_decoder_layers_attr_name
from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.flamingo_lm import FlamingoLMMixin
from open_flamingo.src.utils import extend_instance
from torch import nn

from benchmarks.peers.library_models import file_name, in_checkpoint, make_language, old_buffers, tied
from benchmarks.peers.openflamingo_cases import VISION, Case
from benchmarks.peers.random_weights import TABLE
from benchmarks.peers.vision import make_vision, value

sys.modules.setdefault("wandb", types.ModuleType("wandb"))  # imported by the next module, not used by its function
from open_flamingo.train.train_utils import filter_state_dict_to_trainable  # noqa: E402

Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class Peer:
    """The model, and what its three files hold. ``aliases``: names whose values are those of another name."""

    model: Flamingo
    language: Shapes
    vision: Shapes
    checkpoint: Shapes
    aliases: dict[str, str]
    language_config: dict[str, Any]
    vision_config: dict[str, Any] | None
    predictable: int


def make_peer(case: Case) -> Peer:
    torch.manual_seed(0)  # nothing random is left in the end; the resized rows are drawn before they are replaced
    visual, vision, vision_config = make_vision(case)
    language_model, language_config = make_language(case)
    is_tied = tied(language_model)
    language, aliases = fill_language(case, language_model, is_tied)

    # As open_flamingo.src.factory does it.
    extend_instance(language_model, FlamingoLMMixin)
    layers = _infer_decoder_layers_attr_name(language_model)
    language_model.set_decoder_layers_attr_name(layers)
    language_model.resize_token_embeddings(case.resized)
    holder = nn.Module()
    holder.visual = visual
    model = Flamingo(
        holder, language_model, case.end_of_chunk, case.media, VISION["width"], case.interval
    ).eval()
    model.requires_grad_(False)
    model.perceiver.requires_grad_(True)
    language_model.gated_cross_attn_layers.requires_grad_(True)
    language_model.get_input_embeddings().requires_grad_(True)

    checkpoint = checkpoint_shapes(case, model, layers)
    embedding = next(name for name in checkpoint if checkpoint[name][0:1] == [case.resized] and "lang_encoder" in name)
    for name in checkpoint:
        canonical = canonical_name(case, name, checkpoint[name], layers, language)
        if is_tied and name == "lang_encoder.lm_head.weight":
            canonical = embedding
        if canonical != name:
            aliases[name] = canonical
    fill_checkpoint(case, model, checkpoint, aliases)
    head = language_model.get_output_embeddings().weight
    in_file = any(re.search(r"(lm_head|embed_out)\.weight$", name) for name in checkpoint)
    predictable = case.resized if is_tied or in_file else case.rows
    assert torch.isfinite(head[:predictable]).all()
    return Peer(model, language, vision, checkpoint, aliases, language_config, vision_config, predictable)


def fill_language(case: Case, model: nn.Module, is_tied: bool) -> tuple[Shapes, dict[str, str]]:
    """Loads the language model's file; its names and shapes, and its aliases."""
    native = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    head = native.pop("lm_head.weight") if is_tied else None
    shapes = {file_name(case, name): shape for name, shape in native.items()}
    loaded = {name: value(case, file_name(case, name), shape) for name, shape in native.items()}
    blank(model)
    missing, unexpected = model.load_state_dict(loaded, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    aliases = {}
    if case.tied_head_in_file and head is not None:
        shapes["lm_head.weight"] = head
        aliases["lm_head.weight"] = next(name for name in shapes if shapes[name] == head)
    return shapes | old_buffers(case), aliases


def checkpoint_shapes(case: Case, model: Flamingo, layers: str) -> Shapes:
    """Names and shapes of the OpenFlamingo checkpoint."""
    whole = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if case.naming == "all":
        return {name: shape for name, shape in whole.items() if not name.startswith("vision_encoder")}
    kept = filter_state_dict_to_trainable(model, whole)
    if case.family == "mosaic_gpt":  # MPT-1B's code has no head beside the embedding
        del kept["lang_encoder.lm_head.weight"]
    if case.naming == "list":
        pattern = re.compile(re.escape(f"lang_encoder.{layers}.") + r"(\d+)\.gated_cross_attn_layer\.")
        kept = {pattern.sub(r"lang_encoder.gated_cross_attn_layers.\1.", name): shape for name, shape in kept.items()}
    # The filter looks at parameters only, so the constants of older releases stay.
    return kept | {in_checkpoint(case, name): shape for name, shape in old_buffers(case).items()}


def canonical_name(case: Case, name: str, shape: list[int], layers: str, language: Shapes) -> str:
    """The name whose values a tensor of the checkpoint has: frozen ones are those of the language model's file."""
    if not name.startswith("lang_encoder."):
        return name
    if case.naming == "all":
        name = name.replace("lang_encoder.gated_cross_attn_layers.", f"lang_encoder.{layers}.")
        name = re.sub(re.escape(f"lang_encoder.{layers}.") + r"(\d+)\.(?!gated|decoder)",
                      rf"lang_encoder.{layers}.\1.gated_cross_attn_layer.", name)
    plain = name.removeprefix("lang_encoder.").replace("old_decoder_blocks.", f"{layers}.")
    plain = plain.replace(".decoder_layer.", ".")
    return plain if language.get(plain) == shape else name


def fill_checkpoint(case: Case, model: Flamingo, checkpoint: Shapes, aliases: dict[str, str]) -> None:
    """Loads the checkpoint, as OpenFlamingo's evaluation does; nothing untouched may be left."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    blank(model.perceiver)
    blank(model.lang_encoder.gated_cross_attn_layers)
    values = {name: value(case, aliases.get(name, name), shape) for name, shape in checkpoint.items()}
    for name, tensor in values.items():
        if TABLE.search(name) and tensor.shape[0] == case.resized:
            tensor[list(case.silent)] = 0.0
    _, unexpected = model.load_state_dict(values, strict=False)
    buffers = {in_checkpoint(case, name) for name in old_buffers(case)}
    assert set(unexpected) <= buffers, unexpected
    state = model.state_dict()
    for name in trained:
        assert torch.isfinite(state[name]).all(), f"{name} was not filled"
    for name in checkpoint.keys() - buffers:
        assert torch.equal(state[name], values[name]), f"{name} has two values"
    embedding = model.lang_encoder.get_input_embeddings().weight
    assert any(values[name].shape == embedding.shape and torch.equal(values[name], embedding) for name in checkpoint)


def blank(module: nn.Module) -> None:
    """Marks every parameter as not filled yet."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
