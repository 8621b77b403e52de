"""Measuring of models through the transformers library's ``generate``, shared by the peers' scripts.

Every answer has exactly as many tokens as asked for: no token ends it, and the image token is never chosen (after one
OpenFlamingo counts the pictures of the prompt anew). The cache is on; without it each token would cost a whole prompt.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, logging
from transformers.generation.streamers import BaseStreamer

from benchmarks.peers.answer_timing import (
    FORCED,
    WORKLOAD,
    Answer,
    Plan,
    forget_peak,
    measure_beams,
    measure_caption,
    measure_case,
    peak_bytes,
    plan_of,
    read_workload,
    wanted_captions,
    wanted_cases,
)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PIXEL_TOLERANCE = 1e-6
PACKAGES = {"torch": "torch", "transformers": "transformers", "open_clip": "open-clip-torch",
            "open_flamingo": "open-flamingo"}
Record = dict[str, Any]
Generate = Callable[..., None]  # (case, new_tokens, **more): answers a case, ``more`` goes to the library


class Clock(BaseStreamer):
    """Notes when each token was chosen, and which. The first call of `put` brings the prompt."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._prompt = True
        self.times: list[float] = []
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        if self._prompt:
            self._prompt = False
            return
        self.times.append(time.perf_counter() - self._start)
        self.tokens.append(int(value[0]))

    def end(self) -> None:
        """Do nothing: the times are noted by `put`."""

    def answer(self) -> Answer:
        return Answer(tuple(self.tokens), tuple(self.times))


class GivenAnswer(LogitsProcessor):
    """Makes the next token of a given answer the likeliest one."""

    def __init__(self, case: dict[str, Any]) -> None:
        self._prompt_tokens, self._answer = len(case["input_ids"]), case["answer"]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores [B, vocab] after input_ids [B, T], changed in place."""
        scores[:, self._answer[input_ids.shape[1] - self._prompt_tokens]] = FORCED
        return scores


def answer_settings(new_tokens: int, workload: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``generate`` for an answer of exactly ``new_tokens``, greedy unless beams are asked for."""
    return {
        "max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "use_cache": True,
        "eos_token_id": None, "pad_token_id": workload["tokens"]["pad"],
        "suppress_tokens": [workload["tokens"]["image"]],
    }


def prompt_tensors(
    case: dict[str, Any], workload: dict[str, Any], dtype: torch.dtype, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Token ids [1, T] and pixel values [N, 3, S, S] of a case, on a device; the pictures are read from their files."""
    paths = [workload["pictures"][number] for number in case["pictures"]]
    return torch.tensor([case["input_ids"]], device=device), pixel_values(paths, workload).to(device, dtype)


def pixel_values(paths: Sequence[str], workload: dict[str, Any]) -> Tensor:
    """float32 [N, 3, S, S]: pictures that already have the encoder's size, normalised as CLIP's transform does it."""
    size = workload["image_size"]
    rows = []
    for path in paths:
        picture = Image.open(path).convert("RGB")
        if picture.size != (size, size):
            raise SystemExit(f"{path} is {picture.width}x{picture.height}, the workload says {size}: write it again")
        rows.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div(255))
    mean, std = (torch.tensor(workload[name])[:, None, None] for name in ("mean", "std"))
    return torch.stack(rows).sub_(mean).div_(std)


def check_pixels(workload: dict[str, Any]) -> float:
    """Largest difference between this side's pixel values and ours; ends the program when it is not rounding."""
    ours = torch.from_numpy(np.load(workload["pixels"]))
    difference = (pixel_values(workload["pictures"], workload) - ours).abs().max().item()
    if difference > PIXEL_TOLERANCE:
        raise SystemExit(f"pixel values differ from ours by {difference:.1e}, more than {PIXEL_TOLERANCE:.0e}")
    return difference


def computed_types(model: nn.Module, ask: Callable[[], Any]) -> dict[str, int]:
    """Numbers of calls of the model's linear layers by the type they computed in, while ``ask`` runs."""
    counts: dict[str, int] = {}

    def note(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        name = str(output.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + 1

    handles = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, nn.Linear)]
    try:
        ask()
    finally:
        for handle in handles:
            handle.remove()
    return counts


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the parameters, each counted once."""
    return sum(parameter.nbytes for parameter in module.parameters())


def measure_peer(model: nn.Module, generate: Generate, workload: dict[str, Any], plan: Plan, dtype: str) -> Record:
    """Everything that is measured of a loaded model. Ends the program when it does not compute in ``dtype``."""
    cases, loading_peak = wanted_cases(workload, plan), peak_bytes()

    def ask(case: dict[str, Any], new_tokens: int) -> Answer:
        return timed(generate, case, new_tokens)

    def ask_beams(new_tokens: int) -> None:
        with torch.inference_mode():  # a streamer takes one row only
            generate(cases[0], new_tokens, num_beams=plan.beams)

    types = checked_types(model, lambda: ask(cases[0], 2), dtype)
    forget_peak()
    measured = [measure_case(case, lambda n, case=case: ask(case, n), plan) for case in cases]
    beams = measure_beams(lambda n: ask(cases[0], n), ask_beams, plan) if plan.beams else None
    return facts(model, dtype, types, loading_peak) | {"cases": measured, "beams": beams}


def measure_peer_captions(
    model: nn.Module, generate: Generate, workload: dict[str, Any], plan: Plan, dtype: str
) -> Record:
    """Given captions, decoded by a loaded model. Ends the program when it does not compute in ``dtype``."""
    cases, loading_peak = wanted_captions(workload, plan), peak_bytes()

    def ask(case: dict[str, Any]) -> Answer:
        return timed(generate, case, len(case["answer"]), logits_processor=LogitsProcessorList([GivenAnswer(case)]))

    types = checked_types(model, lambda: ask(cases[0]), dtype)
    forget_peak()
    measured = [measure_caption(case, {"plain": lambda case=case: ask(case)}, plan) for case in cases]
    return facts(model, dtype, types, loading_peak) | {"captions": measured}


def timed(generate: Generate, case: dict[str, Any], new_tokens: int, **more: Any) -> Answer:
    """The answer to a case, timed token by token."""
    clock = Clock()
    with torch.inference_mode():
        generate(case, new_tokens, streamer=clock, **more)
    return clock.answer()


def checked_types(model: nn.Module, ask: Callable[[], Any], dtype: str) -> dict[str, int]:
    """`computed_types`; ends the program when it is not ``dtype`` alone."""
    types = computed_types(model, ask)
    if set(types) != {str(DTYPES[dtype]).removeprefix("torch.")}:
        raise SystemExit(f"the linear layers computed in {types}, {dtype} was asked for")
    return types


def facts(model: nn.Module, dtype: str, types: dict[str, int], loading_peak: int) -> Record:
    """The part of a record about the model, its libraries, and the memory it took."""
    running_peak = peak_bytes()
    return {
        "dtype": dtype, "computed": types, "versions": {name: version(package) for name, package in PACKAGES.items()},
        "torch_threads": torch.get_num_threads(), "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(), "onednn_bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()), "weight_bytes": weight_bytes(model),
        "peak_bytes": max(loading_peak, running_peak), "peak_running_bytes": running_peak,
    }


def prepare(options: argparse.Namespace, folder: str = WORKLOAD) -> tuple[Plan, dict[str, Any], float]:
    """Threads set, messages off: the plan, the workload in a folder of the work folder, and how far this side's pixel
    values are from ours."""
    plan = plan_of(options)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(plan.threads)
    workload = read_workload(options.work / folder / "workload.json")
    return plan, workload, check_pixels(workload)
