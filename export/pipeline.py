"""The whole export: checkpoint in, checked bundle out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flamingo_rt.bundle import Bundle, GraphEntry, read_bundle, write_manifest
from flamingo_rt.checkpoints import copy_tokenizer, load_checkpoint
from flamingo_rt.engines.ort import OrtEngine
from flamingo_rt.errors import UsageError
from flamingo_rt.export.graphs import export_graphs
from flamingo_rt.export.ort import NAME
from flamingo_rt.export.parity import TOLERANCE, check_parity
from flamingo_rt.files import check_output, new_directory
from flamingo_rt.processing.tokenizer import TextTokenizer


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    lowering: str = NAME,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Bundle:
    """Write a bundle for a checkpoint folder. It appears whole, verified and equal to PyTorch, or not at all.

    Raises `DataError` for a checkpoint that cannot be used, `ParityError` when a graph deviates by more than
    ``tolerance``, `UsageError` when ``out`` exists or the lowering is unknown.
    """
    check_output(out, overwrite)
    if not 0.0 < tolerance < float("inf"):
        raise UsageError(f"tolerance is {tolerance}; it must be above 0 and finite, such as 1e-4")
    if out.resolve() in (checkpoint.resolve(), *checkpoint.resolve().parents):
        raise UsageError(f"{out} is or holds the checkpoint {checkpoint}: choose another --out")
    on_stage("checkpoint")
    loaded = load_checkpoint(checkpoint)
    config = loaded.model.config
    TextTokenizer(loaded.tokenizer, config.tokens, config.language.vocab_size)  # refuse a bad one before the work
    with new_directory(out, overwrite) as folder:
        paths = export_graphs(loaded.model, folder, lowering, on_stage)
        on_stage("comparison with PyTorch")
        parity = check_parity(loaded.model, OrtEngine(paths, config), tolerance)
        copy_tokenizer(loaded, folder)
        entries = {name: GraphEntry(path.name, lowering, "float32", None) for name, path in paths.items()}
        write_manifest(folder, config, entries, parity)
    return read_bundle(out)
