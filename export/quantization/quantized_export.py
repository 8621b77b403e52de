"""The quantized parts of an export: error-aware rounding, quantized graphs, and the measured cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flamingo_rt.backend import Backend
from flamingo_rt.checkpoints import StoredModel
from flamingo_rt.contract import CACHE_FORMS, GRAPHS, LANGUAGE_MODEL
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.evaluation.scene_accuracy import scene_accuracy
from flamingo_rt.export.checks.parity import compare
from flamingo_rt.export.checks.parity_cases import STEPS, Reference, TextBatch, answer, compute_reference
from flamingo_rt.export.checks.upcast import write_upcast
from flamingo_rt.export.lowerings.ort_lowering import NAME as ORT
from flamingo_rt.export.quantization.calibration import CalibrationPrompt
from flamingo_rt.export.quantization.calibration_cases import encode_prompts
from flamingo_rt.export.quantization.gptq import LayerRounding
from flamingo_rt.export.quantization.matmul_nbits import quantize_graph
from flamingo_rt.export.quantization.packed_matrices import QuantizedMatrix
from flamingo_rt.export.quantization.qdq import dequantize_graph
from flamingo_rt.export.quantization.quality import Quality, QualityMeter, check_quality
from flamingo_rt.export.quantization.quantization_options import (
    RANDOM_PROMPTS,
    SCHEMES_OF,
    Blocks,
    Quantize,
    Scheme,
)
from flamingo_rt.export.streamed_model import streamed_model
from flamingo_rt.graph_files import GraphFile
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.progress import Progress
from flamingo_rt.runtime.model import Model

QUESTIONS = 4  # about each drawn scene


class QuantizedExport:
    """Quantization within one export: prepares when made, then `change` for each graph, then `record`."""

    def __init__(
        self, options: Quantize, lowering: str, half: bool, model: StoredModel, tokenizer: TextTokenizer,
        measure: bool, progress: Progress,
    ) -> None:
        """Prepare for graphs of ``lowering``, which compute in half precision if ``half``: PyTorch answers the prompts
        that the cost is measured on, unless ``measure`` is False, and gptq rounds if the options say so.

        Raises `UsageError` for a scheme or block that the lowering does not have, `DataError` for unusable prompts.
        """
        self._options, self._model, self._tokenizer, self._progress = options, model, tokenizer, progress
        self._lowering, self._half = lowering, half
        self._scheme = options.scheme_for(lowering)
        self._fitted: dict[str, set[int]] = {}  # block sizes by kind of matrix
        self._reference = None
        if measure and options.calibration is None:
            self._reference = random_reference(model, progress)
        elif measure and options.calibration is not None:
            self._reference = prompts_reference(model, tokenizer, options.calibration.measure, progress)
        self._rounded: dict[str, QuantizedMatrix] = {}
        if options.error_aware and options.calibration is not None:
            self._rounded = error_aware_rounding(
                model, tokenizer, self._scheme, options.calibration.calibrate, progress
            )

    def change(self, name: str, graph: Any) -> None:
        """Quantize the weights of an onnx_ir model in place."""
        form = quantize_graph if self._lowering == ORT else dequantize_graph
        fitted = form(name, graph.graph, self._scheme, self._rounded)
        if name == LANGUAGE_MODEL:  # the only graph with blocks
            self._fitted = fitted

    def record(self, paths: Mapping[str, Path]) -> dict[str, Any]:
        """Measure the cost with the written graphs and return the manifest's entry: scheme, blocks, rounding, cost.

        Raises `ParityError` when the cost is beyond the limits.
        """
        options, calibration = self._options, self._options.calibration
        record: dict[str, Any] = {
            "scheme": self._scheme.name, "blocks": self._scheme.described(self._fitted, self._lowering),
            "rounding": "gptq" if options.error_aware else "nearest",
            "calibration": calibration.source if calibration is not None and options.error_aware else None,
        }
        if self._reference is None:
            return record
        record["measured_on"] = RANDOM_PROMPTS if calibration is None else calibration.measured_source
        self._rounded = {}  # the graphs have them, and are about to be loaded
        twins = {name: write_upcast(path) for name, path in paths.items()} if self._half else {}
        quality = self._quality(self._reference, {**paths, **twins})
        self._reference = None
        check_quality(quality, options.limits, self._scheme.name, SCHEMES_OF[self._lowering])
        record["quality"] = asdict(quality)
        if options.evaluate:
            record["accuracy"] = self._accuracy({**paths, **twins})
        for twin in twins.values():
            twin.path.unlink()
        return record

    def _backend(self, paths: Mapping[str, Path | GraphFile]) -> OrtBackend:
        # With optimizations, ONNX Runtime would turn TensorRT's graphs into its own operators, and round activations.
        frugal = self._lowering != ORT
        return OrtBackend(paths, self._model.config, frugal=frugal, cache=CACHE_FORMS[self._lowering])

    def _quality(self, reference: Reference, paths: Mapping[str, Path | GraphFile]) -> Quality:
        meter = QualityMeter()
        with self._progress("comparison", len(GRAPHS) * len(reference.cases)) as advance:
            for name in GRAPHS:  # one by one: not all weights in memory at once
                backend = self._backend({name: paths[name]})
                compare(reference, backend, self._model.config, meter, lambda case: advance(1), (name,))
                del backend  # it has the files mapped
        return meter.quality()

    def _accuracy(self, paths: Mapping[str, Path | GraphFile]) -> dict[str, Any]:
        """Shares of right captions and answers about drawn scenes, before and after quantization."""
        config, count = self._model.config, self._options.evaluate
        backends: dict[str, Callable[[], Backend]] = {
            "before": lambda: TorchBackend(streamed_model(config, self._model.tensors)),
            "after": lambda: self._backend(paths),
        }
        result: dict[str, Any] = {"scenes": count}
        for when, backend in backends.items():
            with self._progress(f"drawn scenes, {when}", count * (1 + QUESTIONS)) as advance:
                accuracy = scene_accuracy(Model(backend(), config, self._tokenizer), count, QUESTIONS, advance)
            result[when] = {"captions": accuracy.caption_share, "questions": accuracy.question_share}
        return result


def prompts_reference(
    model: StoredModel, tokenizer: TextTokenizer, prompts: list[CalibrationPrompt], progress: Progress
) -> Reference:
    """Compute PyTorch's logits and caches for ``prompts``, with the weights before rounding."""
    torch_model = streamed_model(model.config, model.tensors)
    with progress("PyTorch's answers", len(prompts) + 2) as advance:
        reference = encode_prompts(torch_model, tokenizer, prompts, advance)
        answer(torch_model, reference.cases)
        advance(1)
    return reference


