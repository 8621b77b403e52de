"""An OpenFlamingo model from its three sources: ``checkpoint.pt``, CLIP's weights, and the language model's folder.

Released checkpoints hold only the trained parts; the frozen encoder and language model come from their own files. Only
names, shapes and small JSON files are read here; weights are read when they are written or exported.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flamingo_rt.checkpoints import StoredModel, expected_shapes
from flamingo_rt.config import FlamingoConfig, LanguageConfig, ViTActivation
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.importing import clip
from flamingo_rt.importing.families import family_of
from flamingo_rt.importing.frozen_parts import (
    BUFFERS,
    LanguageFolder,
    bind,
    encoder_tensors,
    language_settings,
    names_of,
    open_encoder,
    open_language,
)
from flamingo_rt.importing.openflamingo_checkpoint import (
    TRAINED_ROOTS,
    cross_attention_config,
    cross_attention_tensors,
    resampler_config,
    resampler_tensors,
    trained_part,
)
from flamingo_rt.importing.settings import Settings
from flamingo_rt.importing.sources import Source
from flamingo_rt.presets import OPENFLAMINGO_PROMPTS, PRESETS, preset
from flamingo_rt.weights.lazy import LazyTensor
from flamingo_rt.weights.weight_files import open_weights

RELEASED = "openflamingo"  # prefix of the presets of OpenFlamingo's models
MAX_VISUALS = 64  # OpenFlamingo has no limit; its evaluation goes to 32 shots
# Logit of a token without a row in the head: never chosen, and finite in half precision too.
UNPREDICTABLE = -30000.0


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
    settings = language_settings(files.language)
    family = family_of(settings)
    checkpoint = trained_part(files.checkpoint, open_weights(files.checkpoint), family.layers)
    vision = open_encoder(files.vision)
    trained = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("perceiver.")}
    language = open_language(settings, trained, files.tokenizer)
    rows = _vocabulary_rows(language, family.embedding in checkpoint)
    language_config = language.config(rows)
    embedding = language.table(family.embedding, rows, language_config.width)
    language_config, head, notes = _head(language, language_config, family.head in checkpoint)
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
        language=language_config, preprocessing=clip.vision_preprocessing(vision), tokens=language.tokens,
        prompts=OPENFLAMINGO_PROMPTS, max_visuals=MAX_VISUALS,
    )
    if wanted is not None:
        _check_preset(config, wanted, files)
    config = replace(config, name=files.preset or _known_name(config, settings) or config.name)
    shapes = expected_shapes(config)
    bridge = resampler_tensors(config.resampler) | cross_attention_tensors(config.cross_layers)
    language_tensors = language.tensors(config.language, shapes)
    checkpoint.check_all_taken(TRAINED_ROOTS, names_of(bridge), BUFFERS)
    tensors = {
        **encoder_tensors(vision, vision_config, shapes), **bind(checkpoint, bridge, shapes), **language_tensors,
        "language.embedding.weight": embedding, **head,
    }
    taken = names_of(bridge) | names_of(language.slices(config.language)) | {family.embedding, family.head}
    notes += _unread(checkpoint, taken)
    text = language.tokenizer.to_str(pretty=True)
    return Imported(StoredModel(config, text, {name: tensors[name] for name in shapes}), notes)


def _unread(checkpoint: Source, known: set[str]) -> tuple[str, ...]:
    """A note about tensors of the checkpoint that the model lacks. An encoder in it is CLIP's, unchanged."""
    left_out = [
        name for name in checkpoint.tensors
        if name not in known and not BUFFERS.search(name) and not name.startswith("vision_encoder.")
    ]
    if not left_out:
        return ()
    listed = ", ".join(left_out[:3]) + (", …" if len(left_out) > 3 else "")
    return (f"{checkpoint.path} has {len(left_out)} tensors that are not part of the model: {listed}",)


def _vocabulary_rows(language: LanguageFolder, trained: bool) -> int:
    """Rows of the embedding: the checkpoint's, or else one for each token.

    open_flamingo resizes the embedding to the tokenizer's size, down or up; added rows that were not saved are lost.
    """
    embedding, tokens = language.family.embedding, language.tokenizer.get_vocab_size()
    rows = language.source.rows(embedding)
    if rows < tokens:
        where = "the checkpoint" if trained else "the language model (the checkpoint has none)"
        raise DataError(
            f"{language.source.path}: the tokenizer has {tokens} tokens with OpenFlamingo's, but {embedding} of "
            f"{where} has {rows} rows: another tokenizer, or a checkpoint of another language model?"
        )
    return rows if trained else tokens


def _head(
    language: LanguageFolder, config: LanguageConfig, trained: bool
) -> tuple[LanguageConfig, dict[str, LazyTensor], tuple[str, ...]]:
    """The configuration (with a bias where the head lacks rows), the tensors of a head that is not tied, and notes."""
    if config.tied_head:
        return config, {}, ()
    head, rows, width = language.family.head, config.vocab_size, config.width
    found = language.source.rows(head)
    names = f"{language.tokens.image} and {language.tokens.end_of_chunk}"
    if found >= rows:
        note = f"{head} is the language model's, never trained to predict {names}: answers may not end there"
        return config, {"language.head.weight": language.table(head, rows, width)}, () if trained else (note,)
    short = language.table(head, found, width)

    def weight() -> Tensor:
        table = torch.zeros(rows, width, dtype=short.dtype)
        table[:found] = short.read()
        return table

    def bias() -> Tensor:
        return torch.where(torch.arange(rows) < found, 0.0, UNPREDICTABLE)

    note = (
        f"{head} has {found} rows for {rows} tokens and is not in the checkpoint: {names} "
        "cannot be predicted, so answers end at end of text, at a stop text or at the limit"
    )
    tensors = {
        "language.head.weight": replace(short, shape=(rows, width), read=weight),
        "language.head.bias": LazyTensor((rows,), torch.float32, short.file, bias),
    }
    return replace(config, head_bias=True), tensors, (note,)


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
