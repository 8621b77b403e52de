"""An OpenFlamingo model from its three sources: ``checkpoint.pt``, CLIP's weights, and the language model's folder.

Released checkpoints hold only the trained parts; the frozen encoder and language model come from their own files. Only
names, shapes and small JSON files are read here; weights are read when they are written or exported.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flamingo_rt.checkpoints import StoredModel, expected_shapes
from flamingo_rt.config import FlamingoConfig, LanguageConfig, ViTActivation
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.importing import clip
from flamingo_rt.importing.families import Family, family_of
from flamingo_rt.importing.openflamingo_checkpoint import (
    TRAINED_ROOTS,
    cross_attention_config,
    cross_attention_tensors,
    resampler_config,
    resampler_tensors,
    trained_part,
)
from flamingo_rt.importing.openflamingo_tokenizer import read_tokenizer
from flamingo_rt.importing.settings import Settings
from flamingo_rt.importing.sources import Source, TensorSlice
from flamingo_rt.json_files import read_json
from flamingo_rt.presets import OPENFLAMINGO_PROMPTS, PRESETS, preset
from flamingo_rt.weights.lazy import LazyTensor
from flamingo_rt.weights.weight_files import open_weights

RELEASED = "openflamingo"  # prefix of the presets of OpenFlamingo's models
MAX_VISUALS = 64  # OpenFlamingo has no limit; its evaluation goes to 32 shots
# Logit of a token without a row in the head: never chosen, and finite in half precision too.
UNPREDICTABLE = -30000.0
# Buffers, not weights, that older releases of the libraries saved.
_BUFFERS = re.compile(r"(rotary_emb\.\w+|attention\.(masked_)?bias|attn\.(masked_)?bias|attn_bias|position_ids)$")


@dataclass(frozen=True)
class OpenFlamingoFiles:
    """Paths of the sources, and what they do not say themselves.

    ``tokenizer``: a folder or a tokenizer.json, by default the language model's folder. ``activation`` of the vision
    encoder, see `flamingo_rt.importing.clip.vision_config`. ``post_norm``: the encoder's final norm acts on the patch
    tokens. The released checkpoints were trained on tokens before that norm, as open_clip gave them then; models
    trained with newer releases of open_clip need it. ``preset``: the name of the model that the shapes must match.
    """

    checkpoint: Path
    vision: Path
    language: Path
    tokenizer: Path | None = None
    activation: ViTActivation | None = None
    post_norm: bool = False
    preset: str | None = None


@dataclass(frozen=True)
class Imported:
    """A model to write or export; ``notes`` are facts for its user."""

    model: StoredModel
    notes: tuple[str, ...]


def open_openflamingo(files: OpenFlamingoFiles) -> Imported:
    """Find every tensor of the model and check its shape, without reading weights.

    Raises `DataError` that names the file, the tensor and what was expected, `UsageError` for an unknown preset.
    """
    wanted = preset(files.preset) if files.preset else None
    if wanted is not None and not wanted.name.startswith(RELEASED):
        known = ", ".join(name for name in PRESETS if name.startswith(RELEASED))
        raise UsageError(f"the preset {files.preset} is not an OpenFlamingo model; known: {known}")
    if not files.language.is_dir():
        raise DataError(f"{files.language} is not a folder: --language takes the one with config.json and the weights")
    if not (files.language / "config.json").is_file():
        raise DataError(f"{files.language} has no config.json: --language takes the folder of the language model")
    settings = Settings(files.language / "config.json", read_json(files.language / "config.json"))
    family = family_of(settings)
    checkpoint = trained_part(files.checkpoint, open_weights(files.checkpoint), family.layers)
    vision = Source("the vision encoder", files.vision, open_weights(files.vision))
    language = _language_source(files.language, family, checkpoint)
    tokenizer, tokens = read_tokenizer(files.tokenizer or files.language, *_end_of_text(settings))
    rows = _vocabulary_rows(language, family, family.embedding in checkpoint, tokenizer.get_vocab_size())
    language_config = family.configure(settings, rows)
    embedding = {"embedding.weight": _rows(language, family.embedding, rows, language_config.width)}
    language_config, head, notes = _head(
        language, family, language_config, (tokens.image, tokens.end_of_chunk), family.head in checkpoint
    )
    vision_config = clip.vision_config(vision, files.activation, files.post_norm)
    resampler = resampler_config(checkpoint)
    if vision_config.width != resampler.width:
        raise DataError(
            f"{files.vision}: the encoder's width is {vision_config.width}, the resampler in {files.checkpoint} needs "
            f"{resampler.width}: another CLIP model?"
        )
    config = FlamingoConfig(
        name=f"openflamingo-{settings.get('model_type')}", vision=vision_config, resampler=resampler,
        cross_attention=cross_attention_config(checkpoint, language_config.layers),
        language=language_config, preprocessing=clip.vision_preprocessing(vision), tokens=tokens,
        prompts=OPENFLAMINGO_PROMPTS, max_visuals=MAX_VISUALS,
    )
    if wanted is not None:
        _check_preset(config, wanted, files)
    config = replace(config, name=files.preset or _known_name(config, settings) or config.name)
    shapes = expected_shapes(config)
    slices = family.tensors(language, config.language)
    trained = resampler_tensors(config.resampler) | cross_attention_tensors(config.cross_layers)
    root = family.layers.rpartition(".")[0] + "."
    language.check_all_taken((root,), {family.embedding, *_names(slices)}, _BUFFERS)
    checkpoint.check_all_taken(TRAINED_ROOTS, _names(trained), _BUFFERS)
    tensors = {
        **_bind(vision, clip.vision_tensors(vision, vision_config), shapes),
        **_bind(checkpoint, trained, shapes),
        **_bind(language, _prefixed(slices), shapes),
        **_prefixed({**embedding, **head}),
    }
    notes += _unread(checkpoint, _names(trained) | _names(slices) | {family.embedding, family.head})
    return Imported(StoredModel(config, tokenizer.to_str(pretty=True), {name: tensors[name] for name in shapes}), notes)


def _unread(checkpoint: Source, known: set[str]) -> tuple[str, ...]:
    """A note about tensors of the checkpoint that the model lacks. An encoder in it is CLIP's, unchanged."""
    left_out = [
        name for name in checkpoint.tensors
        if name not in known and not _BUFFERS.search(name) and not name.startswith("vision_encoder.")
    ]
    if not left_out:
        return ()
    listed = ", ".join(left_out[:3]) + (", …" if len(left_out) > 3 else "")
    return (f"{checkpoint.path} has {len(left_out)} tensors that are not part of the model: {listed}",)


