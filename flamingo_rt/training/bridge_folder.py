"""The trained bridge alone: a small folder without the frozen parts, which whoever has those joins to a checkpoint.

    config.json          {"kind": "bridge", "model": the whole model's configuration, and digests of its "vision",
                         "language", "vocabulary", and of the "ids" of a few texts}
    model.safetensors    resampler.*, cross_attention.*, and rows of the embedding and of the head: the new tokens', and
                         the padding token's, which an import makes where a tokenizer has none

The digests tell whether a bridge is joined with the parts that it was trained on: that of an external encoder is of its
large weights, whichever release exported the graph; others are of all weights but those rows. What training changed in
a part itself (``unfreeze``, ``lora``) is not in a bridge. Earlier ones have neither "ids" nor the padding token's row.
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
    EXTERNAL_GRAPH,
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
from flamingo_rt.importing.encoder_facts import graph_digest
from flamingo_rt.json_files import read_json
from flamingo_rt.tokenizer_file import parse_tokenizer
from flamingo_rt.training.feature_cache import tensors_digest
from flamingo_rt.training.parts import LanguagePart, VisionPart, open_language_part, open_vision_part
from flamingo_rt.weights.lazy import LazyTensor, in_memory

TRAINED = ("resampler.", "cross_attention.")
TRAINED_ON = "the bridge was trained on"
# Tables with a row for each token.
TABLES = ("language.embedding.weight", "language.head.weight", "language.head.bias")
DIGESTS = ("vision", "language", "vocabulary")
IDS = "ids"
NEW_ROWS = "new_rows."  # before a table's name: the rows of <image> and <|endofchunk|>, in this order
PAD_ROW = "pad_row."  # the padding token's, a vector: stored in float32, since it may be the frozen part's own
# Tokenizers of the same tokens may still cut texts otherwise.
TEXTS = (
    "A photo of 2 cats, isn't it?", "Question: Where are they?\n\n  Answer: 12345.6, na\u00efve \u4e2d\u6587",
    "ONE-two_three",
)


@dataclass(frozen=True)
class Bridge:
    """A bridge in its folder: the configuration of the whole model, digests of the parts, and tensors not read yet."""

    config: FlamingoConfig
    digests: Mapping[str, str]
    tensors: Mapping[str, LazyTensor]


def take_bridge(
    checkpoint: Path, out: Path, dtype: torch.dtype = torch.float16, overwrite: bool = False, *,
    vision: Path | None = None, language: Path | None = None, tokenizer: Path | None = None,
) -> int:
    """Write the bridge of a checkpoint, its matrices in ``dtype``; returns the bytes of its tensors.

    ``vision`` and ``language`` (with ``tokenizer``), where they are given, are the parts that it was trained on: they
    are compared with what the checkpoint holds. Raises `DataError` where they differ, or for a checkpoint that cannot
    be read, `UsageError` where ``out`` may not be written.
    """
    check_output(out, overwrite, [path for path in (checkpoint, vision, language, tokenizer) if path is not None])
    model = open_checkpoint(checkpoint)
    own = parse_tokenizer(model.tokenizer.encode(), checkpoint / TOKENIZER, model.config.language.vocab_size)
    new, pad = _new_tokens(own, model.config), own.token_to_id(model.config.tokens.pad)
    tensors = {name: tensor for name, tensor in model.tensors.items() if name.startswith(TRAINED)}
    rows = {NEW_ROWS + name: model.tensors[name].read()[new] for name in TABLES if name in model.tensors}
    if pad is not None:
        rows |= {PAD_ROW + name: model.tensors[name].read()[pad].reshape(-1)
                 for name in TABLES if name in model.tensors}
    stored = StoredModel(model.config, "", {**tensors, **in_memory(rows, checkpoint)}).stored_as(dtype).tensors
    digests = {"vision": _vision_digest(model.config.vision, model.tensors), **_language_digests(
        model.config, own, model.tensors)}
    taken = Bridge(model.config, digests, stored)
    changed = (f"give that one; if it is that one, {checkpoint} was trained with unfreeze or lora, and its bridge "
               "cannot be joined")
    if vision is not None:
        _require_same_encoder(taken, open_vision_part(vision), vision, changed)
    if language is not None:
        _require_same_language(taken, open_language_part(language, tokenizer), language, changed)
    described = {"kind": BRIDGE, "model": model.config.to_dict(), **digests}
    write_folder(out, described, None, stored, overwrite)
    return sum(tensor.nbytes for tensor in stored.values())


def open_bridge(path: Path) -> Bridge:
    """Find the tensors of a bridge's folder. Raises `DataError` that names what is missing or of another shape."""
    require_files(path, (CONFIG,), BRIDGE)
    described = read_json(path / CONFIG)
    if not isinstance(described, dict) or described.get("kind") != BRIDGE:
        raise DataError(f"{path} is no bridge: give a folder that flamingo-rt bridge take wrote")
    digests = {name: described.get(name) for name in DIGESTS}
    if IDS in described:
        digests[IDS] = described[IDS]
    unknown = sorted(described.keys() - {"kind", "model", *DIGESTS, IDS})
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
    if any(name.startswith(PAD_ROW) for name in tensors):
        wanted |= {PAD_ROW + name: shapes[name][1:] or (1,) for name in TABLES if name in shapes}
    check_tensors(file, wanted, tensors)
    return Bridge(config, {name: str(digest) for name, digest in digests.items()}, tensors)


