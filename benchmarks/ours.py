"""Speed of this project's runtime: the counterpart of the peers' scripts, with the same fields and the same samples.

    python -m benchmarks.ours --work FOLDER --model BUNDLE [--backend ort] [--name ours-int8]

FOLDER holds ``workload/`` of ``benchmarks/compare.py``; BUNDLE was exported from its ``sources/``, or is a checkpoint
imported from them (``--backend torch``). Measured through the public API, beside what the peers have: prompts whose
shots were read before (`Model.prompt`), and speculation. ``--captions`` measures how given captions are decoded
instead. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.answer_timing import (
    CAPTIONS,
    WARM_UP_TOKENS,
    WORKLOAD,
    Answer,
    Plan,
    about,
    add_plan_options,
    emit,
    forget_peak,
    measure_beams,
    measure_caption,
    measure_case,
    peak_bytes,
    plan_of,
    read_workload,
    repeated,
    shown,
    wanted_captions,
    wanted_cases,
)
from benchmarks.processes import folder_bytes
from benchmarks.stand_ins import GivenAnswers, NumberTokens, OneLetterTokens
from flamingo_rt import GenerationOptions, Image, load
from flamingo_rt.processing.preprocess import visual_pixels
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.runtime.generation_options import SPECULATION, GenerationResult

PACKAGES = ("flamingo-rt", "onnxruntime", "numpy", "torch")
SPECULATED_SHOTS = 8  # with more shots speculation is not measured again
LONGEST_CAPTION = GenerationOptions().max_new_tokens  # given ones end before it


class Ours:
    """The model and how to ask it."""

    def __init__(
        self, path: Path, backend: str, threads: int, workload: dict[str, Any],
        tokens: type[OneLetterTokens] = OneLetterTokens, trust_engines: bool = False,
    ) -> None:
        # Without a cache: every answer encodes its pictures.
        self.model = load(path, backend, threads, image_cache_bytes=0, trust_engines=trust_engines)
        self.model.tokenizer = tokens(self.model.tokenizer)
        self._pictures = workload["pictures"]
        self.stages: list[dict[str, float]] = []

    def parts(self, case: dict[str, Any]) -> list[Any]:
        return [Image(self._pictures[part["picture"]]) if "picture" in part else part["text"] for part in case["parts"]]

    def ask(
        self, parts: list[Any], new_tokens: int, prefix: Any = None, speculation: int = 0
    ) -> tuple[Answer, GenerationResult]:
        """A greedy answer, timed token by token, and its result. Reading the pictures is part of it; a token that ended
        the answer is its last."""
        start, times = time.perf_counter(), []
        generation = self.model.generate(parts, prefix=prefix, max_new_tokens=new_tokens, speculation=speculation)
        for piece in generation:
            times += [time.perf_counter() - start] * len(piece)
        result = generation.result()
        if not result.timings.get("vision"):
            sys.exit("an answer came without its pictures being encoded: time to first token would not be comparable")
        self.stages.append({stage: round(value, 3) for stage, value in result.timings.items()})
        tokens = result.tokens
        if result.stop_reason == "end_of_chunk":
            times.append(time.perf_counter() - start)
            tokens = (*tokens, self.model.tokenizer.end_of_chunk_id)
        return Answer(tokens, tuple(times)), result

    def timed(self, parts: list[Any], new_tokens: int, prefix: Any = None) -> Answer:
        return self.ask(parts, new_tokens, prefix)[0]

    def search(self, parts: list[Any], new_tokens: int, beams: int) -> GenerationResult:
        return self.model.generate(parts, max_new_tokens=new_tokens, beams=beams).result()


def check(ours: Ours, workload: dict[str, Any], cases: list[dict[str, Any]]) -> None:
    """Ends the program unless prompts and pixel values are those that the peers are given."""
    for case in cases:
        ids = build_prompt(ours.parts(case), ours.model.tokenizer).input_ids.tolist()
        if ids != case["input_ids"]:
            sys.exit(f"{case['shots']} shots: the model's token ids are not the workload's: another tokenizer?")
    pixels = np.stack([visual_pixels(Image(path), ours.model.config)[0] for path in workload["pictures"]])
    if not np.array_equal(pixels, np.load(workload["pixels"])):
        sys.exit("the model's pixel values are not the workload's: remove the workload folder and write it again")


def measure_compiled(ours: Ours, case: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The query alone, after shots that were read once."""
    parts = ours.parts(case)
    start = time.perf_counter()
    prefix = ours.model.prompt(parts[:-2])
    compile_ms = (time.perf_counter() - start) * 1e3
    print(f"    shots read in {compile_ms:.0f} ms; the query alone:")
    record = measure_case(case, lambda n: ours.timed(parts[-2:], n, prefix), plan)
    return record | {"compile_ms": round(compile_ms, 3)}