def _language_source(folder: Path, family: Family, checkpoint: Source) -> Source:
    """The language model's own tensors, replaced by the checkpoint's where it has them."""
    tensors = open_weights(folder)
    outer = family.embedding.split(".")[0] + "."  # missing where only the decoder was saved
    if family.embedding not in tensors and family.embedding.removeprefix(outer) in tensors:
        tensors = {outer + name: tensor for name, tensor in tensors.items()}
    trained = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("perceiver.")}
    return Source(f"the language model ({family.name})", folder, {**tensors, **trained})


def _vocabulary_rows(language: Source, family: Family, trained: bool, tokens: int) -> int:
    """Rows of the embedding: the checkpoint's, or else one for each token.

    open_flamingo resizes the embedding to the tokenizer's size, down or up; added rows that were not saved are lost.
    """
    rows = language.rows(family.embedding)
    if rows < tokens:
        where = "the checkpoint" if trained else "the language model (the checkpoint has none)"
        raise DataError(
            f"{language.path}: the tokenizer has {tokens} tokens with OpenFlamingo's, but {family.embedding} of "
            f"{where} has {rows} rows: another tokenizer, or a checkpoint of another language model?"
        )
    return rows if trained else tokens


def _rows(source: Source, name: str, rows: int, width: int) -> LazyTensor:
    """The first rows of a table [rows or more, width]."""
    tensor = source.floating(name)
    if len(tensor.shape) != 2 or tensor.shape[0] < rows or tensor.shape[1] != width:
        raise DataError(
            f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, {source.what} needs [{rows}, {width}]"
        )
    return replace(tensor, shape=(rows, width), read=lambda: tensor.read()[:rows].contiguous())


