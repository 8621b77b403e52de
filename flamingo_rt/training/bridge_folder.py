"""The trained bridge alone: a small folder without the frozen parts, which whoever has those joins to a checkpoint.

    config.json          {"kind": "bridge", "model": the whole model's configuration, "vision": …, "language": digests}
    model.safetensors    resampler.*, cross_attention.*, and the new tokens' rows of the embedding and of the head

The digests tell whether a bridge is joined with the parts that it was trained on: that of an external encoder is of its
large weights, whichever release exported the graph; others are of all weights but the new tokens' rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flamingo_rt.checkpoints import (
    CONFIG,
    StoredModel,
    check_tensors,
    expected_shapes,
    open_checkpoint,
    open_folder,
    require_files,
    write_folder,
)
from flamingo_rt.config import ExternalVisionConfig, FlamingoConfig, VisionConfig
from flamingo_rt.errors import DataError
from flamingo_rt.files import check_output
from flamingo_rt.json_files import read_json
from flamingo_rt.tokenizer_file import parse_tokenizer
from flamingo_rt.training.feature_cache import tensors_digest
from flamingo_rt.training.parts import LanguagePart, VisionPart, open_language_part, open_vision_part
from flamingo_rt.weights.lazy import LazyTensor, in_memory

KIND = "bridge"
TRAINED = ("resampler.", "cross_attention.")
# Tables with a row for each token.
TABLES = ("language.embedding.weight", "language.head.weight", "language.head.bias")
NEW_ROWS = "new_rows."  # before a table's name: the rows of <image> and <|endofchunk|>, in this order


@dataclass(frozen=True)
class Bridge:
    """A bridge in its folder: the configuration of the whole model, digests of the parts, and tensors not read yet."""

    config: FlamingoConfig
    vision: str
    language: str
    tensors: Mapping[str, LazyTensor]


def take_bridge(checkpoint: Path, out: Path, dtype: torch.dtype = torch.float16, overwrite: bool = False) -> int:
    """Write the bridge of a checkpoint, its matrices in ``dtype``; returns the bytes of its tensors.

    Raises `DataError` for a checkpoint that cannot be read, `UsageError` where ``out`` may not be written.
    """
    check_output(out, overwrite, [checkpoint])
    model = open_checkpoint(checkpoint)
    tokenizer = parse_tokenizer(model.tokenizer.encode(), checkpoint, model.config.language.vocab_size)
    new = _new_tokens(tokenizer, model.config)
    tensors = {name: tensor for name, tensor in model.tensors.items() if name.startswith(TRAINED)}
    rows = {NEW_ROWS + name: model.tensors[name].read()[new] for name in TABLES if name in model.tensors}
    stored = StoredModel(model.config, "", {**tensors, **in_memory(rows, checkpoint)}).stored_as(dtype).tensors
    described = {
        "kind": KIND, "model": model.config.to_dict(), "vision": _vision_digest(model.config.vision, model.tensors),
        "language": _language_digest(model.tensors, new),
    }
    write_folder(out, described, None, stored, overwrite)
    return sum(tensor.nbytes for tensor in stored.values())


def open_bridge(path: Path) -> Bridge:
    """Find the tensors of a bridge's folder. Raises `DataError` that names what is missing or of another shape."""
    require_files(path, (CONFIG,), KIND)
    described = read_json(path / CONFIG)
    if not isinstance(described, dict) or described.get("kind") != KIND:
        raise DataError(f"{path} is no bridge: give a folder that flamingo-rt bridge take wrote")
    unknown = sorted(described.keys() - {"kind", "model", "vision", "language"})
    digests = [described.get("vision"), described.get("language")]
    if unknown or not all(isinstance(digest, str) for digest in digests):
        raise DataError(f"{path / CONFIG} lacks the digests of its parts, or has unknown keys {', '.join(unknown)}: "
                        "was it written by a newer version?")
    config = FlamingoConfig.from_dict(described.get("model"))
    shapes = expected_shapes(config)
    wanted = {name: shape for name, shape in shapes.items() if name.startswith(TRAINED)}
    wanted |= {NEW_ROWS + name: (2, *shapes[name][1:]) for name in TABLES if name in shapes}
    file, tensors = open_folder(path)
    check_tensors(file, wanted, tensors)
    return Bridge(config, str(digests[0]), str(digests[1]), tensors)


