"""Checkpoint folders of one pretrained part, which stages 1 and 2 write and stage 3 freezes.

A folder has ``config.json`` (``{"kind": "language", …}``), ``model.safetensors`` or shards of it, and
``tokenizer.json`` where texts are read. Tensors are named as in the state dict of `Flamingo`: ``vision.*`` or
``language.*``. A vision tower may hold a text encoder and a captioner too, under other names: whoever reads those
checks them, with `check_tensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from flamingo_rt.bounded_files import read_text
from flamingo_rt.checkpoints import (
    CONFIG,
    TOKENIZER,
    check_tensors,
    open_folder,
    part_shapes,
    require_files,
    write_folder,
)
from flamingo_rt.config import (
    MOST_PARAMETERS,
    LanguageConfig,
    PreprocessingConfig,
    TokensConfig,
    VisionConfig,
    parse_config,
    require,
)
from flamingo_rt.errors import DataError
from flamingo_rt.json_files import read_json
from flamingo_rt.parameter_count import language_parameters, vision_parameters
from flamingo_rt.tokenizer_file import MOST_BYTES
from flamingo_rt.weights.lazy import LazyTensor, in_memory

Kind = Literal["vision", "language"]
# The keys of each kind's config.json that are parsed here, beside "kind".
KEYS: dict[Kind, dict[str, Any]] = {
    "vision": {"vision": VisionConfig, "preprocessing": PreprocessingConfig},
    "language": {"language": LanguageConfig, "tokens": TokensConfig},
}


@dataclass(frozen=True)
class Tower:
    """A tower whose weights are still in their files.

    ``config`` is the whole config.json, its keys in `KEYS` checked. ``tokenizer`` is the text of a tokenizer.json, or
    None. ``tensors`` are in the order of the state dict, and after them those of a text encoder and a captioner.
    """

    kind: Kind
    config: Mapping[str, Any]
    tokenizer: str | None
    tensors: Mapping[str, LazyTensor]

    @property
    def vision(self) -> VisionConfig:
        """The encoder's sizes, of a vision tower."""
        return self._part("vision")

    @property
    def preprocessing(self) -> PreprocessingConfig:
        """The way from pictures to pixel values, of a vision tower."""
        return self._part("preprocessing")

    @property
    def language(self) -> LanguageConfig:
        """The decoder's sizes, of a language tower."""
        return self._part("language")

    @property
    def tokens(self) -> TokensConfig:
        """The texts of the special tokens, of a language tower."""
        return self._part("tokens")

    def _part(self, key: str) -> Any:
        return parse_config(KEYS[self.kind][key], self.config[key], key)


def write_tower(
    out: Path, kind: Kind, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], tokenizer_json: str | None,
    overwrite: bool = False,
) -> None:
    """Write a tower's folder, which appears whole or not at all.

    ``config``: the keys of `KEYS` as `dataclasses.asdict` gives them; a vision tower's may have more. ``tensors`` are
    named as in the state dict of `Flamingo`. Raises `UsageError` when ``out`` exists and may not be replaced,
    `DataError` for a full disk, and for a config or tensors that could not be read back.
    """
    shapes = _tower_shapes(kind, config, out / CONFIG)
    lazy = in_memory(tensors, out)
    _check(kind, shapes, lazy, out)
    if kind == "language" and tokenizer_json is None:
        raise DataError(f"a language tower needs a tokenizer: {out} is not written without one")
    write_folder(out, {**config, "kind": kind}, tokenizer_json, lazy, overwrite)


def read_tower(path: Path, kind: Kind) -> Tower:
    """Find the tensors of a tower without reading them.

    Raises `DataError` that names a missing file, a folder of another kind, or a tensor that is missing or has the wrong
    shape.
    """
    found = folder_kind(path)
    if found is not None and found != kind:
        described = "a whole Flamingo checkpoint" if found == "flamingo" else f"a {found} tower"
        raise DataError(f"{path} is {described}, not a {kind} tower: give a folder that train {kind} wrote")
    require_files(path, (CONFIG, TOKENIZER) if kind == "language" else (CONFIG,), f"{kind} tower")
    config = read_json(path / CONFIG)
    shapes = _tower_shapes(kind, config, path / CONFIG)
    file, tensors = open_folder(path)
    _check(kind, shapes, tensors, file)
    others = {name: tensor for name, tensor in tensors.items() if name not in shapes}
    tokenizer = read_text(path / TOKENIZER, MOST_BYTES) if (path / TOKENIZER).is_file() else None
    return Tower(kind, config, tokenizer, {name: tensors[name] for name in shapes} | others)


def folder_kind(path: Path) -> Kind | Literal["flamingo"] | None:
    """The kind of this project's model in a folder, by its config.json; None for anything else.

    Raises `DataError` for a config.json that is no JSON.
    """
    if not (path / CONFIG).is_file():
        return None
    config = read_json(path / CONFIG)
    if not isinstance(config, dict):
        return None
    for kind, keys in KEYS.items():
        if config.get("kind") == kind and keys.keys() <= config.keys():
            return kind
    return "flamingo" if {"resampler", "cross_attention"} <= config.keys() else None


def _tower_shapes(kind: Kind, config: Any, file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that the config asks for, in order. Raises `DataError` that names ``file``."""
    try:
        require(isinstance(config, Mapping), f"it is {config!r}, not an object")
        missing = [key for key in KEYS[kind] if key not in config]
        require(not missing, f"it lacks {', '.join(missing)}: is it a {kind} tower's?")
        unknown = sorted(config.keys() - KEYS[kind].keys() - {"kind"})
        require(kind == "vision" or not unknown, f"it has unknown keys {', '.join(unknown)}; from a newer version?")
        parts = {key: parse_config(what, config[key], key) for key, what in KEYS[kind].items()}
        count = vision_parameters(parts[kind]) if kind == "vision" else language_parameters(parts[kind])
        require(count <= MOST_PARAMETERS, f"it has {count} parameters, more than {MOST_PARAMETERS}")
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    return part_shapes(parts[kind])


def _check(kind: Kind, shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, LazyTensor], file: Path) -> None:
    """Check the tensors of the part itself; those of a vision tower's text encoder are left to whoever reads it."""
    own = {name: tensor for name, tensor in found.items() if kind == "language" or name.startswith(f"{kind}.")}
    check_tensors(file, shapes, own)
