"""The whole export: a model in its files in, checked bundle out. The model is never in memory as a whole: weights are
written one by one, and read by the comparison a graph or two at a time."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flamingo_rt.bundle import Bundle, GraphEntry, Validation, write_manifest
from flamingo_rt.checkpoints import DTYPES, TOKENIZER, StoredModel
from flamingo_rt.contract import CACHE_FORMS, GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.errors import ParityError, UsageError
from flamingo_rt.export.checks.half_precision import (
    RoundedConstants,
    compared_with,
    half_tolerance,
    in_half,
    rounding_cost,
)
from flamingo_rt.export.checks.parity import TOLERANCE, Deviation
from flamingo_rt.export.checks.parity import compare as run_cases
from flamingo_rt.export.checks.parity_cases import CASES, STEPS, Reference, compute_reference
from flamingo_rt.export.checks.upcast import write_upcast
from flamingo_rt.export.checks.validation import ValidationPrompts, validate
from flamingo_rt.export.folding import folded_tensors
from flamingo_rt.export.graph_weights import Weights, external_bytes, save_graph
from flamingo_rt.export.lowerings.ort_lowering import NAME
from flamingo_rt.export.quantization.quantization_options import Quantize
from flamingo_rt.export.quantization.quantized_export import QuantizedExport
from flamingo_rt.export.relative_positions import relative_key_tensors
from flamingo_rt.export.streamed_model import streamed_model
from flamingo_rt.export.tracing import check_lowering, trace_graphs
from flamingo_rt.files import check_output, check_space, new_directory
from flamingo_rt.graph_files import GraphFile
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.progress import Progress, silent
from flamingo_rt.runtime.model import Model

GRAPH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# The stages that run graphs: not all weights in memory at once.
STAGES = ((VISION_ENCODER, RESAMPLER), (LANGUAGE_MODEL,))


@dataclass(frozen=True)
class Precision:
    """What the graphs compute in and what their matrices are stored in: fp32, fp16 or bf16 each. Graphs in half
    precision hold all weights in their own type.

    Raises `UsageError` for an unknown type, or when the two do not go together.
    """

    compute: str
    stored: str

    @staticmethod
    def of(compute: str, dtype: str | None) -> Precision:
        """``dtype`` None is the type computed in."""
        for name, value in (("compute", compute), ("dtype", dtype)):
            if value not in (*DTYPES, None):
                raise UsageError(f"unknown {name} {value!r}; known: {', '.join(DTYPES)}")
        if compute != "fp32" and dtype not in (None, compute):
            raise UsageError(f"graphs that compute in {compute} hold their weights in {compute}: leave out {dtype}")
        return Precision(compute, dtype or compute)

    @property
    def half(self) -> bool:
        """Whether the graphs compute in half precision."""
        return self.compute != "fp32"

    @property
    def matrices(self) -> torch.dtype:
        """The type of the stored matrices."""
        return DTYPES[self.stored]


def export_model(
    model: StoredModel,
    out: Path,
    *,
    sources: tuple[Path, ...] = (),
    lowering: str = NAME,
    compute: str = "fp32",
    dtype: str | None = None,
    quantize: Quantize | None = None,
    compare: bool = True,
    tolerance: float | None = None,
    validation: ValidationPrompts | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Write a bundle. It appears whole, verified and equal to PyTorch (or, quantized, near enough), or not at all.

    ``sources`` are the folders and files the model is read from: ``out`` may not replace one of them. ``compute``
    (fp32, fp16, bf16) is what the graphs compute in: half precision is for GPUs. ``dtype`` is the type the matrices are
    stored in, by default the same. Graphs are compared with PyTorch on the stored values, with ``tolerance``, by
    default `TOLERANCE`, or `half_tolerance`. ``quantize`` stores the weights in fewer bits and measures what it costs.
    Without ``compare`` nothing is compared or measured: for weights that are random anyway. ``validation`` are pictures
    of the model's own kind: how likely its captions of them are is measured with the graphs, and recorded.

    Raises `DataError` for a model that cannot be used, `ParityError` when a graph deviates by more than ``tolerance``
    or quantization costs more than its limits, `UsageError` when ``out`` exists or options are unknown or conflict.
    """
    precision = Precision.of(compute, dtype)
    check_lowering(lowering, GRAPH_DTYPES[compute])
    if quantize is not None:
        quantize.scheme_for(lowering)
        if precision.stored != precision.compute or (precision.half and lowering == NAME):
            raise UsageError(
                f"{precision.stored} and quantization {quantize.scheme} exclude each other: leave one of them out"
            )
    check_output(out, overwrite, sources)
    if tolerance is None:
        tolerance = half_tolerance(precision.matrices) if precision.half else TOLERANCE
    if not 0.0 < tolerance < math.inf:
        raise UsageError(f"tolerance is {tolerance}; it must be above 0 and finite, such as 1e-4")
    # What is quantized is not rounded to half precision before.
    stored = _stored(model, precision if quantize is None else Precision("fp32", "fp32"))
    check_space(out, sum(tensor.nbytes for tensor in stored.tensors.values()) // (1 if quantize is None else 3))
    with new_directory(out, overwrite) as folder:
        (folder / TOKENIZER).write_text(model.tokenizer, encoding="utf-8")
        # Refuse a bad one before the work.
        tokenizer = TextTokenizer(folder / TOKENIZER, model.config.tokens, model.config.language.vocab_size)
        if quantize is None:
            measured = _export_compared(stored, folder, lowering, precision, compare, tolerance, progress)
        else:
            quantized = QuantizedExport(quantize, lowering, precision.half, stored, tokenizer, compare, progress)
            _write_graphs(stored, folder, lowering, precision, quantized.change, progress)
            measured = Measured({}, quantized.record(graph_paths(folder)), None)
        usual = None
        if validation is not None:
            frugal = lowering != NAME or (quantize is None and precision.stored != "fp32")
            usual = _validated(validation, stored, tokenizer, folder, precision, lowering, frugal, progress)
        with progress("checksums", 0):
            scheme = None if quantize is None else quantize.scheme
            entry = GraphEntry("", lowering, GRAPH_DTYPES[precision.stored], scheme, GRAPH_DTYPES[precision.compute])
            entries = {name: replace(entry, file=path.name) for name, path in graph_paths(folder).items()}
            write_manifest(folder, model.config, entries, *astuple(measured), usual)
    return Bundle(out, model.config, entries, *astuple(measured), usual)


@dataclass(frozen=True)
class Measured:
    """What the manifest says of a bundle's numbers, see `Bundle`."""

    parity: dict[str, float]
    quantization: dict[str, Any] | None
    rounding: dict[str, float] | None


def graph_paths(folder: Path) -> dict[str, Path]:
    """The files of the three graphs of a bundle in the making, by name."""
    return {name: folder / f"{name}.onnx" for name in GRAPHS}


def _stored(model: StoredModel, precision: Precision) -> StoredModel:
    """The tensors as the graphs hold them, with what is folded into them."""
    folded = replace(model, tensors=relative_key_tensors(model.config.language, folded_tensors(model.tensors)))
    return in_half(folded, precision.matrices) if precision.half else folded.stored_as(precision.matrices)


def _export_compared(
    stored: StoredModel, folder: Path, lowering: str, precision: Precision, compare: bool, tolerance: float,
    progress: Progress,
) -> Measured:
    """Write the graphs, not quantized, and compare them with PyTorch."""
    reference = None
    if compare:
        expected = compared_with(stored, precision.matrices) if precision.half else stored
        constants = RoundedConstants(precision.matrices) if precision.half else contextlib.nullcontext()
        with progress("PyTorch's answers", STEPS) as advance, constants:
            reference = compute_reference(streamed_model(expected.config, expected.tensors), advance)
    _write_graphs(stored, folder, lowering, precision, lambda name, graph: None, progress)
    if reference is None:
        return Measured({}, None, None)
    paths, rounding, cache = graph_paths(folder), None, CACHE_FORMS[lowering]
    if precision.half:
        twins = {name: write_upcast(path) for name, path in paths.items()}
        parity = Deviation(GRAPHS, tolerance)
        _compare(reference, twins, stored, parity, cache, frugal=True, progress=progress)
        for twin in twins.values():
            twin.path.unlink()
        with progress(f"PyTorch's answers in {precision.compute}", STEPS) as advance:
            rounding = rounding_cost(stored, precision.matrices, reference, advance)
    else:
        # Float32 weights are what ONNX Runtime computes with; of others it would hold a copy twice their size.
        parity = Deviation(GRAPHS, tolerance)
        frugal = precision.stored != "fp32"
        _compare(reference, paths, stored, parity, cache, frugal, progress)
    return Measured(parity.largest, None, rounding)


def _validated(
    validation: ValidationPrompts, stored: StoredModel, tokenizer: TextTokenizer, folder: Path, precision: Precision,
    lowering: str, frugal: bool, progress: Progress,
) -> Validation:
    """How likely the written graphs' captions are; those of half precision are run in float32."""
    twins = {name: write_upcast(path) for name, path in graph_paths(folder).items()} if precision.half else {}
    paths = graph_paths(folder) | twins
    backend = OrtBackend(paths, stored.config, frugal=frugal, cache=CACHE_FORMS[lowering])
    with progress("captions of validation pictures", len(validation.prompts)) as advance:
        measured = validate(Model(backend, stored.config, tokenizer), validation, advance)
    del backend  # it has the files mapped
    for twin in twins.values():
        twin.path.unlink()
    return measured


def _write_graphs(
    stored: StoredModel, folder: Path, lowering: str, precision: Precision, change: Callable[[str, Any], None],
    progress: Progress,
) -> None:
    """The three graphs and their weights in ``folder``. ``change`` is given each graph's name and onnx_ir model before
    it is written."""
    weights = Weights(stored.tensors, precision.matrices)
    compute = GRAPH_DTYPES[precision.compute]
    graphs = trace_graphs(stored.config, lowering, weights.bind, weights.matrices == torch.float32, compute)
    for name, path in graph_paths(folder).items():
        with progress(f"{name} graph", 0):
            _, graph = next(graphs)
            if not precision.half:
                weights.store(graph)
            change(name, graph)
        with progress(f"{name} weights", external_bytes(graph)) as advance:
            save_graph(graph, path, lambda tensor, count: advance(count))
        if precision.half:
            _check_types(path)
    gc.collect()  # graphs are full of cycles, and next comes the stage that needs the most memory


def _check_types(path: Path) -> None:
    """Whether every operator of a graph takes the types it is given: no runtime at hand runs it as it is. Raises
    `ParityError` that names the first that does not."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"{path.name} is no valid ONNX graph: {error}") from error


def _compare(
    reference: Reference, paths: Mapping[str, Path | GraphFile], stored: StoredModel, judge: Deviation, cache: str,
    frugal: bool, progress: Progress,
) -> None:
    """Show ``judge`` what the graphs, which compute in float32, give for the reference's cases."""
    with progress("comparison", len(STAGES) * len(CASES)) as advance:
        for graphs in STAGES:
            backend = OrtBackend({name: paths[name] for name in graphs}, stored.config, frugal=frugal, cache=cache)
            run_cases(reference, backend, stored.config, judge, lambda name: advance(1), graphs)
            del backend  # it has the files mapped