def join_bridge(path: Path, vision: Path, language: Path, tokenizer: Path | None = None) -> StoredModel:
    """The whole model of a bridge and the two parts that it was trained on.

    Raises `DataError` that says which part is another one.
    """
    bridge = open_bridge(path)
    encoder, decoder = open_vision_part(vision), open_language_part(language, tokenizer)
    new = _new_tokens(decoder.tokenizer, bridge.config)
    _require_same(bridge, encoder, decoder, new, vision, language)
    tensors = {**encoder.tensors, **decoder.tensors, **bridge.tensors}
    for name in TABLES:
        rows = tensors.pop(NEW_ROWS + name, None)
        if rows is not None:
            tensors[name] = _with_rows(tensors[name], rows, new)
    ordered = {name: tensors[name] for name in expected_shapes(bridge.config)}
    return StoredModel(bridge.config, decoder.tokenizer.to_str(pretty=True), ordered)


def _require_same(
    bridge: Bridge, encoder: VisionPart, decoder: LanguagePart, new: list[int], vision: Path, language: Path
) -> None:
    """Raise `DataError` unless the parts are those that the bridge was trained on."""
    config = bridge.config
    if _sizes(encoder.config) != _sizes(config.vision):
        raise DataError(f"{vision} is another encoder than the bridge was trained on: {_sizes(encoder.config)}, not "
                        f"{_sizes(config.vision)}")
    if encoder.preprocessing != config.preprocessing:
        raise DataError(f"{vision} prepares pictures as {encoder.preprocessing}, and the bridge was trained on "
                        f"{config.preprocessing}: import the encoder with that")
    if _vision_digest(encoder.config, encoder.tensors) != bridge.vision:
        raise DataError(f"{vision} has other weights than the encoder that the bridge was trained on: give that one")
    if decoder.config != config.language:
        raise DataError(f"{language} is another language model than the bridge was trained on: {decoder.config}, not "
                        f"{config.language}")
    if _language_digest(decoder.tensors, new) != bridge.language:
        raise DataError(f"{language} has other weights than the language model that the bridge was trained on: give "
                        "that one")


def _new_tokens(tokenizer: Any, config: FlamingoConfig) -> list[int]:
    """Ids of ``<image>`` and ``<|endofchunk|>``."""
    found = [tokenizer.token_to_id(text) for text in (config.tokens.image, config.tokens.end_of_chunk)]
    if None in found:
        raise DataError(f"the tokenizer lacks {config.tokens.image} or {config.tokens.end_of_chunk}: another model's?")
    return found


def _sizes(config: VisionConfig) -> VisionConfig:
    """An encoder's configuration without what another release of an exporter may change."""
    if isinstance(config, ExternalVisionConfig):
        return replace(config, graph_bytes=1, multiply_adds=1, parameters=1)
    return config


def _vision_digest(config: VisionConfig, tensors: Mapping[str, LazyTensor]) -> str:
    if isinstance(config, ExternalVisionConfig):
        return config.digest
    return tensors_digest({name: tensor.to(torch.float32).read() for name, tensor in tensors.items()
                           if name.startswith("vision.")})


def _language_digest(tensors: Mapping[str, LazyTensor], new: list[int]) -> str:
    """A hash of the language model's tensors, one in memory at a time, with the new tokens' rows at 0."""
    parts = {}
    for name, tensor in tensors.items():
        if name.startswith("language."):
            values = tensor.to(torch.float32).read()
            if name in TABLES:
                values[new] = 0
            parts[name] = tensors_digest({name: values})
    return tensors_digest({}, " ".join(f"{name} {parts[name]}" for name in sorted(parts)))


def _with_rows(table: LazyTensor, rows: LazyTensor, new: list[int]) -> LazyTensor:
    """A table with these rows in the places of the new tokens."""
    def read() -> Tensor:
        values = table.read()
        values[new] = rows.to(table.dtype).read()
        return values

    return replace(table, read=read)
