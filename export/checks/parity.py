"""The parity check: the exported graphs compute what the PyTorch model computes, or no bundle is written.

Every graph runs through the backend that will run it (with weights in half precision, without the backend's
optimizations, which would hold them in float32) and is compared with the stateless model, tensor by tensor: media of
pictures and clips, then prompts without a picture, with one, with several, with clips and in a ragged batch, each by
prefill and then token by token, and one continued by several tokens at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flamingo_rt.backend import Backend
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import (
    CACHE_LENGTH,
    FEATURES,
    GRAPHS,
    INPUT_IDS,
    LANGUAGE_MODEL,
    LOGITS,
    LOGITS_INDEX,
    MEDIA_INDEX,
    NEXT_LOGPROB,
    NEXT_TOKEN,
    PIXEL_VALUES,
    RESAMPLER,
    VISION_ENCODER,
    GraphSpec,
    TensorSpec,
    layer_parts,
    past_name,
    past_of,
    present_of,
)
from flamingo_rt.errors import ParityError
from flamingo_rt.export.checks.parity_cases import Expected, Reference
from flamingo_rt.runtime.verification import as_float, relative_deviation

TOLERANCE = 1e-4  # float32 sums of a few thousand terms in another order differ by about 1e-6
CHOICE_TOLERANCE = 1e-4  # of a log-probability, a float32 sum over the vocabulary


class Metric(Protocol):
    """Updated with every tensor that is compared: ``found`` [..., d], a graph's output, and PyTorch's ``expected``."""

    def update(self, graph: str, tensor: str, case: str, found: np.ndarray, expected: Tensor) -> None: ...


class Deviation:
    """Largest deviation per graph, relative to the tensor's scale (at least 1), with a tolerance."""

    def __init__(self, graphs: Sequence[str], tolerance: float) -> None:
        self.tolerance = tolerance
        self.largest = dict.fromkeys(graphs, 0.0)

    def update(self, graph: str, tensor: str, case: str, found: np.ndarray, expected: Tensor) -> None:
        """Compare one tensor. Raises `ParityError` that names graph, tensor, prompt and deviation when it is beyond the
        tolerance."""
        error = relative_deviation(found, expected.numpy())
        if not error <= self.tolerance:  # also when it is not a number
            raise ParityError(
                f"graph {graph}, tensor {tensor}, prompt '{case}': deviates from PyTorch by {error:.2e}, "
                f"beyond the tolerance of {self.tolerance:.0e}; no bundle was written"
            )
        self.largest[graph] = max(self.largest[graph], error)


def check_parity(
    reference: Reference, backend: Backend, config: FlamingoConfig, tolerance: float = TOLERANCE,
    on_case: Callable[[str], None] = lambda name: None, graphs: Sequence[str] = GRAPHS,
) -> dict[str, float]:
    """Measure the largest deviation from the reference of each of ``graphs``. ``on_case`` is called with the name of
    each finished case.

    Raises `ParityError` when a deviation is beyond ``tolerance``.
    """
    deviation = Deviation(graphs, tolerance)
    compare(reference, backend, config, deviation, on_case, graphs)
    return deviation.largest


def compare(
    reference: Reference, backend: Backend, config: FlamingoConfig, metric: Metric,
    on_case: Callable[[str], None] = lambda name: None, graphs: Sequence[str] = GRAPHS,
) -> None:
    """Run ``graphs`` over the reference's cases, each on PyTorch's inputs, and update ``metric`` with every output."""
    specs = backend.specs
    if VISION_ENCODER in graphs:
        sizes = {"N": len(reference.pixel_values)}
        found = _run(backend, specs[VISION_ENCODER], {PIXEL_VALUES: reference.pixel_values}, sizes)
        metric.update(VISION_ENCODER, FEATURES, "pictures", found[FEATURES], reference.features)
    for expected in reference.cases:
        if RESAMPLER in graphs:
            sizes = {"M": expected.case.visual_count}
            found = _run(backend, specs[RESAMPLER], {FEATURES: expected.features}, sizes)
            for name, tensor in expected.media.items():
                metric.update(RESAMPLER, name, expected.case.name, found[name], tensor)
        if LANGUAGE_MODEL in graphs:
            _check_language(backend, config, expected, metric)
        on_case(expected.case.name)


