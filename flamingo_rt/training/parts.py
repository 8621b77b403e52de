"""The two frozen parts that stage 3 joins (§3): from what ``--vision`` and ``--language`` name to one model's
configuration, tokenizer, and tensors that are not read yet.

Each part is a folder that stage 1 or 2 or ``flamingo-rt import encoder`` wrote, the same part of a whole Flamingo
checkpoint, or another project's files as ``flamingo-rt import`` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from flamingo_rt.checkpoints import TOKENIZER, open_checkpoint, part_shapes, refuse_bridge
from flamingo_rt.config import (
    FlamingoConfig,
    LanguageConfig,
    PreprocessingConfig,
    TokensConfig,
    VisionConfig,
)
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.importing import clip
from flamingo_rt.importing.frozen_parts import encoder_tensors, language_settings, open_encoder, open_language
from flamingo_rt.importing.gguf import open_gguf_language
from flamingo_rt.importing.openflamingo import UNPREDICTABLE
from flamingo_rt.importing.openflamingo_tokenizer import load_tokenizer
from flamingo_rt.presets import preset
from flamingo_rt.tokenizer_file import parse_tokenizer
from flamingo_rt.training.options import FlamingoOptions
from flamingo_rt.training.towers import folder_kind, read_tower
from flamingo_rt.weights.gguf_files import is_gguf
from flamingo_rt.weights.lazy import LazyTensor, in_memory

NOISE = 0.01  # of a new token's row, in standard deviations of the rows there are


@dataclass(frozen=True)
class VisionPart:
    """A vision encoder; ``tensors`` are all ``vision.*`` of `Flamingo`."""

    config: VisionConfig
    preprocessing: PreprocessingConfig
    tensors: Mapping[str, LazyTensor]


@dataclass(frozen=True)
class LanguagePart:
    """A language model whose tokenizer has ``<image>`` and ``<|endofchunk|>``; ``tensors`` are all ``language.*``."""

    config: LanguageConfig
    tokens: TokensConfig
    tokenizer: Tokenizer
    tensors: Mapping[str, LazyTensor]


@dataclass(frozen=True)
class JoinedParts:
    """A Flamingo model whose resampler and gated cross-attention are still to be made.

    ``tensors`` are those of ``vision.*`` and ``language.*`` that are given, in the order of the state dict.
    ``new_tokens`` are the ids of ``<image>`` and ``<|endofchunk|>``, whose rows are trained; none where the whole
    language model is new.
    """

    config: FlamingoConfig
    tokenizer_json: str
    tensors: Mapping[str, LazyTensor]
    new_tokens: tuple[int, ...]


def join_parts(
    options: FlamingoOptions, learn_tokenizer: Callable[[FlamingoConfig], Tokenizer] | None = None
) -> JoinedParts:
    """Find the parts that ``options.vision`` and ``options.language`` name, without reading weights.

    The preset gives the sizes of what is new, with the widths that the parts need: a projection before the resampler
    where the preset has none and the encoder is of another width, and latents projected to the language model's width
    where the preset projects them. A part that is not named has the preset's sizes and no tensors; a language model
    that is not named takes the tokenizer of ``learn_tokenizer``. Raises `UsageError` without one, `DataError` that
    names file and tensor or token when a part cannot be used.
    """
    sizes = preset(options.preset)
    vision = VisionPart(sizes.vision, sizes.preprocessing, {})
    if options.vision is not None:
        vision = open_vision_part(Path(options.vision))
    if options.language is not None:
        tokenizer = None if options.tokenizer is None else Path(options.tokenizer)
        language = open_language_part(Path(options.language), tokenizer, options.run.seed)
    elif learn_tokenizer is not None:
        language = LanguagePart(sizes.language, sizes.tokens, learn_tokenizer(sizes), {})
    else:
        raise UsageError("no language model is given: stage 3 stands on one, name it with language")
    media_width = sizes.cross_attention.media_width and language.config.width
    projected = sizes.resampler.input_projection or sizes.resampler.width != vision.config.width
    try:
        config = FlamingoConfig(
            name="flamingo", vision=vision.config, resampler=replace(sizes.resampler, input_projection=projected),
            cross_attention=replace(sizes.cross_attention, media_width=media_width), language=language.config,
            preprocessing=vision.preprocessing, tokens=language.tokens, prompts=sizes.prompts,
            max_visuals=sizes.max_visuals,
        )
        config = sizes if replace(config, name=sizes.name) == sizes else config
    except DataError as error:
        raise DataError(
            f"the preset {options.preset} does not fit {options.vision} and {options.language}: {error}"
        ) from None
    new_tokens: tuple[int, ...] = ()
    if options.language is not None:
        names = (language.tokens.image, language.tokens.end_of_chunk)
        new_tokens = tuple(_token_id(language.tokenizer, text, Path(options.language)) for text in names)
    return JoinedParts(
        config, language.tokenizer.to_str(pretty=True), {**vision.tensors, **language.tensors}, new_tokens
    )


def open_vision_part(path: Path) -> VisionPart:
    """The vision encoder of a tower, of a whole checkpoint, or of CLIP's files. Raises `DataError`."""
    kind = folder_kind(path)
    if kind == "flamingo":
        whole = open_checkpoint(path)
        return VisionPart(whole.config.vision, whole.config.preprocessing, _below("vision.", whole.tensors))
    if kind is not None:
        tower = read_tower(path, "vision")
        return VisionPart(tower.vision, tower.preprocessing, _below("vision.", tower.tensors))
    refuse_bridge(path)
    encoder = open_encoder(path)
    config = clip.vision_config(encoder)
    tensors = encoder_tensors(encoder, config, part_shapes(config))
    return VisionPart(config, clip.vision_preprocessing(encoder), _ordered(tensors, config))


