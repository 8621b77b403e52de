"""The whole export: a model in its files in, checked bundle out. The model is never in memory as a whole: weights are
written one by one, and read by the comparison a graph or two at a time."""

from __future__ import annotations

import contextlib
import gc
import math
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flamingo_rt.bundle import (
    LONGEST_TEXT,
    REFERENCE,
    Bundle,
    GraphEntry,
    ReferenceEntry,
    Validation,
    write_manifest,
)
from flamingo_rt.checkpoints import DTYPES, TOKENIZER, StoredModel
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import CACHE_FORMS, GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER
from flamingo_rt.engines.ort import OrtBackend, import_onnxruntime
from flamingo_rt.errors import ParityError, UsageError
from flamingo_rt.export.checks.half_precision import half_reference, half_tolerance, in_half, rounding_cost
from flamingo_rt.export.checks.parity import TOLERANCE, Deviation
from flamingo_rt.export.checks.parity import compare as run_cases
from flamingo_rt.export.checks.parity_cases import CASES, STEPS, Reference, compute_reference
from flamingo_rt.export.checks.recording import Recording, accepted_deviation
from flamingo_rt.export.checks.upcast import write_upcast
from flamingo_rt.export.checks.validation import ValidationPrompts, validate
from flamingo_rt.export.external_graph import check_external, external_graph
from flamingo_rt.export.folding import folded_tensors
from flamingo_rt.export.graph_bytes import graph_weights
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
from flamingo_rt.runtime.reference_outputs import write_reference
from flamingo_rt.step_costs import StepCosts

GRAPH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# The stages that run graphs: not all weights in memory at once.
STAGES = ((VISION_ENCODER, RESAMPLER), (LANGUAGE_MODEL,))


@dataclass(frozen=True)
class Precision:
    """Types of the graphs, fp32, fp16 or bf16: that they compute in, and that their matrices are stored in. Graphs in
    half precision hold all weights in their own type. `Precision.of` checks them."""

    compute: str
    stored: str

    @staticmethod
    def of(compute: str, dtype: str | None) -> Precision:
        """Make a precision of two options; ``dtype`` None stands for the type computed in.

        Raises `UsageError` for an unknown type, or when the two do not go together.
        """
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
    license: str | None = None,
    source: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Write a bundle. It appears whole, verified and equal to PyTorch (or, quantized, near enough), or not at all.

    ``sources`` are the folders and files the model is read from: ``out`` may not replace one of them. ``compute``
    (fp32, fp16, bf16) is what the graphs compute in: half precision is for GPUs. ``dtype`` is the type the matrices are
    stored in, by default the same. Graphs are compared with PyTorch on the stored values, with ``tolerance``, by
    default `TOLERANCE`, or `half_tolerance`. ``quantize`` stores the weights in fewer bits and measures what it costs.
    Without ``compare`` nothing is compared or measured, and the bundle has no reference outputs: for weights that are
    random anyway. ``validation`` are pictures of the model's own kind: the graphs caption them, and how likely these
    captions are is recorded. ``license`` and ``source`` of the weights are recorded as they are.

    Raises `DataError` for a model that cannot be used, `ParityError` when a graph deviates by more than ``tolerance``
    or quantization costs more than its limits, `UsageError` when ``out`` exists or options are unknown or conflict.
    """
    precision = Precision.of(compute, dtype)
    check_lowering(lowering, GRAPH_DTYPES[compute])
    check_external(model.config, lowering, precision.half)
    if quantize is not None:
        quantize.scheme_for(lowering)
        if precision.stored != precision.compute or (precision.half and lowering == NAME):
            raise UsageError(
                f"{precision.stored} and quantization {quantize.scheme} exclude each other: leave one of them out"
            )
    for name, text in (("license", license), ("source", source)):
        if text is not None and (not text.strip() or len(text) > LONGEST_TEXT):
            raise UsageError(f"the {name} has {len(text)} characters: give 1 to {LONGEST_TEXT}, or leave it out")
    check_output(out, overwrite, sources)
    if tolerance is None:
        tolerance = half_tolerance(precision.matrices) if precision.half else TOLERANCE
    if not 0.0 < tolerance < math.inf:
        raise UsageError(f"tolerance is {tolerance}; it must be above 0 and finite, such as 1e-4")
    # Weights that get quantized are not rounded to half precision first.
    stored = _stored(model, precision if quantize is None else Precision("fp32", "fp32"))
    check_space(out, sum(tensor.nbytes for tensor in stored.tensors.values()) // (1 if quantize is None else 3))
    with new_directory(out, overwrite) as folder:
        (folder / TOKENIZER).write_text(model.tokenizer, encoding="utf-8")
        # Refuse a bad tokenizer before the work.
        tokenizer = TextTokenizer(folder / TOKENIZER, model.config.tokens, model.config.language.vocab_size)
        if quantize is None:
            measured = _export_compared(stored, folder, lowering, precision, compare, tolerance, progress)
        else:
            measured = _export_quantized(quantize, stored, folder, lowering, precision, tokenizer, compare, progress)
        written = WrittenGraphs(folder, stored.config, lowering, precision, quantize is not None)
        usual = None if validation is None else _validated(validation, tokenizer, written, progress)
        reference = _recorded(tokenizer, written, measured, tolerance, progress) if compare else None
        with progress("checksums", 0):
            scheme = None if quantize is None else quantize.scheme
            entries = {
                name: GraphEntry(
                    path.name, lowering, GRAPH_DTYPES[precision.stored], scheme, GRAPH_DTYPES[precision.compute],
                    graph_weights(path),
                )
                for name, path in graph_paths(folder).items()
            }
            bundle = Bundle(
                out, model.config, entries, measured.parity, measured.quantization, measured.rounding, usual,
                reference, StepCosts.of(scheme), license, source,
            )
            write_manifest(folder, bundle)
    return bundle


@dataclass(frozen=True)
class Measured:
    """The manifest's figures of a comparison with PyTorch, see `Bundle`."""

    parity: dict[str, float]
    quantization: dict[str, Any] | None
    rounding: dict[str, float] | None