def random_reference(model: StoredModel, progress: Progress) -> Reference:
    """Compute the same for random prompts, those that graphs without quantization are compared on."""
    with progress("PyTorch's answers", STEPS) as advance:
        return compute_reference(streamed_model(model.config, model.tensors), advance)


def error_aware_rounding(
    model: StoredModel, tokenizer: TextTokenizer, scheme: Scheme, prompts: list[CalibrationPrompt], progress: Progress
) -> dict[str, QuantizedMatrix]:
    """Round the 4-bit matrices of the language model and its cross-attention by gptq on ``prompts``. Returns them by
    the name of their tensor."""
    def blocks_of(name: str) -> Blocks | None:
        # The resampler's graph computes the media's keys and values, in 8 bits.
        elsewhere = name.startswith(("vision.", "resampler.", "cross_attention.projection")) or (
            name.startswith("cross_attention.") and name.endswith((".key.weight", ".value.weight"))
        )
        blocks = None if elsewhere else scheme.blocks_of(name, model.tensors[name].shape[1])
        return blocks if blocks is not None and blocks.bits == 4 else None

    torch_model = streamed_model(model.config, model.tensors)
    with progress("calibration prompts", len(prompts) + 1) as advance:
        cases = encode_prompts(torch_model, tokenizer, prompts, advance).cases
    batch = TextBatch.of(cases)
    matrices = sum(blocks_of(name) is not None for name in model.tensors if _is_matrix(model, name))
    with progress("error-aware rounding", matrices) as advance, torch.no_grad():
        rounding = LayerRounding(torch_model, blocks_of, batch.tokens, advance)
        batch.decode(torch_model, logits_index=torch.zeros(len(batch.rows), 1, dtype=torch.int64))
    return rounding.rounded


def _is_matrix(model: StoredModel, name: str) -> bool:
    return name.endswith(".weight") and len(model.tensors[name].shape) == 2 and "embedding" not in name
