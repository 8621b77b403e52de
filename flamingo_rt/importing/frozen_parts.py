"""The frozen parts of a Flamingo from other projects' files: CLIP's encoder, and a language model's folder.

Only names, shapes and small JSON files are read here; weights are read when they are written, trained or exported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from flamingo_rt.config import LanguageConfig, TokensConfig, ViTConfig
from flamingo_rt.errors import DataError
from flamingo_rt.importing import clip
from flamingo_rt.importing.families import Family, family_of
from flamingo_rt.importing.openflamingo_tokenizer import add_tokens, load_tokenizer, stated_tokens
from flamingo_rt.importing.settings import Settings
from flamingo_rt.importing.sources import Source, TensorSlice
from flamingo_rt.json_files import read_json
from flamingo_rt.weights.lazy import LazyTensor
from flamingo_rt.weights.weight_files import open_weights

# Buffers, not weights, that older releases of the libraries saved.
BUFFERS = re.compile(r"(rotary_emb\.\w+|attention\.(masked_)?bias|attn\.(masked_)?bias|attn_bias|position_ids)$")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LanguageFolder:
    """A language model's folder, or GGUF file: its settings, its family, its tensors under the family's names, and its
    tokenizer with the tokens of `read_tokenizer`. ``known`` are the tokens that it had before those."""

    settings: Settings
    family: Family
    source: Source
    tokenizer: Tokenizer
    tokens: TokensConfig
    known: Mapping[str, int]

    def config(self, rows: int) -> LanguageConfig:
        """The sizes, with ``rows`` tokens."""
        return self.family.configure(self.settings, rows)

    def slices(self, config: LanguageConfig) -> dict[str, TensorSlice]:
        """The source of each tensor but embedding and head, under our names within the language model."""
        return self.family.tensors(self.source, config)

    def tensors(self, config: LanguageConfig, shapes: Shapes) -> dict[str, LazyTensor]:
        """The tensors ``language.*`` but embedding and head, in their ``shapes``. Raises `DataError` when one is
        missing or has another shape, and when the folder has one that our model lacks."""
        slices = self.slices(config)
        outer, dot, _ = self.family.layers.rpartition(".")
        taken = {self.family.embedding, *names_of(slices)} | (set() if config.tied_head else {self.family.head})
        self.source.check_all_taken((outer + dot,), taken, BUFFERS)
        return bind(self.source, {f"language.{name}": part for name, part in slices.items()}, shapes)

    def table(self, name: str, rows: int, width: int) -> LazyTensor:
        """The first rows of a table [rows or more, width], such as the embedding. Raises `DataError`."""
        tensor = self.source.floating(name)
        if len(tensor.shape) != 2 or tensor.shape[0] < rows or tensor.shape[1] != width:
            raise DataError(
                f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, {self.source.what} needs "
                f"[{rows}, {width}]"
            )
        return replace(tensor, shape=(rows, width), read=lambda: tensor.read()[:rows].contiguous())


def open_encoder(path: Path) -> Source:
    """CLIP's vision transformer, in a file or a folder. Raises `DataError` when the weights cannot be read."""
    return Source("the vision encoder", path, open_weights(path))


def encoder_tensors(encoder: Source, config: ViTConfig, shapes: Shapes) -> dict[str, LazyTensor]:
    """The tensors ``vision.*`` in their ``shapes``. Raises `DataError` as `LanguageFolder.tensors` does."""
    return bind(encoder, clip.vision_tensors(encoder, config), shapes)


def language_settings(folder: Path) -> Settings:
    """The config.json of a language model's folder. Raises `DataError` when there is none."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder: --language takes the one with config.json and the weights; train flamingo "
            "takes a .gguf file too"
        )
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} has no config.json: --language takes the folder of the language model")
    return Settings(folder / "config.json", read_json(folder / "config.json"))


def open_language(
    settings: Settings, trained: Mapping[str, LazyTensor] | None = None, tokenizer: Path | None = None
) -> LanguageFolder:
    """The language model beside its ``settings``.

    ``trained`` replaces its tensors of the same names. ``tokenizer``: a folder or a file, by default the model's
    folder. Raises `DataError` for an unknown family, damaged weights, or a tokenizer that cannot be used.
    """
    folder, family = settings.path.parent, family_of(settings)
    tensors = open_weights(folder)
    outer = family.embedding.split(".")[0] + "."  # missing where only the decoder was saved
    if family.embedding not in tensors and family.embedding.removeprefix(outer) in tensors:
        tensors = {outer + name: tensor for name, tensor in tensors.items()}
    source = Source(f"the language model ({family.name})", folder, {**tensors, **(trained or {})})
    place = tokenizer or folder
    loaded = load_tokenizer(place)
    known = loaded.get_vocab()
    tokens = add_tokens(loaded, place, stated_tokens(place), *end_of_text(settings))
    return LanguageFolder(settings, family, source, loaded, tokens, known)


def bind(source: Source, slices: Mapping[str, TensorSlice], shapes: Shapes) -> dict[str, LazyTensor]:
    """The tensors that ``slices`` describe, by their keys, in the ``shapes`` of the same keys. Raises `DataError`."""
    return {name: source.tensor_of(part, shapes[name]) for name, part in slices.items()}


def names_of(slices: Mapping[str, TensorSlice]) -> set[str]:
    """Names of the other project's tensors from which ``slices`` are taken."""
    return {part.name for part in slices.values()}


def end_of_text(settings: Settings) -> tuple[int | None, tuple[int, ...]]:
    """The id of the token that ends a text; and all ids where there are several, in a list or in the
    generation_config.json beside ``settings``. Raises `DataError` for a list of anything else."""
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