def graph_paths(folder: Path) -> dict[str, Path]:
    """The files of the three graphs of a bundle in the making, by name."""
    return {name: folder / f"{name}.onnx" for name in GRAPHS}


@dataclass(frozen=True)
class WrittenGraphs:
    """The written graphs, to be run on ONNX Runtime's CPU kernels."""

    folder: Path
    config: FlamingoConfig
    lowering: str
    precision: Precision
    quantized: bool

    @contextlib.contextmanager
    def runnable(self) -> Iterator[Mapping[str, Path | GraphFile]]:
        """The three graphs; those of half precision as twins that compute in float32, removed afterwards."""
        paths = graph_paths(self.folder)
        twins = {name: write_upcast(path) for name, path in paths.items()} if self.precision.half else {}
        try:
            yield {**paths, **twins}
        finally:
            for twin in twins.values():
                twin.path.unlink()

    def backend(self, graphs: Mapping[str, Path | GraphFile]) -> OrtBackend:
        """Open some of the runnable graphs. ONNX Runtime's optimizations are off where they would change what is
        computed (they turn quantized graphs of other lowerings into operators that round activations) or hold a float32
        copy of weights that are stored in half precision."""
        frugal = self.lowering != NAME if self.quantized else self.precision.stored != "fp32"
        return OrtBackend(graphs, self.config, frugal=frugal, cache=CACHE_FORMS[self.lowering])


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
        with progress("PyTorch's answers", STEPS) as advance:
            if precision.half:
                reference = half_reference(stored, precision.matrices, advance)
            else:
                reference = compute_reference(streamed_model(stored.config, stored.tensors), advance)
    _write_graphs(stored, folder, lowering, precision, lambda name, graph: None, progress)
    if reference is None:
        return Measured({}, None, None)
    parity, rounding = Deviation(GRAPHS, tolerance), None
    _compare(reference, WrittenGraphs(folder, stored.config, lowering, precision, quantized=False), parity, progress)
    if precision.half:
        with progress(f"PyTorch's answers in {precision.compute}", STEPS) as advance:
            rounding = rounding_cost(stored, precision.matrices, reference, advance)
    return Measured(parity.largest, None, rounding)


