"""The trained bridge alone: a small folder without the frozen parts, which whoever has those joins to a checkpoint.

    config.json          {"kind": "bridge", "model": the whole model's configuration, and digests of its "vision",
                         "language" and "vocabulary"}
    model.safetensors    resampler.*, cross_attention.*, and the new tokens' rows of the embedding and of the head

The digests tell whether a bridge is joined with the parts that it was trained on: that of an external encoder is of its
large weights, whichever release exported the graph; others are of all weights but the rows of tokens that this project
adds. What training changed in a part itself (``unfreeze``, ``lora``) is not in a bridge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from flamingo_rt.checkpoints import (
    BRIDGE,
    CONFIG,
    TOKENIZER,
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

TRAINED = ("resampler.", "cross_attention.")
# Tables with a row for each token.
TABLES = ("language.embedding.weight", "language.head.weight", "language.head.bias")
DIGESTS = ("vision", "language", "vocabulary")
NEW_ROWS = "new_rows."  # before a table's name: the rows of <image> and <|endofchunk|>, in this order


@dataclass(frozen=True)
class Bridge:
    """A bridge in its folder: the configuration of the whole model, digests of the parts, and tensors not read yet."""

    config: FlamingoConfig
    digests: Mapping[str, str]
    tensors: Mapping[str, LazyTensor]


def take_bridge(checkpoint: Path, out: Path, dtype: torch.dtype = torch.float16, overwrite: bool = False) -> int:
    """Write the bridge of a checkpoint, its matrices in ``dtype``; returns the bytes of its tensors.

    Raises `DataError` for a checkpoint that cannot be read, `UsageError` where ``out`` may not be written.
    """
    check_output(out, overwrite, [checkpoint])
    model = open_checkpoint(checkpoint)
    tokenizer = parse_tokenizer(model.tokenizer.encode(), checkpoint / TOKENIZER, model.config.language.vocab_size)
    new = _new_tokens(tokenizer, model.config)
    tensors = {name: tensor for name, tensor in model.tensors.items() if name.startswith(TRAINED)}
    rows = {NEW_ROWS + name: model.tensors[name].read()[new] for name in TABLES if name in model.tensors}
    stored = StoredModel(model.config, "", {**tensors, **in_memory(rows, checkpoint)}).stored_as(dtype).tensors
    described = {"kind": BRIDGE, "model": model.config.to_dict(), **_digests(model.config, tokenizer, model.tensors)}
    write_folder(out, described, None, stored, overwrite)
    return sum(tensor.nbytes for tensor in stored.values())


def open_bridge(path: Path) -> Bridge:
    """Find the tensors of a bridge's folder. Raises `DataError` that names what is missing or of another shape."""
    require_files(path, (CONFIG,), BRIDGE)
    described = read_json(path / CONFIG)
    if not isinstance(described, dict) or described.get("kind") != BRIDGE:
        raise DataError(f"{path} is no bridge: give a folder that flamingo-rt bridge take wrote")
    digests = {name: described.get(name) for name in DIGESTS}
    unknown = sorted(described.keys() - {"kind", "model", *DIGESTS})
    if unknown or not all(isinstance(digest, str) for digest in digests.values()):
        reason = f"has unknown keys {', '.join(unknown)}" if unknown else f"lacks a text for {', '.join(DIGESTS)}"
        raise DataError(f"{path / CONFIG} {reason}: damaged, or written by a newer version")
    try:
        config = FlamingoConfig.from_dict(described.get("model"))
    except DataError as error:
        raise DataError(f"{path / CONFIG}: {error}") from None
    shapes = expected_shapes(config)
    wanted = {name: shape for name, shape in shapes.items() if name.startswith(TRAINED)}
    wanted |= {NEW_ROWS + name: (2, *shapes[name][1:]) for name in TABLES if name in shapes}
    file, tensors = open_folder(path)
    check_tensors(file, wanted, tensors)
    return Bridge(config, {name: str(digest) for name, digest in digests.items()}, tensors)


def join_bridge(path: Path, vision: Path, language: Path, tokenizer: Path | None = None) -> StoredModel:
    """The whole model of a bridge and the two parts that it was trained on.

    Raises `DataError` that says which part is another one.
    """
    bridge = open_bridge(path)
    encoder, decoder = open_vision_part(vision), open_language_part(language, tokenizer)
    new = _new_tokens(decoder.tokenizer, bridge.config)
    _require_same(bridge, encoder, decoder, vision, language)
    tensors = {**encoder.tensors, **decoder.tensors, **bridge.tensors}
    for name in TABLES:
        rows = tensors.pop(NEW_ROWS + name, None)
        if rows is not None:
            tensors[name] = _with_rows(tensors[name], rows, new)
    config = replace(bridge.config, vision=encoder.config)  # its graph may have other bytes than the one trained on
    ordered = {name: tensors[name] for name in expected_shapes(config)}
    return StoredModel(config, decoder.tokenizer.to_str(pretty=True), ordered)