def open_language_part(path: Path, tokenizer: Path | None = None, seed: int = 0) -> LanguagePart:
    """The language model of a tower, of a whole checkpoint, or of another project's folder or GGUF file, with the new
    tokens.

    ``tokenizer``: a folder or a tokenizer.json, where another project's folder has none. ``seed`` is of the new rows'
    noise. Raises `DataError` for a tokenizer that does not fit the model, `UsageError` for a ``tokenizer`` beside a
    model that has its own.
    """
    kind = folder_kind(path)
    if kind is None:
        refuse_bridge(path)
        return _from_folder(path, tokenizer, seed)
    if tokenizer is not None:
        raise UsageError(f"{path} has its own tokenizer, on which it was trained: leave tokenizer {tokenizer} out")
    if kind == "flamingo":
        whole = open_checkpoint(path)
        config, tokens = whole.config.language, whole.config.tokens
        own = parse_tokenizer(whole.tokenizer.encode(), path / TOKENIZER, config.vocab_size)
        new = [_token_id(own, text, path) for text in (tokens.image, tokens.end_of_chunk)]
        return LanguagePart(config, tokens, own, with_predictable(_below("language.", whole.tensors), new, seed))
    return _from_tower(path, seed)


def _from_tower(path: Path, seed: int) -> LanguagePart:
    """A language tower. No text of stage 2 holds the new tokens, so their rows are made anew where it has them."""
    tower = read_tower(path, "language")
    known, default = tower.language, TokensConfig()
    tokenizer = parse_tokenizer((tower.tokenizer or "").encode(), path / TOKENIZER, known.vocab_size)
    tokens = replace(tower.tokens, image=tower.tokens.image or default.image,
                     end_of_chunk=tower.tokens.end_of_chunk or default.end_of_chunk)
    new = (tokens.image, tokens.end_of_chunk)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in new])
    for text in (tokens.bos, tokens.eos, tokens.pad, *tokens.stop):
        if text:
            _token_id(tokenizer, text, path)
    fresh = [_token_id(tokenizer, text, path) for text in new]
    config = replace(known, vocab_size=max(known.vocab_size, 1 + max(fresh)))
    tables = {f"language.{name}" for name in ("embedding.weight", "head.weight", "head.bias")}
    tensors = {
        name: with_new_rows(tensor, config.vocab_size, fresh, seed) if name in tables else tensor
        for name, tensor in tower.tensors.items()
    }
    return LanguagePart(config, tokens, tokenizer, tensors)


def _from_folder(path: Path, tokenizer: Path | None, seed: int) -> LanguagePart:
    """A folder of MPT, GPT-NeoX, LLaMA or OPT, or a LLaMA's GGUF file. Like open_flamingo, the table gets one row for
    each token: rows beyond the tokenizer's, which fill a table up to a round number, are left out."""
    if is_gguf(path):
        folder = open_gguf_language(path, tokenizer)
    else:
        folder = open_language(language_settings(path), tokenizer=tokenizer)
    known = folder.known
    vocabulary = folder.tokenizer.get_vocab()
    fresh = sorted(number for text, number in vocabulary.items() if text not in known)
    if set(fresh) & set(known.values()):
        raise DataError(f"{tokenizer or path}: the tokenizer's ids have gaps, where new tokens would be old ones")
    rows = 1 + max(vocabulary.values())
    config = folder.config(rows)

    def table(name: str) -> LazyTensor:
        found, used = folder.source.rows(name), 1 + max(known.values())
        if found < used:
            raise DataError(
                f"{path}: the tokenizer in {tokenizer or path} has {used} tokens, tensor {name} has {found} rows: "
                "another model's tokenizer?"
            )
        return with_new_rows(folder.table(name, found, config.width), rows, fresh, seed)

    tensors = folder.tensors(config, part_shapes(config))
    tensors["language.embedding.weight"] = table(folder.family.embedding)
    if not config.tied_head:
        tensors["language.head.weight"] = table(folder.family.head)
    return LanguagePart(config, folder.tokens, folder.tokenizer, _ordered(tensors, config))