def measure_speculation(ours: Ours, case: dict[str, Any], plan: Plan, tokens: list[int]) -> dict[str, Any]:
    """The same answer with tokens guessed ahead; ``decode_ms`` is from the first token to the last."""
    parts = ours.parts(case)
    ours.ask(parts, WARM_UP_TOKENS, speculation=SPECULATION)
    answers = repeated(lambda: ours.ask(parts, plan.tokens, speculation=SPECULATION), plan)
    result = answers[0][1]
    decode = [round(sum(answer.gaps_ms), 3) for answer, _ in answers]
    print(f"    speculation {SPECULATION}: {result.steps} steps for {plan.tokens - 1} tokens, {shown(decode)}")
    return {
        "shots": case["shots"], "speculation": SPECULATION, "steps": result.steps, "drafted": result.drafted,
        "accepted": result.accepted, "decode_ms": decode, "tokens_equal": list(result.tokens) == tokens,
    }


def measure_captions(ours: Ours, cases: list[dict[str, Any]], plan: Plan) -> dict[str, Any]:
    """Given captions after shots that were read before, plain and with tokens guessed ahead, in turns."""
    ours.model.backend = given = GivenAnswers(ours.model.backend)
    measured = []
    for case in cases:
        given.give(case["answer"], len(case["input_ids"]))
        parts, results = ours.parts(case), []
        prefix = ours.model.prompt(parts[:-2])

        def ask(speculation: int, parts: list[Any] = parts, prefix: Any = prefix, results: list = results) -> Answer:
            answer, result = ours.ask(parts[-2:], LONGEST_CAPTION, prefix, speculation)
            if speculation:
                results.append(result)
            return answer

        if not measured:
            ask(0)
        record = measure_caption(case, {"plain": lambda: ask(0), "speculation": lambda: ask(SPECULATION)}, plan)
        counts = {name: [getattr(result, name) for result in results] for name in ("steps", "drafted", "accepted")}
        measured.append(record | {"speculation": record["speculation"] | counts})
    return {"captions": measured}


def token_bytes(folder: Path) -> int:
    """Bytes of the weights that a token is computed from: of the language model's graph, or of its tensors."""
    graph = folder / "language_model.onnx.data"
    if graph.is_file():
        return graph.stat().st_size
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in entries.items():
            if read_for_a_token(name):
                total += entry["data_offsets"][1] - entry["data_offsets"][0]
    return total


def read_for_a_token(name: str) -> bool:
    """Whether a checkpoint's tensor is needed for every token; keys and values of pictures are computed once."""
    media = name.endswith((".key.weight", ".value.weight"))
    return name.startswith("language.") or (name.startswith("cross_attention.") and not media)


def installed() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def measure_cases(ours: Ours, cases: list[dict[str, Any]], plan: Plan) -> dict[str, Any]:
    """The workload's cases, prompts whose shots were read before, speculation, and beams."""
    measured, compiled, speculated = [], [], []
    for case in cases:
        ours.stages.clear()
        record = measure_case(case, lambda n, case=case: ours.timed(ours.parts(case), n), plan)
        measured.append(record | {"stages_ms": ours.stages[1:]})
        if case["shots"]:
            compiled.append(measure_compiled(ours, case, plan))
        if 0 < case["shots"] <= SPECULATED_SHOTS:
            speculated.append(measure_speculation(ours, case, plan, record["tokens"]))
    beams = None
    if plan.beams:
        parts = ours.parts(cases[0])
        beams = measure_beams(lambda n: ours.timed(parts, n), lambda n: ours.search(parts, n, plan.beams), plan)
    return {"cases": measured, "compiled": compiled, "speculation": speculated, "beams": beams}


def measure(options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    workload = read_workload(options.work / (CAPTIONS if options.captions else WORKLOAD) / "workload.json")
    cases = wanted_captions(workload, plan) if options.captions else wanted_cases(workload, plan)
    if options.backend == "torch":
        import torch

        torch.set_num_threads(plan.threads)
    start = time.perf_counter()
    tokens = NumberTokens if options.captions else OneLetterTokens
    ours = Ours(options.model, options.backend, plan.threads, workload, tokens)
    loading, loading_peak = time.perf_counter() - start, peak_bytes()
    size = folder_bytes(options.model)
    print(f"{size / 1e9:.2f} GB in {loading:.1f} s, {plan.threads} threads", flush=True)
    check(ours, workload, cases)
    forget_peak()
    measured = measure_captions(ours, cases, plan) if options.captions else measure_cases(ours, cases, plan)
    running_peak = peak_bytes()
    return about(
        plan, system=options.name, dtype=options.dtype, backend=ours.model.backend.name, versions=installed(),
        weight_bytes=size, token_bytes=token_bytes(options.model), load_s=round(loading, 2),
        peak_bytes=max(loading_peak, running_peak), peak_running_bytes=running_peak, **measured,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="the folder of benchmarks/compare.py")
    parser.add_argument("--model", type=Path, required=True, help="a bundle, or a checkpoint")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--name", default="ours", help="the system's name in the record")
    parser.add_argument("--dtype", default="fp32", help="how the weights are stored, for the record")
    parser.add_argument("--captions", action="store_true", help="measure captions instead of the cases")
    add_plan_options(parser)
    options = parser.parse_args()
    emit(measure(options, plan_of(options)))


if __name__ == "__main__":
    main()