def join_bridge(path: Path, vision: Path, language: Path, tokenizer: Path | None = None) -> StoredModel:
    """The whole model of a bridge and the two parts that it was trained on.

    Raises `DataError` that says which part is another one.
    """
    bridge = open_bridge(path)
    encoder, decoder = open_vision_part(vision), open_language_part(language, tokenizer)
    new, pad = _new_tokens(decoder.tokenizer, bridge.config), decoder.tokenizer.token_to_id(bridge.config.tokens.pad)
    _require_same_encoder(bridge, encoder, vision)
    _require_same_language(bridge, decoder, language)
    tensors = {**encoder.tensors, **decoder.tensors, **bridge.tensors}
    for name in TABLES:
        for prefix, places in ((NEW_ROWS, new), (PAD_ROW, [] if pad is None else [pad])):
            rows = tensors.pop(prefix + name, None)
            if rows is not None and places:
                tensors[name] = _with_rows(tensors[name], rows, places)
    config = replace(bridge.config, vision=encoder.config)  # its graph may have other bytes than the one trained on
    ordered = {name: tensors[name] for name in expected_shapes(config)}
    return StoredModel(config, decoder.tokenizer.to_str(pretty=True), ordered)


def _require_same_encoder(bridge: Bridge, encoder: VisionPart, path: Path, remedy: str = "give that one") -> None:
    """Raise `DataError` unless the encoder at ``path`` is that which the bridge was trained on."""
    config = bridge.config
    if _sizes(encoder.config) != _sizes(config.vision):
        differ = _differences(_sizes(encoder.config), _sizes(config.vision))
        raise DataError(f"{path} is another encoder than {TRAINED_ON}: {differ}")
    if encoder.preprocessing != config.preprocessing:
        differ = _differences(encoder.preprocessing, config.preprocessing)
        raise DataError(f"{path} prepares pictures otherwise than {TRAINED_ON}: {differ}; import the encoder with that")
    if _vision_digest(encoder.config, encoder.tensors) != bridge.digests["vision"]:
        raise DataError(f"{path} has other weights than the encoder that {TRAINED_ON}: {remedy}")


def _require_same_language(bridge: Bridge, decoder: LanguagePart, path: Path, remedy: str = "give that one") -> None:
    """Raise `DataError` unless the language model at ``path`` is that which the bridge was trained on."""
    config = bridge.config
    if decoder.config != config.language:
        differ = _differences(decoder.config, config.language)
        raise DataError(f"{path} is another language model than {TRAINED_ON}: {differ}")
    found = _language_digests(config, decoder.tokenizer, decoder.tensors)
    for name, said, then in (
        ("vocabulary", f"other tokens than the tokenizer that {TRAINED_ON}", "give that one"),
        (IDS, f"a tokenizer that cuts texts otherwise than the one that {TRAINED_ON}", "give that one"),
        ("language", f"other weights than the language model that {TRAINED_ON}", remedy),
    ):
        if bridge.digests.get(name, found[name]) != found[name]:
            raise DataError(f"{path} has {said}: {then}")


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


def _vision_digest(config: VisionConfig, tensors: Mapping[str, LazyTensor]) -> str:
    """The digest of an encoder's weights, of an external one as its graph has them, whatever its configuration says."""
    if isinstance(config, ExternalVisionConfig):
        return graph_digest(tensors[EXTERNAL_GRAPH].read().numpy().tobytes())
    return _digest(tensors, "vision.", [])


def _language_digests(
    config: FlamingoConfig, tokenizer: Tokenizer, tensors: Mapping[str, LazyTensor]
) -> dict[str, str]:
    """The digests of a language model's weights, of its tokens, and of the ids that its tokenizer makes of `TEXTS`."""
    # The padding token is made like the new ones where a tokenizer has none, and never trained: its row is the mean of
    # the others, whose last bit differs between machines, with noise of the run's seed.
    made = {number for number in (*_new_tokens(tokenizer, config), tokenizer.token_to_id(config.tokens.pad))
            if number is not None}
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    return {
        "language": _digest(tensors, "language.", sorted(made)),
        "vocabulary": tensors_digest({}, json.dumps(sorted(tokenizer.get_vocab().items()))),
        IDS: tensors_digest({}, json.dumps(ids)),
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
        values[new] = rows.to(table.dtype).read().reshape(len(new), *values.shape[1:])
        return values

    return replace(table, read=read)
