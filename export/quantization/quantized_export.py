"""Quantization as a part of the export: the prompts, error-aware rounding, and what all of it cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flamingo_rt.backend import Backend
from flamingo_rt.checkpoints import StoredModel
from flamingo_rt.contract import CACHE_FORMS, GRAPHS, LANGUAGE_MODEL
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.errors import UsageError
from flamingo_rt.evaluation.scene_accuracy import scene_accuracy
from flamingo_rt.export.checks.parity import compare
from flamingo_rt.export.checks.parity_cases import Reference, TextBatch, answer
from flamingo_rt.export.checks.upcast import write_upcast
from flamingo_rt.export.lowerings.ort_lowering import NAME as ORT
from flamingo_rt.export.quantization.calibration import Calibration, drawn_scenes, read_prompts
from flamingo_rt.export.quantization.calibration_cases import encode_prompts
from flamingo_rt.export.quantization.gptq import LayerRounding
from flamingo_rt.export.quantization.matmul_nbits import quantize_graph
from flamingo_rt.export.quantization.packed_blocks import QuantizedMatrix
from flamingo_rt.export.quantization.qdq import dequantize_graph
from flamingo_rt.export.quantization.quality import Quality, QualityMeter, check_quality
from flamingo_rt.export.quantization.quantization_options import (
    BLOCKS,
    BLOCKS_OF,
    LIMITS,
    ROUNDINGS,
    SCHEMES_OF,
    Blocks,
    Limits,
    Scheme,
    scheme_called,
)
from flamingo_rt.export.streamed_model import streamed_model
from flamingo_rt.graph_files import GraphFile
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.progress import Progress
from flamingo_rt.runtime.model import Model

ERROR_AWARE_BITS = 4  # at 8, rounding to the nearest loses next to nothing
QUESTIONS = 4  # about each drawn scene


@dataclass(frozen=True)
class Quantize:
    """How to quantize: ``scheme`` (int8, fp8, mixed, int4); ``rounding`` of 4-bit matrices: ``gptq``, which takes
    calibration prompts, from the file ``calibration`` or about drawn scenes, or ``nearest``. ``min_cosine`` and
    ``max_changed`` (a share, 0 to 1) say what cost is accepted; by default, what the scheme usually has. ``evaluate``
    is the number of drawn scenes to ask the model about before and after, for models of `flamingo-rt train`. ``block``
    is how many numbers of a 4-bit matrix share a scale (32, 64, 128, 256): fewer are nearer, more are faster.

    Raises `UsageError` for an unknown scheme, rounding or block and for numbers out of range.
    """

    scheme: str
    rounding: str = ROUNDINGS[0]
    calibration: Path | None = None
    min_cosine: float | None = None
    max_changed: float | None = None
    evaluate: int = 0
    block: int | None = None

    def __post_init__(self) -> None:
        scheme_called(self.scheme)
        if self.rounding not in ROUNDINGS:
            raise UsageError(f"unknown rounding {self.rounding!r}; known: {', '.join(ROUNDINGS)}")
        if self.block is not None and self.block not in BLOCKS:
            raise UsageError(f"block is {self.block}; known: {', '.join(map(str, BLOCKS))}")
        if isinstance(self.evaluate, bool) or not isinstance(self.evaluate, int) or self.evaluate < 0:
            raise UsageError(f"evaluate is {self.evaluate!r}; it must be a number of scenes, 0 or more")
        for name, lowest in (("min_cosine", -1.0), ("max_changed", 0.0)):
            value = getattr(self, name)
            if value is not None and not (lowest <= value <= 1.0 and math.isfinite(value)):
                raise UsageError(f"{name} is {value}; it must be from {lowest:g} to 1")

    @property
    def limits(self) -> Limits:
        """The cost that is accepted."""
        usual = LIMITS[self.scheme]
        return Limits(
            usual.cosine if self.min_cosine is None else self.min_cosine,
            usual.changed if self.max_changed is None else self.max_changed,
        )

    def scheme_for(self, lowering: str) -> Scheme:
        """The scheme, with its 4-bit blocks as asked for. Raises `UsageError` for what the lowering has no form of."""
        if self.scheme not in SCHEMES_OF[lowering]:
            known = ", ".join(SCHEMES_OF[lowering])
            raise UsageError(f"the lowering {lowering} has no quantization {self.scheme}; known: {known}")
        scheme, blocks = scheme_called(self.scheme), BLOCKS_OF.get(lowering, ())
        if self.block is None:
            return scheme.with_block(blocks[-1]) if blocks else scheme
        if self.block not in blocks:
            known = ", ".join(map(str, blocks)) or "none"
            raise UsageError(f"block is {self.block}; of the lowering {lowering} known: {known}")
        return scheme.with_block(self.block)

    def prompts(self, model: StoredModel) -> Calibration:
        """The prompts to round with and to measure on. Raises `DataError` for a file that cannot be used."""
        return drawn_scenes(model.config) if self.calibration is None else read_prompts(self.calibration)


class QuantizedExport:
    """The parts of one export that differ with quantization: `change` for each graph, then `record`."""

    def __init__(
        self, options: Quantize, lowering: str, half: bool, model: StoredModel, tokenizer: TextTokenizer,
        measure: bool, progress: Progress,
    ) -> None:
        """For graphs of this ``lowering`` that compute in ``half`` precision or not. Reads the prompts, has PyTorch
        answer those that are measured on, and rounds. Without ``measure`` it does none of it, and rounding is to the
        nearest.

        Raises `DataError` for prompts that cannot be used.
        """
        self._options, self._model, self._tokenizer, self._progress = options, model, tokenizer, progress
        self._lowering, self._half = lowering, half
        self._scheme, self._rounded = options.scheme_for(lowering), {}
        self._fitted: dict[str, set[int]] = {}  # sizes of block by kind of matrix
        self._calibration = options.prompts(model) if measure else None
        if self._calibration is not None:
            self._reference = measured_reference(model, tokenizer, self._calibration, progress)
            if options.rounding == "gptq" and ERROR_AWARE_BITS in self._scheme.bits:
                self._rounded = error_aware_rounding(model, tokenizer, self._scheme, self._calibration, progress)

    def change(self, name: str, graph: Any) -> None:
        """Quantize the weights of an onnx_ir model."""
        form = quantize_graph if self._lowering == ORT else dequantize_graph
        fitted = form(name, graph.graph, self._scheme, self._rounded)
        if name == LANGUAGE_MODEL:  # the only one in blocks
            self._fitted = fitted

    def record(self, paths: Mapping[str, Path]) -> dict[str, Any]:
        """What the manifest says of it: scheme, blocks, rounding, and the cost, measured with the written graphs.

        Raises `ParityError` when it is beyond the limits.
        """
        options, scheme = self._options, self._scheme
        blocks = scheme.described(self._fitted)
        if self._lowering != ORT:  # what has 8 bits has its scales by column
            blocks = {name: kind if kind["bits"] == 4 else {"bits": kind["bits"]} for name, kind in blocks.items()}
        record: dict[str, Any] = {
            "scheme": scheme.name, "blocks": blocks,
            "rounding": "gptq" if self._rounded else "nearest",
        }
        if self._calibration is None:
            return record
        record["calibration"] = self._calibration.source if self._rounded else None
        record["measured_on"] = self._calibration.measured_source
        self._rounded = {}  # the graphs have them, and are about to be loaded
        twins = {name: write_upcast(path) for name, path in paths.items()} if self._half else {}
        quality = self._quality({**paths, **twins})
        check_quality(quality, options.limits, scheme.name, SCHEMES_OF[self._lowering])
        record["quality"] = asdict(quality)
        if options.evaluate:
            record["accuracy"] = self._accuracy({**paths, **twins})
        for twin in twins.values():
            twin.path.unlink()
        return record

    def _backend(self, paths: Mapping[str, Path | GraphFile]) -> OrtBackend:
        # Optimized, ONNX Runtime would make of another lowering's graphs its own, and round activations too.
        frugal = self._lowering != ORT
        return OrtBackend(paths, self._model.config, frugal=frugal, cache=CACHE_FORMS[self._lowering])

    def _quality(self, paths: Mapping[str, Path | GraphFile]) -> Quality:
        meter, cases = QualityMeter(), self._reference.cases
        with self._progress("comparison", len(GRAPHS) * len(cases)) as advance:
            for name in GRAPHS:  # one by one: not all weights in memory at once
                backend = self._backend({name: paths[name]})
                compare(self._reference, backend, self._model.config, meter, lambda case: advance(1), (name,))
                del backend  # it has the files mapped
        del self._reference
        return meter.quality()

    def _accuracy(self, paths: Mapping[str, Path | GraphFile]) -> dict[str, Any]:
        """Right captions and answers about drawn scenes, before and after."""
        config, count = self._model.config, self._options.evaluate
        engines: dict[str, Callable[[], Backend]] = {
            "before": lambda: TorchBackend(streamed_model(config, self._model.tensors)),
            "after": lambda: self._backend(paths),
        }
        result: dict[str, Any] = {"scenes": count}
        for when, backend in engines.items():
            with self._progress(f"drawn scenes, {when}", count * (1 + QUESTIONS)) as advance:
                accuracy = scene_accuracy(Model(backend(), config, self._tokenizer), count, QUESTIONS, advance)
            result[when] = {"captions": accuracy.caption_share, "questions": accuracy.question_share}
        return result


def error_aware_rounding(
    model: StoredModel, tokenizer: TextTokenizer, scheme: Scheme, calibration: Calibration, progress: Progress
) -> dict[str, QuantizedMatrix]:
    """The 4-bit matrices of the language model and its cross-attention, rounded for the calibration prompts, by the
    name of their tensor."""
    def blocks_of(name: str) -> Blocks | None:
        width = model.tensors[name].shape[1]
        # The media's keys and values are computed by the resampler's graph, which has 8 bits; so has the head.
        elsewhere = name.startswith(("vision.", "resampler.", "cross_attention.projection")) or (
            name.startswith("cross_attention.") and name.endswith((".key.weight", ".value.weight"))
        )
        blocks = None if elsewhere else scheme.blocks_of(name).fitting(width)
        return blocks if blocks is not None and blocks.bits == ERROR_AWARE_BITS else None

    torch_model = streamed_model(model.config, model.tensors)
    with progress("calibration prompts", len(calibration.calibrate) + 1) as advance:
        cases = encode_prompts(torch_model, tokenizer, calibration.calibrate, advance).cases
    batch = TextBatch.of(cases)
    matrices = sum(blocks_of(name) is not None for name in model.tensors if _is_matrix(model, name))
    with progress("error-aware rounding", matrices) as advance, torch.no_grad():
        rounding = LayerRounding(torch_model, blocks_of, batch.tokens, advance)
        batch.decode(torch_model, logits_index=torch.zeros(len(batch.rows), 1, dtype=torch.int64))
    return rounding.rounded


def _is_matrix(model: StoredModel, name: str) -> bool:
    return name.endswith(".weight") and len(model.tensors[name].shape) == 2 and "embedding" not in name


def measured_reference(
    model: StoredModel, tokenizer: TextTokenizer, calibration: Calibration, progress: Progress
) -> Reference:
    """What PyTorch answers, with the weights as they were, to the prompts that are measured on."""
    torch_model = streamed_model(model.config, model.tensors)
    with progress("PyTorch's answers", len(calibration.measure) + 2) as advance:
        reference = encode_prompts(torch_model, tokenizer, calibration.measure, advance)
        answer(torch_model, reference.cases)
        advance(1)
    return reference
