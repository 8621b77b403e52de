"""The vision encoder: open_clip's, filled from a file in its own names or in those of transformers."""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks.peers.openflamingo_cases import VISION, Case
from benchmarks.peers.random_weights import random_pixels, random_tensor

# The text side of CLIP files, which shares words with other parts of a Flamingo.
OPEN_CLIP_TEXT = {
    "positional_embedding": [8, 16], "text_projection": [16, 32], "logit_scale": [], "token_embedding.weight": [10, 16],
    "transformer.resblocks.0.ln_1.weight": [16], "transformer.resblocks.0.attn.in_proj_weight": [48, 16],
    "ln_final.weight": [16], "ln_final.bias": [16],
}
TRANSFORMERS_TEXT = {
    "logit_scale": [], "text_model.embeddings.token_embedding.weight": [10, 16],
    "text_model.embeddings.position_embedding.weight": [8, 16],
    "text_model.encoder.layers.0.self_attn.q_proj.weight": [16, 16], "text_model.final_layer_norm.weight": [16],
    "text_projection.weight": [32, 16], "visual_projection.weight": [32, 64],
    "vision_model.embeddings.position_ids": [1, 17],
}
OPEN_CLIP_TO_TRANSFORMERS = (
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.attn\.in_proj_", ".self_attn.{}_proj."),
)


def make_vision(case: Case) -> tuple[nn.Module, dict[str, list[int]], dict[str, Any] | None]:
    """The filled encoder, the names and shapes of its file, and for transformers' naming the config.json."""
    quick = case.activation == "quick_gelu"
    visual = _build_vision_tower(32, CLIPVisionCfg(**VISION, output_tokens=True), quick_gelu=quick).eval()
    # The releases that OpenFlamingo was trained with gave the tokens before the final norm; this one gives them after.
    visual.final_ln_after_pool = not case.post_norm
    if case.vision == "open_clip":
        shapes = {f"visual.{name}": list(tensor.shape) for name, tensor in visual.state_dict().items()}
        visual.load_state_dict({name[7:]: value(case, name, shape) for name, shape in shapes.items()})
        return visual, shapes | (OPEN_CLIP_TEXT if case.text_tower else {}), None
    return make_from_transformers(case, visual)


def value(case: Case, name: str, shape: list[int]) -> Tensor:
    return torch.from_numpy(random_tensor(case.seed, name, shape))


def make_from_transformers(case: Case, visual: nn.Module) -> tuple[nn.Module, dict[str, list[int]], dict[str, Any]]:
    """`make_vision` for a file in transformers' names; checks that transformers' own encoder agrees."""
    config = CLIPVisionConfig(
        hidden_size=VISION["width"], intermediate_size=4 * VISION["width"], num_hidden_layers=VISION["layers"],
        num_attention_heads=VISION["width"] // VISION["head_width"], image_size=VISION["image_size"],
        patch_size=VISION["patch_size"], hidden_act=case.activation, projection_dim=32,
    )
    config.architectures = ["CLIPVisionModel"]
    theirs = CLIPVisionModel(config).eval()
    shapes = {name: list(tensor.shape) for name, tensor in theirs.state_dict().items()}
    values = {name: value(case, name, shape) for name, shape in shapes.items()}
    theirs.load_state_dict(values)
    filled = {}
    for name in visual.state_dict():
        if name == "proj":  # makes the pooled output, which a Flamingo does not look at
            filled[name] = visual.proj.detach()
            continue
        foreign = name
        for pattern, replacement in OPEN_CLIP_TO_TRANSFORMERS:
            foreign = re.sub(pattern, replacement, foreign)
        filled[name] = torch.cat([values["vision_model." + foreign.format(x)] for x in "qkv"]) if "{}" in foreign else (
            values["vision_model." + foreign])
    visual.load_state_dict(filled)

    pixels = torch.from_numpy(random_pixels(case.seed, 0, VISION["image_size"]))[None]
    with torch.no_grad():
        difference = (visual(pixels)[1] - theirs(pixels).last_hidden_state[:, 1:]).abs().max().item()
    print(f"  open_clip and transformers differ by {difference:.1e} in the vision tokens")
    assert difference < 1e-5
    written = json.loads(config.to_json_string(use_diff=True))
    return visual, shapes | (TRANSFORMERS_TEXT if case.text_tower else {}), written