def _require_same(bridge: Bridge, encoder: VisionPart, decoder: LanguagePart, vision: Path, language: Path) -> None:
    """Raise `DataError` unless the parts are those that the bridge was trained on."""
    config = bridge.config
    trained = "the bridge was trained on"
    if _sizes(encoder.config) != _sizes(config.vision):
        differ = _differences(_sizes(encoder.config), _sizes(config.vision))
        raise DataError(f"{vision} is another encoder than {trained}: {differ}")
    if encoder.preprocessing != config.preprocessing:
        differ = _differences(encoder.preprocessing, config.preprocessing)
        raise DataError(f"{vision} prepares pictures otherwise than {trained}: {differ}; import the encoder with that")
    if decoder.config != config.language:
        differ = _differences(decoder.config, config.language)
        raise DataError(f"{language} is another language model than {trained}: {differ}")
    found = _digests(config, decoder.tokenizer, {**encoder.tensors, **decoder.tensors}, encoder.config)
    for name, said in (
        ("vocabulary", f"{language} has other tokens than the tokenizer that {trained}"),
        ("vision", f"{vision} has other weights than the encoder that {trained}"),
        ("language", f"{language} has other weights than the language model that {trained}"),
    ):
        if found[name] != bridge.digests[name]:
            raise DataError(f"{said}: give that one")


def _differences(found: Any, wanted: Any) -> str:
    """The fields in which two dataclasses differ, as "width 8, not 16"."""
    one, other = asdict(found), asdict(wanted)
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return ", ".join(f"{key} {one.get(key)}, not {other.get(key)}" for key in keys[:5])


def _new_tokens(tokenizer: Tokenizer, config: FlamingoConfig) -> list[int]:
    """Ids of ``<image>`` and ``<|endofchunk|>``, whose rows are trained."""
    texts = config.tokens.image, config.tokens.end_of_chunk
    found = [number for number in map(tokenizer.token_to_id, texts) if number is not None]
    if len(found) != len(texts):
        raise DataError(f"the tokenizer has no token {texts[0]} or {texts[1]}, which the model's config.json names: "
                        "another model's tokenizer?")
    return found


def _sizes(config: VisionConfig) -> VisionConfig:
    """An encoder's configuration without what another release of an exporter may change, and its digest, which is
    compared with the weights."""
    if isinstance(config, ExternalVisionConfig):
        return replace(config, graph_bytes=1, multiply_adds=1, parameters=1, digest="")
    return config


def _digests(
    config: FlamingoConfig, tokenizer: Tokenizer, tensors: Mapping[str, LazyTensor], vision: VisionConfig | None = None
) -> dict[str, str]:
    """The digest of each part of a model; ``vision``: of an encoder that is not the configuration's."""
    encoder = vision or config.vision
    # The padding token is made like the new ones where a tokenizer has none, and never trained: its row is the mean of
    # the others, whose last bit differs between machines.
    made = {number for number in (*_new_tokens(tokenizer, config), tokenizer.token_to_id(config.tokens.pad))
            if number is not None}
    vocabulary = sorted(tokenizer.get_vocab().items())
    return {
        "vision": encoder.digest if isinstance(encoder, ExternalVisionConfig) else _digest(tensors, "vision.", []),
        "language": _digest(tensors, "language.", sorted(made)),
        "vocabulary": tensors_digest({}, json.dumps(vocabulary)),
    }


def _digest(tensors: Mapping[str, LazyTensor], prefix: str, made: list[int]) -> str:
    """A hash of tensors in float32, one in memory at a time, with the tables' rows ``made`` left out."""
    parts = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            values = tensor.to(torch.float32).read()
            if name in TABLES:
                values = values.clone()  # it may be the tensor that others read
                values[made] = 0
            parts[name] = tensors_digest({name: values})
    return tensors_digest({}, " ".join(f"{name} {parts[name]}" for name in sorted(parts)))


def _with_rows(table: LazyTensor, rows: LazyTensor, new: list[int]) -> LazyTensor:
    """A table with these rows in the places of the new tokens."""
    def read() -> Tensor:
        values = table.read().clone()
        values[new] = rows.to(table.dtype).read()
        return values

    return replace(table, read=read)
