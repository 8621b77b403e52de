"""The whole export: a model in its files in, checked bundle out. The model is never in memory as a whole: weights are
written one by one, and read by the comparison a graph or two at a time."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flamingo_rt.bundle import Bundle, GraphEntry, write_manifest
from flamingo_rt.checkpoints import DTYPES, TOKENIZER, StoredModel
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER
from flamingo_rt.engines.ort import OrtEngine
from flamingo_rt.errors import UsageError
from flamingo_rt.export.cases import CASES, STEPS, Reference, compute_reference
from flamingo_rt.export.folding import folded_tensors
from flamingo_rt.export.graphs import check_lowering, trace_graphs
from flamingo_rt.export.ort import NAME
from flamingo_rt.export.parity import TOLERANCE, check_parity
from flamingo_rt.export.quantizing import Quantize, QuantizedExport
from flamingo_rt.export.reference import streamed_model
from flamingo_rt.export.weights import Weights, external_bytes, save_graph
from flamingo_rt.files import check_output, check_space, new_directory
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.progress import Progress, silent

GRAPH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# The stages that run graphs: not all weights in memory at once.
STAGES = ((VISION_ENCODER, RESAMPLER), (LANGUAGE_MODEL,))


def export_model(
    model: StoredModel,
    out: Path,
    *,
    sources: tuple[Path, ...] = (),
    lowering: str = NAME,
    dtype: str = "fp32",
    quantize: Quantize | None = None,
    compare: bool = True,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Write a bundle. It appears whole, verified and equal to PyTorch (or, quantized, near enough), or not at all.

    ``sources`` are the folders and files the model is read from: ``out`` may not replace one of them. ``dtype``
    (fp32, fp16, bf16) is the type the matrices are stored in; graphs compute in float32 and are compared with PyTorch
    on the stored values. ``quantize`` stores the weights in fewer bits and measures what it costs. Without ``compare``
    nothing is compared or measured: for weights that are random anyway.

    Raises `DataError` for a model that cannot be used, `ParityError` when a graph deviates by more than ``tolerance``
    or quantization costs more than its limits, `UsageError` when ``out`` exists or options are unknown or conflict.
    """
    check_lowering(lowering)
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if quantize is not None and dtype != "fp32":
        raise UsageError(f"dtype {dtype} and quantization {quantize.scheme} exclude each other: leave one out")
    check_output(out, overwrite, sources)
    if not 0.0 < tolerance < math.inf:
        raise UsageError(f"tolerance is {tolerance}; it must be above 0 and finite, such as 1e-4")
    config = model.config
    stored = StoredModel(config, model.tokenizer, folded_tensors(model.tensors)).stored_as(DTYPES[dtype])
    check_space(out, sum(tensor.nbytes for tensor in stored.tensors.values()) // (1 if quantize is None else 3))
    with new_directory(out, overwrite) as folder:
        (folder / TOKENIZER).write_text(model.tokenizer, encoding="utf-8")
        # Refuse a bad one before the work.
        tokenizer = TextTokenizer(folder / TOKENIZER, config.tokens, config.language.vocab_size)
        computed = "float32" if lowering == NAME else GRAPH_DTYPES[dtype]
        matrices = DTYPES[dtype] if computed == "float32" else torch.float32  # stored otherwise than computed with
        weights, parity, quantization = Weights(stored.tensors, matrices), {}, None
        if quantize is None:
            reference = _reference(stored, progress) if compare else None
            paths = _write_graphs(
                stored, folder, lowering, weights, lambda name, graph: weights.store(graph), progress, computed
            )
            if reference is not None:
                parity = _parity(reference, paths, stored, dtype, tolerance, progress)
        else:
            quantized = QuantizedExport(quantize, stored, tokenizer, compare, progress)
            paths = _write_graphs(stored, folder, lowering, weights, quantized.change, progress)
            quantization = quantized.record(paths)
        with progress("checksums", 0):
            scheme = None if quantize is None else quantize.scheme
            entries = {
                name: GraphEntry(path.name, lowering, GRAPH_DTYPES[dtype], scheme) for name, path in paths.items()
            }
            write_manifest(folder, config, entries, parity, quantization)
    return Bundle(out, config, entries, parity, quantization)


def _reference(stored: StoredModel, progress: Progress) -> Reference:
    with progress("PyTorch's answers", STEPS) as advance:
        return compute_reference(streamed_model(stored.config, stored.tensors), advance)


def _write_graphs(
    stored: StoredModel, folder: Path, lowering: str, weights: Weights, change: Callable[[str, Any], None],
    progress: Progress, computed: str = "float32",
) -> dict[str, Path]:
    """The three graphs and their weights in ``folder``; the files by name. ``change`` is given each graph's name and
    onnx_ir model before it is written."""
    whole = weights.matrices == torch.float32 and computed == "float32"
    graphs = trace_graphs(stored.config, lowering, weights.bind, fold_factors=whole, dtype=computed)
    paths = {}
    for name in GRAPHS:
        with progress(f"{name} graph", 0):
            _, graph = next(graphs)
            change(name, graph)
        paths[name] = folder / f"{name}.onnx"
        with progress(f"{name} weights", external_bytes(graph)) as advance:
            save_graph(graph, paths[name], lambda tensor, count: advance(count))
    gc.collect()  # graphs are full of cycles, and next comes the stage that needs the most memory
    return paths


def _parity(
    reference: Reference, paths: dict[str, Path], stored: StoredModel, dtype: str, tolerance: float, progress: Progress
) -> dict[str, float]:
    """The largest deviation of each graph."""
    parity: dict[str, float] = {}
    with progress("comparison", len(STAGES) * len(CASES)) as advance:
        for graphs in STAGES:
            # Float32 weights are what ONNX Runtime computes with; of others it would hold a copy twice their size.
            engine = OrtEngine({name: paths[name] for name in graphs}, stored.config, frugal=dtype != "fp32")
            parity |= check_parity(reference, engine, stored.config, tolerance, lambda name: advance(1), graphs)
            del engine  # it has the files mapped
    return parity