def _export_quantized(
    quantize: Quantize, stored: StoredModel, folder: Path, lowering: str, precision: Precision,
    tokenizer: TextTokenizer, compare: bool, progress: Progress,
) -> Measured:
    """Write quantized graphs, and measure what quantization costs. What half precision costs is measured apart, with
    the weights before quantization: it rounds what the layers compute, whose size quantization hardly changes."""
    rounding = None
    if compare and precision.half:
        half, dtype = in_half(stored, precision.matrices), precision.matrices
        with progress(f"PyTorch's answers in {precision.compute}", 2 * STEPS) as advance:
            rounding = rounding_cost(half, dtype, half_reference(half, dtype, advance), advance)
    quantized = QuantizedExport(quantize, lowering, precision.half, stored, tokenizer, compare, progress)
    _write_graphs(stored, folder, lowering, precision, quantized.change, progress)
    return Measured({}, quantized.record(graph_paths(folder)), rounding)


def _validated(
    validation: ValidationPrompts, tokenizer: TextTokenizer, written: WrittenGraphs, progress: Progress
) -> Validation:
    """Measure the probability of the written graphs' captions."""
    with written.runnable() as graphs, progress("captions of validation pictures", len(validation.prompts)) as advance:
        return validate(Model(written.backend(graphs), written.config, tokenizer), validation, advance)


def _recorded(
    tokenizer: TextTokenizer, written: WrittenGraphs, measured: Measured, tolerance: float, progress: Progress
) -> ReferenceEntry | None:
    """Write the reference outputs: what the written graphs answer here. None for a model whose context is too short for
    any prompt."""
    recording = Recording(written.config, tokenizer)
    if not recording.possible:
        return None
    with written.runnable() as graphs, progress("reference outputs", len(STAGES)) as advance:
        pictures, language = ({name: graphs[name] for name in stage} for stage in STAGES)
        recording.encode(written.backend(pictures))
        advance(1)
        write_reference(written.folder / REFERENCE, recording.answer(written.backend(language)))
        advance(1)
    accepted = accepted_deviation(
        tolerance, GRAPH_DTYPES[written.precision.compute], measured.rounding,
        quantized_activations=written.quantized and written.lowering == NAME,
    )
    return ReferenceEntry(REFERENCE, accepted, f"onnxruntime {import_onnxruntime().__version__}, {platform.machine()}")


def _write_graphs(
    stored: StoredModel, folder: Path, lowering: str, precision: Precision, change: Callable[[str, Any], None],
    progress: Progress,
) -> None:
    """Write the three graphs and their weights into ``folder``. ``change`` is given each graph's name and onnx_ir model
    before it is written."""
    weights = Weights(stored.tensors, precision.matrices)
    compute = GRAPH_DTYPES[precision.compute]
    graphs = trace_graphs(stored.config, lowering, weights.bind, weights.matrices == torch.float32, compute)
    for name, path in graph_paths(folder).items():
        with progress(f"{name} graph", 0):
            _, graph = next(graphs)
            if graph is None:
                graph = external_graph(stored)
            else:
                if not precision.half:
                    weights.store(graph)
                change(name, graph)
        with progress(f"{name} weights", external_bytes(graph)) as advance:
            save_graph(graph, path, lambda tensor, count: advance(count))
        if precision.half:
            _check_types(path)
    gc.collect()  # graphs are full of cycles, and next comes the stage that needs the most memory


def _check_types(path: Path) -> None:
    """Check that every operator of a graph takes the types it is given, since no runtime here runs it as it is. Raises
    `ParityError` that names the first that does not."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"{path.name} is not a valid ONNX graph: {error}") from error


def _compare(reference: Reference, written: WrittenGraphs, metric: Deviation, progress: Progress) -> None:
    """Update ``metric`` with what the graphs, which compute in float32, give for the reference's cases."""
    with written.runnable() as graphs, progress("comparison", len(STAGES) * len(CASES)) as advance:
        for stage in STAGES:
            backend = written.backend({name: graphs[name] for name in stage})
            run_cases(reference, backend, written.config, metric, lambda name: advance(1), stage)
            del backend  # it has the files mapped
