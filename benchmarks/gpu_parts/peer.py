"""How fast is the real open_flamingo on a device? Random weights of the given shape, the workload's prompts, its cache
on. Runs in the peer's environment: nothing of flamingo_rt is imported.

    PYTHONPATH=. PEER/bin/python benchmarks/gpu_parts/peer.py --work FOLDER --shape FILE

With ``--compile inductor`` torch.compile compiles its language model, for dynamic shapes, since its cache grows by a
token each step; compiling is part of the warm-up. Its ``generate`` is the transformers library's, as ever.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import logging

from benchmarks.gpu_parts.rows import reporting, tell
from benchmarks.gpu_parts.timed import plan_for, tell_case, torch_options
from benchmarks.peers.answer_timing import measure_case, read_workload, wanted_cases
from benchmarks.peers.openflamingo_model import Shape, random_model
from benchmarks.peers.transformers_generation import (
    DTYPES,
    answer_settings,
    checked_types,
    prompt_tensors,
    timed,
    weight_bytes,
)


def main() -> None:
    parser = torch_options(__doc__.splitlines()[0])
    parser.add_argument("--shape", type=Path, required=True, help="JSON with the fields of Shape")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    with reporting():
        measure(options)


def measure(options: argparse.Namespace) -> None:
    workload, dtype = read_workload(options.work / "workload" / "workload.json"), DTYPES[options.dtype]
    plan = plan_for(options.shots, options.tokens, options.runs, options.seconds, torch.get_num_threads())
    start, tokens = time.perf_counter(), workload["tokens"]
    shape = Shape(**json.loads(options.shape.read_text()))
    model = random_model(shape, tokens["end_of_chunk"], tokens["image"], dtype, options.device)
    tell("weights", round(weight_bytes(model) / 1e9, 3), "GB", note=f"PyTorch {torch.__version__}")
    tell("loading", round(time.perf_counter() - start, 1), "s", note="random numbers drawn on the device")

    def generate(case: dict[str, Any], new_tokens: int, **more: Any) -> None:
        ids, pictures = prompt_tensors(case, workload, dtype, options.device)
        settings = answer_settings(new_tokens, workload)
        model.generate(pictures[None, :, None], ids, attention_mask=torch.ones_like(ids), **settings, **more)

    cases = wanted_cases(workload, plan)
    checked_types(model, lambda: timed(generate, cases[0], 2), options.dtype)
    if options.compile:
        start = time.perf_counter()
        model.lang_encoder.forward = torch.compile(
            model.lang_encoder.forward, dynamic=True, backend=options.compile
        )
        timed(generate, cases[0], options.tokens)  # compiled again when a length turns out to vary
        tell("compiling", round(time.perf_counter() - start, 1), "s")
    for case in cases:
        tell_case(measure_case(case, lambda n, case=case: timed(generate, case, n), plan))


if __name__ == "__main__":
    main()
