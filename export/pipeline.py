"""The whole export: a model in its files in, checked bundle out. No more than one graph's weights is ever in memory."""

from __future__ import annotations

import gc
import math
from pathlib import Path

from flamingo_rt.bundle import Bundle, GraphEntry, write_manifest
from flamingo_rt.checkpoints import DTYPES, TOKENIZER, StoredModel
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER
from flamingo_rt.engines.ort import OrtEngine
from flamingo_rt.errors import UsageError
from flamingo_rt.export.cases import CASES, STEPS, compute_reference
from flamingo_rt.export.folding import folded_tensors
from flamingo_rt.export.graphs import check_lowering, trace_graphs
from flamingo_rt.export.ort import NAME
from flamingo_rt.export.parity import TOLERANCE, check_parity
from flamingo_rt.export.reference import streamed_model
from flamingo_rt.export.weights import Weights, external_bytes, save_graph
from flamingo_rt.files import check_output, check_space, new_directory
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.progress import Progress, silent


def export_model(
    model: StoredModel,
    out: Path,
    *,
    sources: tuple[Path, ...] = (),
    lowering: str = NAME,
    dtype: str = "fp32",
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Write a bundle. It appears whole, verified and equal to PyTorch, or not at all.

    ``sources`` are the folders and files the model is read from: ``out`` may not replace one of them. ``dtype``
    (fp32, fp16, bf16) is the type the matrices are stored in; graphs compute in float32 and are compared with PyTorch
    on the stored values.

    Raises `DataError` for a model that cannot be used, `ParityError` when a graph deviates by more than ``tolerance``,
    `UsageError` when ``out`` exists or lowering or dtype are unknown.
    """
    check_lowering(lowering)
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    check_output(out, overwrite, sources)
    if not 0.0 < tolerance < math.inf:
        raise UsageError(f"tolerance is {tolerance}; it must be above 0 and finite, such as 1e-4")
    config = model.config
    stored = StoredModel(config, model.tokenizer, folded_tensors(model.tensors)).stored_as(DTYPES[dtype])
    check_space(out, sum(tensor.nbytes for tensor in stored.tensors.values()))
    with new_directory(out, overwrite) as folder:
        (folder / TOKENIZER).write_text(model.tokenizer, encoding="utf-8")
        TextTokenizer(folder / TOKENIZER, config.tokens, config.language.vocab_size)  # refuse a bad one before the work
        with progress("PyTorch's answers", STEPS) as advance:
            reference = compute_reference(streamed_model(config, stored.tensors), advance)
        paths = _write_graphs(stored, folder, lowering, dtype, progress)
        gc.collect()  # graphs are full of cycles, and next comes the stage that needs the most memory
        parity = {}
        with progress("comparison", 2 * len(CASES)) as advance:
            for graphs in ((VISION_ENCODER, RESAMPLER), (LANGUAGE_MODEL,)):  # not all weights in memory at once
                # Float32 weights are what ONNX Runtime computes with; of others it would hold a copy twice their size.
                engine = OrtEngine({name: paths[name] for name in graphs}, config, frugal=dtype != "fp32")
                parity |= check_parity(reference, engine, config, tolerance, lambda name: advance(1), graphs)
                del engine  # it has the files mapped
        with progress("checksums", 0):
            entries = {name: GraphEntry(path.name, lowering, GRAPH_DTYPES[dtype], None) for name, path in paths.items()}
            write_manifest(folder, config, entries, parity)
    return Bundle(out, config, entries, parity)


GRAPH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def _write_graphs(stored: StoredModel, folder: Path, lowering: str, dtype: str, progress: Progress) -> dict[str, Path]:
    """The three graphs and their weights in ``folder``; the files by name."""
    weights = Weights(stored.tensors, DTYPES[dtype])
    graphs = trace_graphs(stored.config, lowering, weights.bind)
    paths = {}
    for name in GRAPHS:
        with progress(f"{name} graph", 0):
            _, graph = next(graphs)
            weights.store(graph)
        paths[name] = folder / f"{name}.onnx"
        with progress(f"{name} weights", external_bytes(graph)) as advance:
            save_graph(graph, paths[name], lambda tensor, count: advance(count))
    return paths