def with_new_rows(table: LazyTensor, rows: int, new: Collection[int], seed: int) -> LazyTensor:
    """A table [R, …], cut or extended to [rows, …] when it is read, with the rows ``new``, and those beyond R, made.

    A new row is the mean of the others, with noise of a hundredth of their deviation so that new tokens differ. At the
    mean a token that was never seen gets about the mean logit: it takes next to nothing from the others, while a row
    at random could win (J. Hewitt, Initializing new word embeddings for pretrained language models, 2021). The
    transformers library does the same since 4.46; open_flamingo, with earlier releases, drew rows at random.
    """
    def read() -> Tensor:
        stored = table.read()[:rows]
        made = sorted({*new, *range(len(stored), rows)})
        old = torch.ones(len(stored), dtype=torch.bool)
        old[[number for number in made if number < len(stored)]] = False
        deviation, mean = torch.std_mean(stored[old].float(), dim=0, correction=0)
        noise = torch.randn(len(made), *stored.shape[1:], generator=torch.Generator().manual_seed(seed))
        result = torch.empty((rows, *stored.shape[1:]), dtype=stored.dtype)
        result[: len(stored)] = stored
        result[made] = (mean + NOISE * deviation * noise).to(stored.dtype)
        return result

    return replace(table, shape=(rows, *table.shape[1:]), read=read)


def with_predictable(tensors: Mapping[str, LazyTensor], tokens: Collection[int], seed: int) -> dict[str, LazyTensor]:
    """``tensors``, with rows of a head ``language.head`` for those of ``tokens`` that an import shut out: it had no
    rows for them, and gave them `UNPREDICTABLE` as their bias, which as a target would be a loss of its size. Only the
    bias is read. Raises `DataError` when it cannot be."""
    weight, bias = (tensors.get(f"language.head.{name}") for name in ("weight", "bias"))
    if weight is None or bias is None:
        return dict(tensors)
    values = bias.read().float()
    shut = values <= UNPREDICTABLE / 2
    opened = [token for token in tokens if shut[token]]
    if not opened or shut.all():
        return dict(tensors)
    values[opened] = values[~shut].mean()
    made = with_new_rows(weight, weight.shape[0], shut.nonzero().flatten().tolist(), seed)
    open_bias = in_memory({"language.head.bias": values.to(bias.dtype)}, bias.file)
    return {**tensors, "language.head.weight": made, **open_bias}


def given_tokenizer(path: Path, config: FlamingoConfig) -> Tokenizer:
    """The tokenizer in a folder or file, for a new language model of this configuration. Raises `DataError` where it
    lacks a special token of the configuration or has more tokens than the model."""
    tokenizer, tokens = load_tokenizer(path), config.tokens
    for text in (tokens.bos, tokens.eos, tokens.pad, tokens.image, tokens.end_of_chunk):
        if text and tokenizer.token_to_id(text) is None:
            raise DataError(f"{path}: the tokenizer has no token {text!r}, which the preset names: add it, or leave "
                            "tokenizer out, and one is learnt from the texts")
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.language.vocab_size:
        raise DataError(f"{path}: the tokenizer has the token id {largest}, and the preset's language model "
                        f"{config.language.vocab_size} tokens: take a smaller tokenizer or another preset")
    return tokenizer


def _token_id(tokenizer: Tokenizer, text: str, path: Path) -> int:
    number = tokenizer.token_to_id(text) if text else None
    if number is None:
        raise DataError(f"{path}: the tokenizer has no token {text!r}, which the model's config.json names")
    return number


def _below(prefix: str, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _ordered(
    tensors: Mapping[str, LazyTensor], config: VisionConfig | LanguageConfig
) -> dict[str, LazyTensor]:
    return {name: tensors[name] for name in part_shapes(config)}
