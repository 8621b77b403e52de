"""The real open_flamingo's speed on a device: random weights of a given shape, given prompts, its cache on.

    benchmarks/peers/.venv/bin/python -m benchmarks.peers.openflamingo_on_device --work FOLDER

Runs in the peers' environment with a CUDA build of PyTorch; the model's sizes are in FOLDER too. With ``--compile
inductor``, torch.compile compiles the language model for dynamic shapes, since its cache grows by a token each step;
compiling is part of the warm-up. ``--check`` only tells whether the peer can be imported; where it cannot, nothing else
is done. Output: JSON lines (`device_timing.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from typing import Any

from benchmarks.peers.answer_timing import emit
from benchmarks.peers.device_timing import device_options, emit_cases, plan_of_device, wanted


def check() -> bool:
    """Whether the peer can be imported. Prints PyTorch's version, or ``skipped`` with the reason."""
    try:
        import open_flamingo  # noqa: F401
        import torch
    except Exception as error:  # an incomplete installation fails in any way
        emit({"skipped": f"{sys.executable}: {type(error).__name__}: {error}"})
        return False
    emit({"torch": torch.__version__, "cuda": torch.cuda.is_available()})
    return True


def measure(options: argparse.Namespace) -> None:
    import torch
    from transformers import logging

    from benchmarks.peers.openflamingo_model import Shape, random_model
    from benchmarks.peers.transformers_generation import (
        DTYPES,
        answer_settings,
        checked_types,
        prompt_tensors,
        timed,
        weight_bytes,
    )

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    plan, dtype = plan_of_device(options, torch.get_num_threads()), DTYPES[options.dtype]
    workload, cases = wanted(options, plan)
    sizes = (options.work / "workload" / "shape.json").read_text(encoding="utf-8")
    tokens, shape = workload["tokens"], Shape(**json.loads(sizes))
    model = random_model(shape, tokens["end_of_chunk"], tokens["image"], dtype, options.device)
    emit({"weight_bytes": weight_bytes(model)})

    def generate(case: dict[str, Any], new_tokens: int, **more: Any) -> None:
        ids, pictures = prompt_tensors(case, workload, dtype, options.device)
        settings = answer_settings(new_tokens, workload)
        model.generate(pictures[None, :, None], ids, attention_mask=torch.ones_like(ids), **settings, **more)

    checked_types(model, lambda: timed(generate, cases[0], 2), options.dtype)
    if options.compile:
        start = time.perf_counter()
        model.lang_encoder.forward = torch.compile(model.lang_encoder.forward, dynamic=True, backend=options.compile)
        timed(generate, cases[0], options.tokens)  # compiled again when a length turns out to vary
        emit({"compile_s": round(time.perf_counter() - start, 1)})
    emit_cases(cases, lambda case, count: timed(generate, case, count), plan)


def main() -> None:
    if check() and sys.argv[1:] != ["--check"]:
        measure(device_options(__doc__.splitlines()[0]).parse_args())


if __name__ == "__main__":
    main()
