"""The tokenizer of an OpenFlamingo model: the language model's, with two or three added tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from flamingo_rt.bounded_files import check_size
from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import DataError
from flamingo_rt.json_files import read_json
from flamingo_rt.tokenizer_file import MOST_BYTES, MOST_TOKEN, explained, open_tokenizer, try_tokenizer

IMAGE, END_OF_CHUNK, PAD = "<image>", "<|endofchunk|>", "<PAD>"
# Remedy for a file of the sentencepiece library, the form in which LLaMA was distributed.
SENTENCEPIECE = (
    ": AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of the transformers library, with sentencepiece "
    "installed, makes a tokenizer.json from it"
)


@dataclass(frozen=True)
class StatedTokens:
    """Statements beside a tokenizer: texts of pad_token, eos_token and bos_token, where it ``named`` them, and whether
    the beginning of text is to be put first, None where that is left to the tokenizer. ``missing`` is where the end of
    text was looked for, in messages."""

    named: Mapping[str, str] = field(default_factory=dict)
    add_bos: object = None
    missing: str = (
        "neither eos_token in tokenizer_config.json or special_tokens_map.json, nor eos_token_id in the language "
        "model's config.json"
    )


def read_tokenizer(path: Path, eos_id: int | None, stop_ids: tuple[int, ...] = ()) -> tuple[Tokenizer, TokensConfig]:
    """Read the tokenizer in a folder or file, and add OpenFlamingo's tokens in its order: end of chunk, image, and a
    padding token if there is none (open_flamingo's factory.py).

    ``eos_id`` is the language model's end of text, used where the tokenizer's own files name none; ``stop_ids`` are
    more tokens that end answers. The beginning of text is the token that the tokenizer puts first. Raises `DataError`.
    """
    tokenizer = load_tokenizer(path)
    return tokenizer, add_tokens(tokenizer, path, stated_tokens(path), eos_id, stop_ids)


def stated_tokens(path: Path) -> StatedTokens:
    """The statements of the files beside a tokenizer, a folder or a file. Raises `DataError` for damaged ones."""
    folder = path if path.is_dir() else path.parent
    return StatedTokens(_named_tokens(folder), _tokenizer_config(folder).get("add_bos_token"))


def add_tokens(
    tokenizer: Tokenizer, path: Path, stated: StatedTokens, eos_id: int | None, stop_ids: tuple[int, ...] = ()
) -> TokensConfig:
    """Add OpenFlamingo's tokens to a tokenizer that was read from ``path``; see `read_tokenizer`."""
    named = stated.named
    pad = named.get("pad_token", PAD)
    # A padding token named in the files comes first: the transformers library adds it when it loads them.
    added = (pad, END_OF_CHUNK, IMAGE) if "pad_token" in named else (END_OF_CHUNK, IMAGE, pad)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in added])
    there = [text for text in named.values() if tokenizer.token_to_id(text) is not None]
    whole = {token.content for token in tokenizer.get_added_tokens_decoder().values()}  # these stay unchanged
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in there if text not in whole])
    eos = named.get("eos_token") or _token(tokenizer, eos_id)
    if not eos:
        raise DataError(f"{path} does not say which token ends a text: {stated.missing}")
    for text in (eos, pad):
        if tokenizer.token_to_id(text) is None:
            raise DataError(f"{path}: tokenizer_config.json names the token {text!r}, tokenizer.json lacks it")
    # The configuration's add_bos_token counts before what tokenizer.json does.
    bos = "" if stated.add_bos is False else _bos(tokenizer)
    if stated.add_bos is True and not bos and named.get("bos_token") in there:
        bos = named["bos_token"]
    # No padding and no truncation, whatever the file asks for: prompts are read whole.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return TokensConfig(IMAGE, END_OF_CHUNK, bos, eos, pad, _stop(tokenizer, stop_ids, eos, path))


def _stop(tokenizer: Tokenizer, ids: tuple[int, ...], eos: str, path: Path) -> tuple[str, ...]:
    """Texts of the tokens besides ``eos`` that end an answer."""
    missing = [number for number in ids if not _token(tokenizer, number)]
    if missing:
        raise DataError(
            f"eos_token_id names the token {missing[0]}, which the tokenizer in {path} lacks: is it another model's?"
        )
    return tuple(text for text in (_token(tokenizer, number) for number in ids) if text not in (eos, END_OF_CHUNK))


def _token(tokenizer: Tokenizer, number: int | None) -> str:
    """The token with this id, or an empty text."""
    if number is None or not 0 <= number < 2**32:  # the library raises for others
        return ""
    return tokenizer.id_to_token(number) or ""


def _bos(tokenizer: Tokenizer) -> str:
    """The special token that the tokenizer puts first, or an empty text."""
    with explained("the tokenizer fails on a text", "tokenizer.json is damaged"):
        with_special = tokenizer.encode("a").ids
        without = tokenizer.encode("a", add_special_tokens=False).ids
    return _token(tokenizer, with_special[0]) if with_special[: len(without)] != without else ""


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a folder or file as it is. Raises `DataError` when there is none, or it is damaged."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.suffix == ".model":
        raise DataError(f"{file} is not a tokenizer.json{SENTENCEPIECE}")
    if file.is_file():
        return open_tokenizer(file)
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return _byte_level(path)
    hint = "; tokenizer.model is there" + SENTENCEPIECE if (path / "tokenizer.model").is_file() else ""
    raise DataError(
        f"{path} holds no tokenizer.json, and no vocab.json with merges.txt: give the folder of the language model's "
        f"tokenizer with --tokenizer{hint}"
    )


def _byte_level(folder: Path) -> Tokenizer:
    """Read GPT-2's files, the form of OPT's tokenizer; OPT puts its beginning-of-text token first."""
    for name in ("vocab.json", "merges.txt"):  # the library reads them whole
        check_size(folder / name, MOST_BYTES)
    with explained(f"cannot read {folder / 'vocab.json'} with merges.txt", "copy them again"):
        tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    try_tokenizer(tokenizer, folder / "vocab.json")
    bos = _named_tokens(folder).get("bos_token")
    if _tokenizer_config(folder).get("add_bos_token") and bos and tokenizer.token_to_id(bos) is not None:
        tokenizer.add_special_tokens([AddedToken(bos, normalized=False)])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            data = read_json(folder / name)
            merged |= {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else {}
    return merged


def _named_tokens(folder: Path) -> dict[str, str]:
    """Texts of pad_token, eos_token and bos_token, where the tokenizer's files name them."""
    named = {}
    for key, value in _tokenizer_config(folder).items():
        text = value.get("content") if isinstance(value, dict) else value
        if key not in ("pad_token", "eos_token", "bos_token") or not isinstance(text, str) or not text:
            continue
        if len(text) > MOST_TOKEN or any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(f"{folder}: {key} is not a token: it is too long, or holds half a character")
        named[key] = text
    return named