def _run(
    backend: Backend, graph: GraphSpec, inputs: dict[str, Tensor], sizes: dict[str, int]
) -> dict[str, np.ndarray]:
    """Run a graph and return its outputs in float32."""
    given = {name: _as_array(tensor, graph.input(name)) for name, tensor in inputs.items()}
    arrays = {spec.name: np.empty(spec.resolve(sizes), dtype=spec.array_dtype) for spec in graph.outputs}
    backend.bind(graph.name, given, arrays)()
    return {spec.name: as_float(arrays[spec.name], spec) for spec in graph.outputs}


def _as_array(tensor: Tensor, spec: TensorSpec) -> np.ndarray:
    """Convert a tensor to the array that a backend takes for ``spec``."""
    tensor = tensor.to(getattr(torch, spec.dtype)).contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _check_language(backend: Backend, config: FlamingoConfig, expected: Expected, metric: Metric) -> None:
    """Compare prefill and the case's pieces with one pass of the stateless model over all tokens."""
    case = expected.case
    rows, prompt = len(case.lengths), max(case.lengths)
    spec = backend.specs[LANGUAGE_MODEL]
    past = [spec.input(past_name(*part)) for part in layer_parts(config.language.layers)]
    sizes = {"B": rows, "C": case.tokens}
    cache = {entry.name: np.zeros(entry.resolve(sizes), dtype=entry.array_dtype) for entry in past}
    start, lengths = 0, np.array(case.lengths)
    for piece in (prompt, *case.pieces):
        taken = lengths if start == 0 else lengths + (start - prompt)
        cached = np.zeros(rows, dtype=np.int64) if start == 0 else taken
        logits = _piece(backend, config, expected, cache, cached, slice(start, start + piece))
        for row in range(rows):
            tokens = int(lengths[row]) if start == 0 else piece
            begin = 0 if start == 0 else int(taken[row])
            wanted = expected.logits[row][begin : begin + tokens]
            metric.update(LANGUAGE_MODEL, LOGITS, case.name, logits[row, :tokens], wanted)
        start += piece
    for row, seen in enumerate(expected.caches):
        for name, tensor in seen.items():
            found = cache[past_of(name)][row, :, : tensor.shape[2]]
            padded = F.pad(tensor[0], (0, found.shape[-1] - tensor.shape[-1]))  # as `cached_head_width` has it
            metric.update(LANGUAGE_MODEL, name, case.name, as_float(found, spec.output(name)), padded)


def _piece(
    backend: Backend, config: FlamingoConfig, expected: Expected, cache: dict[str, np.ndarray], cached: np.ndarray,
    tokens: slice,
) -> np.ndarray:
    """Run one step and return the logits of all its tokens; the cache is extended in place. Raises `ParityError` when
    the greedy choice is not that of the logits."""
    rows, count = len(cached), tokens.stop - tokens.start
    spec = backend.specs[LANGUAGE_MODEL]
    logits = np.empty((rows, count, config.language.vocab_size), dtype=np.float32)
    inputs = {
        INPUT_IDS: np.ascontiguousarray(expected.input_ids[:, tokens].numpy()),
        MEDIA_INDEX: np.ascontiguousarray(expected.media_index[:, tokens].numpy()),
        CACHE_LENGTH: cached.astype(np.int64),
        LOGITS_INDEX: np.tile(np.arange(count), (rows, 1)),
        **{name: _as_array(expected.by_row(name), spec.input(name)) for name in expected.media},
    }
    present = {present_of(name): array for name, array in cache.items()}
    greedy = {NEXT_TOKEN: np.empty((rows, count), np.int64), NEXT_LOGPROB: np.empty((rows, count), np.float32)}
    backend.bind(LANGUAGE_MODEL, {**inputs, **cache}, {LOGITS: logits, **greedy, **present})()
    _check_choice(expected.case.name, logits, greedy[NEXT_TOKEN], greedy[NEXT_LOGPROB])
    return logits


def _check_choice(case: str, logits: np.ndarray, next_token: np.ndarray, next_logprob: np.ndarray) -> None:
    """Compare the greedy choice with the logits of the same run, where these are finite: the comparison of the logits
    finds the others."""
    wanted = torch.from_numpy(logits).log_softmax(-1).amax(-1).numpy()
    wrong = (next_token != logits.argmax(-1)) | (np.abs(next_logprob - wanted) > CHOICE_TOLERANCE)
    if (wrong & np.isfinite(wanted)).any():
        raise ParityError(
            f"graph {LANGUAGE_MODEL}, tensors {NEXT_TOKEN} and {NEXT_LOGPROB}, prompt '{case}': not the likeliest "
            "token of its own logits; no bundle was written"
        )
