"""Speed of the real open_flamingo, with the same weights, prompts and pictures as ours.

    benchmarks/peers/.venv/bin/python -m benchmarks.peers.openflamingo_speed --work FOLDER [--dtype bf16]

Runs in the peer's environment, without network. FOLDER holds ``sources/`` (checkpoint.pt, vision.safetensors,
language/) and ``workload/``; ``benchmarks/compare.py --only sources`` writes both. The model has the size of the files.
Weights are converted to ``--dtype`` while they are read; in bf16 pixel values are bf16 too, and everything is computed
in it. ``generate`` gets ``use_cache=True``. ``--captions`` measures how given captions are decoded instead. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.answer_timing import CAPTIONS, WORKLOAD, about, add_plan_options, emit
from benchmarks.peers.openflamingo_model import make_model
from benchmarks.peers.transformers_generation import (
    DTYPES,
    answer_settings,
    measure_peer,
    measure_peer_captions,
    prepare,
    prompt_tensors,
    weight_bytes,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="the folder of benchmarks/compare.py")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--captions", action="store_true", help="measure captions instead of the cases")
    add_plan_options(parser)
    options = parser.parse_args()
    plan, workload, difference = prepare(options, CAPTIONS if options.captions else WORKLOAD)
    dtype, tokens, start = DTYPES[options.dtype], workload["tokens"], time.perf_counter()
    model = make_model(options.work / "sources", tokens["end_of_chunk"], tokens["image"], dtype)
    loading = time.perf_counter() - start
    print(f"{weight_bytes(model) / 1e9:.2f} GB of weights in {loading:.0f} s, {plan.threads} threads", flush=True)

    def generate(case: dict[str, Any], new_tokens: int, **more: Any) -> None:
        ids, pictures = prompt_tensors(case, workload, dtype)
        settings = answer_settings(new_tokens, workload)
        model.generate(pictures[None, :, None], ids, attention_mask=torch.ones_like(ids), **settings, **more)

    measure = measure_peer_captions if options.captions else measure_peer
    measured = measure(model, generate, workload, plan, options.dtype)
    emit(about(
        plan, system=f"peer-{options.dtype}", load_s=round(loading, 2), pixel_difference=difference,
        attention={"vision": "torch.nn.MultiheadAttention", "language": "MptAttention (matmul, softmax)",
                   "cross": "MaskedCrossAttention (einsum)"},
        token_bytes=weight_bytes(model.lang_encoder), **measured,
    ))


if __name__ == "__main__":
    main()
