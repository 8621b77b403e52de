"""Speed of IDEFICS, the transformers library's relative of Flamingo, at about the same size.

    benchmarks/peers/.venv/bin/python -m benchmarks.peers.idefics_speed --work FOLDER [--size small] [--dtype bf16]

Runs in the peer's environment, without network: IdeficsForVisionText2Text with random weights. FOLDER holds
``workload/`` of ``benchmarks/compare.py``: the prompts have the same token ids and pictures as everybody's, so only the
model differs. Sizes are in `SIZES`; the record states configuration and numbers of parameters. IDEFICS computes the
pictures once, ``use_cache`` is on, and attention is PyTorch's scaled dot product. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import IdeficsConfig, IdeficsForVisionText2Text
from transformers.modeling_utils import no_init_weights

from benchmarks.peers.answer_timing import about, add_plan_options, emit
from benchmarks.peers.transformers_generation import (
    DTYPES,
    answer_settings,
    measure_peer,
    prepare,
    prompt_tensors,
    weight_bytes,
)

# 3b: CLIP ViT-L/14, the released models' resampler at that width, a LLaMA of 1.3B (Sheared-LLaMA's sizes), and
# cross-attention before every layer, as in OpenFlamingo-3B. The released IDEFICS have it before every fourth.
SIZES: dict[str, dict[str, Any]] = {
    "3b": {
        "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16,
        "vision_config": {"embed_dim": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                          "num_attention_heads": 16, "image_size": 224, "patch_size": 14},
        "perceiver_config": {"use_resampler": True, "resampler_n_latents": 64, "resampler_depth": 6,
                             "resampler_n_heads": 16, "resampler_head_dim": 96, "qk_layer_norms_perceiver": True},
    },
    "small": {
        "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 2,
        "vision_config": {"embed_dim": 64, "intermediate_size": 256, "num_hidden_layers": 2,
                          "num_attention_heads": 1, "image_size": 224, "patch_size": 14},
        "perceiver_config": {"use_resampler": True, "resampler_n_latents": 64, "resampler_depth": 2,
                             "resampler_n_heads": 2, "resampler_head_dim": 32, "qk_layer_norms_perceiver": True},
    },
}
SHARED = {"cross_layer_interval": 1, "qk_layer_norms": True, "use_resampler": True, "tie_word_embeddings": True}


def make_model(size: str, rows: int, dtype: torch.dtype) -> IdeficsForVisionText2Text:
    """The model with random values, made in ``dtype`` from the start."""
    config = IdeficsConfig(**SIZES[size], **SHARED, vocab_size=rows)
    torch.set_default_dtype(dtype)
    with no_init_weights():
        model = IdeficsForVisionText2Text(config)
    torch.set_default_dtype(torch.float32)
    model.tie_weights()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        fill(name, parameter)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def fill(name: str, parameter: nn.Parameter) -> None:
    """Normal with the deviation of a fan-in initialisation; norms 1, biases 0, gates open."""
    if "alpha" in name:
        parameter.fill_(0.5)
    elif parameter.ndim < 2:
        parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    else:
        parameter.normal_(std=parameter[0].numel() ** -0.5)


def picture_mask(ids: Tensor, media: int, pictures: int) -> Tensor:
    """int64 [1, T, pictures]: each token looks at the last picture before it, as IDEFICS' processor has it."""
    last = (ids == media).cumsum(dim=-1)  # [1, T], 0: none yet
    return (last[..., None] == torch.arange(1, pictures + 1)).long()


def parts_of(model: IdeficsForVisionText2Text) -> dict[str, nn.Module]:
    inner = model.model
    return {
        "vision": inner.vision_model, "resampler": inner.perceiver_resampler,
        "cross_attention": inner.gated_cross_attn_layers, "language": inner.layers, "embedding": inner.embed_tokens,
        "total": model,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="the folder of benchmarks/compare.py")
    parser.add_argument("--size", choices=list(SIZES), default="3b")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    add_plan_options(parser)
    options = parser.parse_args()
    plan, workload, difference = prepare(options)
    dtype, tokens, start = DTYPES[options.dtype], workload["tokens"], time.perf_counter()
    model = make_model(options.size, tokens["rows"], dtype)
    making = time.perf_counter() - start
    parts = parts_of(model)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    print(f"{json.dumps(parameters)}, made in {making:.0f} s, {plan.threads} threads", flush=True)

    def generate(case: dict[str, Any], new_tokens: int, **more: Any) -> None:
        ids, pictures = prompt_tensors(case, workload, dtype)
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pictures[None],
            image_attention_mask=picture_mask(ids, tokens["image"], len(pictures)),
            **answer_settings(new_tokens, workload), **more,
        )

    measured = measure_peer(model, generate, workload, plan, options.dtype)
    seen_once = weight_bytes(parts["vision"]) + weight_bytes(parts["resampler"])
    emit(about(
        plan, system=f"idefics-{options.dtype}", load_s=round(making, 2), pixel_difference=difference,
        attention={"all": model.config._attn_implementation}, configuration=SIZES[options.size] | SHARED,
        parameters_by_part=parameters, token_bytes=weight_bytes(model) - seen_once, **measured,
    ))


if __name__ == "__main__":
    main()
