"""Does a backend compute what PyTorch does? Every graph's numbers, and greedy tokens, beside float32 on the CPU.

    python -m gpu_parts.correct --work FOLDER --model packaged --system tensorrt+tensorrt+fp16+tensorrt

Prefill, decode, a continued cache and a ragged batch, with the cases and the measure of the exporter's own comparison
(`export/checks/parity.py`). Half precision is judged by what it costs PyTorch itself. The tokens of random weights
hang by a thread, so only those of the packaged model must be equal.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flamingo_rt import Image, load
from flamingo_rt.backend import Backend
from flamingo_rt.checkpoints import DTYPES, StoredModel
from flamingo_rt.contract import CLIP_FRAMES, ENCODED_AT_ONCE, GRAPHS, LANGUAGE_MODEL
from flamingo_rt.export.checks.half_precision import compared_with, in_half, rounding_cost
from flamingo_rt.export.checks.parity import TOLERANCE, Deviation, compare
from flamingo_rt.export.checks.parity_cases import Reference, compute_reference
from flamingo_rt.export.folding import folded_tensors
from flamingo_rt.export.relative_positions import relative_key_tensors
from flamingo_rt.export.streamed_model import streamed_model
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.runtime.model import Model
from gpu_parts.rows import reporting, tell
from gpu_parts.systems import PACKAGED, System, make_engines, stored_model

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
LIMITS = {"batch": 4, "capacity": 256}  # of the engines: enough for the cases and the answers
TIMES_PYTORCH = 4.0  # a deviation may be so many times what half precision costs PyTorch
TOKENS = 12


class InPieces:
    """What binds a backend's graphs for the comparison, with no more pictures at once than the runtime gives it."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self.specs = backend, backend.specs

    def bind(
        self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> Callable[[], None]:
        """As the backend's."""
        if graph == LANGUAGE_MODEL:
            return self._backend.bind(graph, inputs, outputs, constant)
        count = len(next(iter(inputs.values())))

        def call() -> None:
            for start in range(0, count, ENCODED_AT_ONCE):
                piece = slice(start, start + ENCODED_AT_ONCE)
                some = ({name: array[piece] for name, array in arrays.items()} for arrays in (inputs, outputs))
                self._backend.bind(graph, *some)()

        return call


def compared_weights(model: StoredModel, compute: str) -> tuple[StoredModel, StoredModel]:
    """The weights as the graphs hold them, and what PyTorch computes with in float32."""
    folded = replace(model, tensors=relative_key_tensors(model.config.language, folded_tensors(model.tensors)))
    if compute == "fp32":
        return folded, folded
    half = in_half(folded, DTYPES[compute])
    return half, compared_with(half, DTYPES[compute])


def tell_deviations(backend: Backend, reference: Reference, held: StoredModel, compute: str) -> None:
    """A row for each graph."""
    frames = held.config.resampler.max_frames or CLIP_FRAMES
    usual = replace(reference, cases=[each for each in reference.cases if each.case.frames <= frames])
    found = Deviation(GRAPHS, math.inf)
    compare(usual, InPieces(backend), held.config, found)
    own = None if compute == "fp32" else rounding_cost(held, DTYPES[compute], reference, lambda count: None)
    for graph, deviation in found.largest.items():
        allowed = TOLERANCE if own is None else TIMES_PYTORCH * own[graph]
        beside = None if own is None else f"PyTorch in {compute}: {own[graph]:.1e}"
        tell(f"{graph}, deviation", float(f"{deviation:.3g}"), target=f"<= {allowed:.1e}", reference=beside)


def answers(model: Model) -> list[tuple[int, ...]]:
    """Greedy tokens: of one picture, of a ragged batch, and behind a compiled prompt."""
    scene = Image(SCENE)
    asked, captioned = model.question_prompt(scene, "How many objects are there?"), model.caption_prompt(scene)
    results = [model.generate(captioned, max_new_tokens=TOKENS).result()]
    results += model.generate_batch([captioned, asked, "Output:"], max_new_tokens=TOKENS)
    shot = model.caption_prompt(scene, shots=[(scene, "a red star")])[: -len(captioned)]
    results.append(model.generate(asked, prefix=model.prompt(shot), max_new_tokens=TOKENS).result())
    return [result.tokens for result in results]


def tell_tokens(model: Model, oracle: Model, must: bool) -> None:
    found, expected = answers(model), answers(oracle)
    pairs = [(one, other) for mine, theirs in zip(found, expected, strict=True)
             for one, other in zip(mine, theirs, strict=False)]
    missing = sum(abs(len(mine) - len(theirs)) for mine, theirs in zip(found, expected, strict=True))
    total = len(pairs) + missing
    equal = sum(one == other for one, other in pairs)
    tell("greedy tokens as PyTorch's", equal, f"of {total}", target=f">= {total}" if must else None,
         note="alone, in a ragged batch, behind a compiled prompt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--system", type=System.named, required=True)
    options = parser.parse_args()
    with reporting():
        path = make_engines(options.work, options.model, options.system, LIMITS)
        model = load(path, options.system.backend, trust_engines=True)
        held, exact = compared_weights(stored_model(options.model), options.system.compute)
        pytorch = streamed_model(exact.config, exact.tensors)
        tell_deviations(model.backend, compute_reference(pytorch), held, options.system.compute)
        with torch.no_grad():
            oracle = Model(TorchBackend(pytorch), model.config, model.tokenizer)
            tell_tokens(model, oracle, must=options.model == PACKAGED)


if __name__ == "__main__":
    main()
