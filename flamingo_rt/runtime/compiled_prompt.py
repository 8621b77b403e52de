"""Compiled prompts: the state of a model after a prefix, in a file from which queries in other processes continue.

The file is an uncompressed ``.npz`` (numpy's, without pickles): the self-attention cache, the media that later tokens
may still look at, the token ids, and a JSON object that names the model and the shots. The archive has a checksum of
every array, so a damaged file is noticed.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import LANGUAGE_MODEL, RESAMPLER, GraphSpec, layer_parts, past_name
from flamingo_rt.errors import DataError
from flamingo_rt.files import replacing_file
from flamingo_rt.json_files import parse_json
from flamingo_rt.printable import printable
from flamingo_rt.runtime.array_archive import DAMAGE, ArrayArchive
from flamingo_rt.runtime.decoder import Prefix

FORMAT_VERSION = 1
ABOUT, IDS = "about", "input_ids"
MOST_ABOUT_BYTES = 16_000_000  # the texts and names of the shots; a context of a million tokens is a few MB


@dataclass(frozen=True)
class CompiledPrompt:
    """The state after a prompt: its ``input_ids`` int64 [T], its number of ``visuals``, and the JSON object ``about``
    that names its model and its shots."""

    prefix: Prefix
    input_ids: np.ndarray
    visuals: int
    about: Mapping[str, Any]


def write_prompt(path: Path, prompt: CompiledPrompt) -> None:
    """Write a compiled prompt; the file appears whole or not at all. Raises `DataError` when it cannot be written."""
    about = {
        **prompt.about, "format_version": FORMAT_VERSION, "visuals": prompt.visuals, "media": len(prompt.prefix.media),
    }
    arrays = {
        ABOUT: np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        IDS: prompt.input_ids,
        **prompt.prefix.cache,
        **{f"{slot}.{name}": array for slot, media in enumerate(prompt.prefix.media) for name, array in media.items()},
    }
    with replacing_file(path) as beside, beside.open("wb") as file:
        contiguous: dict[str, Any] = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        np.savez(file, **contiguous)


def read_about(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object of a compiled prompt. Raises `DataError` for another file, and for a newer format."""
    with _explained(path), ArrayArchive(_existing(path)) as file:
        about = parse_json(file.vector(ABOUT, "uint8", MOST_ABOUT_BYTES).tobytes())
    version = about.get("format_version") if isinstance(about, dict) else None
    if type(version) is not int or version < 1:
        raise DataError(f"compiled prompt {path} is damaged: its format is {repr(version)[:60]}; compile it again")
    if version > FORMAT_VERSION:
        raise DataError(
            f"compiled prompt {path} has format {version}, this flamingo-rt reads {FORMAT_VERSION}: upgrade, or "
            "compile it again"
        )
    return about


def read_prompt(
    path: str | os.PathLike, config: FlamingoConfig, specs: dict[str, GraphSpec], identity: str
) -> CompiledPrompt:
    """Read a compiled prompt of the bundle with this ``identity``, configuration and graphs.

    Raises `DataError` when the file is damaged, or was compiled for another bundle.
    """
    about = read_about(path)
    if about.get("bundle") != identity:
        raise DataError(
            f"compiled prompt {os.fsdecode(path)} was compiled for another bundle ({_short(about.get('bundle'))}; this "
            f"one is {_short(identity)}): {_recompiling(about)}"
        )
    with _explained(path), ArrayArchive(_existing(path)) as file:
        ids, slots, visuals = file.vector(IDS, "int64", config.language.context), about["media"], about["visuals"]
        if type(slots) is not int or type(visuals) is not int or not 0 <= slots <= visuals <= config.max_visuals:
            raise ValueError(f"{slots!r} of {visuals!r} visuals"[:100])
        if ids.min() < 0 or ids.max() >= config.language.vocab_size:
            raise ValueError(f"token ids from {ids.min()} to {ids.max()}, the model has {config.language.vocab_size}")
        sizes = {"B": 1, "C": len(ids)}
        language, media = specs[LANGUAGE_MODEL], specs[RESAMPLER].outputs
        past = [language.input(past_name(*part)) for part in layer_parts(config.language.layers)]
        cache = {spec.name: file.array(spec.name, spec.array_dtype, spec.resolve(sizes)) for spec in past}
        kept = tuple(
            {spec.name: file.array(f"{slot}.{spec.name}", spec.array_dtype, spec.resolve({"M": 1})[1:])
             for spec in media}
            for slot in range(slots)
        )
    return CompiledPrompt(Prefix(cache, len(ids), kept), ids, visuals, about)


def _short(identity: object) -> str:
    """The beginning of a bundle's identity. Names would not do: anyone may choose them, and many are the same."""
    known = isinstance(identity, str) and re.fullmatch(r"[0-9a-f]{64}", identity)
    return f"manifest {str(identity)[:12]}" if known else "without a manifest's hash"


def _recompiling(about: Mapping[str, Any]) -> str:
    """The remedy: compile the prompt for this bundle. No text of the file is quoted: a stranger's could pass for
    advice."""
    shots = about.get("shots")
    if isinstance(shots, list) and shots:
        return f"compile its {len(shots)} shots again for this one with flamingo-rt prompt compile"
    return "make it again with this model's prompt() and save()"


def _existing(path: str | os.PathLike) -> Path:
    if not Path(path).is_file():
        raise DataError(f"there is no compiled prompt at {path}: flamingo-rt prompt compile writes one")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not a compiled prompt, or was cut short: flamingo-rt prompt compile writes one")
    return Path(path)


@contextmanager
def _explained(path: str | os.PathLike) -> Iterator[None]:
    """Turn whatever reading a damaged archive raises into a `DataError` that names the file."""
    try:
        yield
    except DAMAGE as error:
        reason = printable(str(error))[:200]
        raise DataError(f"compiled prompt {path} is damaged ({reason}): compile it again") from error