def _head(
    language: Source, family: Family, config: LanguageConfig, new_tokens: tuple[str, str], trained: bool
) -> tuple[LanguageConfig, dict[str, LazyTensor], tuple[str, ...]]:
    """The configuration (with a bias where the head lacks rows), the tensors of a head that is not tied, and notes."""
    if config.tied_head:
        return config, {}, ()
    found, rows, width = language.rows(family.head), config.vocab_size, config.width
    names = " and ".join(new_tokens)
    if found >= rows:
        note = f"{family.head} is the language model's, never trained to predict {names}: answers may not end there"
        return config, {"head.weight": _rows(language, family.head, rows, width)}, () if trained else (note,)
    short = _rows(language, family.head, found, width)

    def weight() -> Tensor:
        table = torch.zeros(rows, width, dtype=short.dtype)
        table[:found] = short.read()
        return table

    def bias() -> Tensor:
        return torch.where(torch.arange(rows) < found, 0.0, UNPREDICTABLE)

    note = (
        f"{family.head} has {found} rows for {rows} tokens and is not in the checkpoint: {names} "
        "cannot be predicted, so answers end at end of text, at a stop text or at the limit"
    )
    tensors = {
        "head.weight": replace(short, shape=(rows, width), read=weight),
        "head.bias": LazyTensor((rows,), torch.float32, short.file, bias),
    }
    return replace(config, head_bias=True), tensors, (note,)


def _names(slices: Mapping[str, TensorSlice]) -> set[str]:
    return {part.name for part in slices.values()}


def _prefixed(entries: Mapping) -> dict:
    return {f"language.{name}": entry for name, entry in entries.items()}


def _bind(source: Source, slices: dict[str, TensorSlice], shapes: dict[str, tuple[int, ...]]) -> dict[str, LazyTensor]:
    return {name: source.tensor_of(part, shapes[name]) for name, part in slices.items()}


def _end_of_text(settings: Settings) -> tuple[int | None, tuple[int, ...]]:
    """The id of the token that ends a text; and all ids where there are several, in a list or in the
    generation_config.json beside ``settings``."""
    ids = _token_ids(settings, settings.get("eos_token_id"))
    several = ids if len(ids) > 1 else ()
    generation = settings.path.parent / "generation_config.json"
    if generation.is_file():
        stated = Settings(generation, read_json(generation))
        several += _token_ids(stated, stated.get("eos_token_id"))
    return (ids or several or (None,))[0], tuple(dict.fromkeys(several))


def _token_ids(settings: Settings, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        number = _token_id(value)
        return () if number is None else (number,)
    ids = tuple(number for number in map(_token_id, value) if number is not None)
    if not ids or len(ids) != len(value):
        raise DataError(f"{settings.path}: eos_token_id is {str(value)[:80]}, token ids were expected")
    return tuple(dict.fromkeys(ids))


def _token_id(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _check_preset(config: FlamingoConfig, wanted: FlamingoConfig, files: OpenFlamingoFiles) -> None:
    """Raise `DataError` that names the first size in which the files differ from the preset."""
    sources = {"vision": files.vision, "language": files.language}
    for part, found, expected in _differences(config, wanted):
        file = sources.get(part.split(".")[0], files.checkpoint)
        raise DataError(f"{file}: {part} is {found!r}, {files.preset} has {expected!r}: another model's file?")


def _differences(config: FlamingoConfig, other: FlamingoConfig) -> list[tuple[str, object, object]]:
    """Sizes in which two models differ as (name, first, second); the number of tokens may differ."""
    found = []
    for part in ("vision", "resampler", "cross_attention", "language"):
        ours, theirs = dataclasses.asdict(getattr(config, part)), dataclasses.asdict(getattr(other, part))
        for key in sorted(set(ours) | set(theirs)):
            if ours.get(key) != theirs.get(key) and key not in ("vocab_size", "head_bias", "post_norm"):
                found.append((f"{part}.{key}", ours.get(key), theirs.get(key)))
    return found


def _known_name(config: FlamingoConfig, settings: Settings) -> str | None:
    """The released model with these shapes; the instruction-tuned ones differ only in the language model's name."""
    names = [name for name in PRESETS if name.startswith(RELEASED) and not _differences(config, preset(name))]
    origin = f"{settings.get('_name_or_path', '')} {settings.path.parent.name}".lower()
    tuned = any(word in origin for word in ("dolly", "instruct"))
    chosen = [name for name in names if name.endswith("langinstruct") == tuned]
    return next(iter(chosen or names), None)
