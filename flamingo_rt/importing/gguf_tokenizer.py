"""The tokenizer that a GGUF file carries: byte-level BPE (``gpt2``) or sentencepiece's BPE (``llama``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from flamingo_rt.errors import DataError
from flamingo_rt.importing.openflamingo_tokenizer import StatedTokens
from flamingo_rt.printable import printable
from flamingo_rt.tokenizer_file import MOST_TOKEN, explained, parse_tokenizer
from flamingo_rt.weights.gguf_files import GgufFile

# A file of a stranger could ask for more merges than memory holds. sentencepiece makes pieces of at most 16 characters
# unless it is told otherwise; the largest vocabularies, of 262,000 pieces, have 515,000 merges.
LONGEST_PIECE, MOST_MERGES = 64, 1_000_000
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens
REMEDY = "give the original model's tokenizer with --tokenizer"

# A text is cut into words with these expressions before merges are applied within a word, and each expression cuts the
# pieces that the one before it left. They are those of the tokenizers that llama.cpp has under these names.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
WORDS: dict[str, tuple[str, ...]] = {
    "gpt-2": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    "llama-bpe": (LLAMA3,),
    "qwen2": (LLAMA3.replace("{1,3}", ""),),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}


def read_gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer in a GGUF file, with control and user-defined tokens kept whole. Raises `DataError` for a kind that
    is not supported, and where it is damaged."""
    kind = _text(file, "model")
    makers: dict[str, Callable[[GgufFile, list[str]], Tokenizer]] = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in makers:
        raise _refused(file.path, "model", kind, tuple(makers))
    tokens = _list(file, "tokens")
    if len(set(tokens)) < len(tokens):
        raise DataError(f"{file.path}: tokenizer.ggml.tokens has a token twice: {REMEDY}")
    if max(map(len, tokens)) > MOST_TOKEN:
        raise DataError(f"{file.path} has a token of more than {MOST_TOKEN} characters: it is damaged")
    with explained(f"{file.path}: the tokenizer cannot be made", REMEDY):
        tokenizer = makers[kind](file, tokens)
        types = _types(file, tokens)
        for wanted, special in ((CONTROL, True), (UNKNOWN, True), (USER_DEFINED, False)):
            whole = [AddedToken(text, normalized=False, special=special) for text in _of(tokens, types, wanted) if text]
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(whole)
        content = tokenizer.to_str().encode()
    return parse_tokenizer(content, file.path, len(tokens))


def stated_in(file: GgufFile) -> StatedTokens:
    """The special tokens that a file's metadata states. Raises `DataError` for ids that it has no tokens for."""
    tokens = _list(file, "tokens")
    named = {}
    for key, ours in (("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token")):
        number = _id(file, f"{key}_token_id")
        if number is None:
            continue
        if number >= len(tokens) or not tokens[number]:
            raise DataError(f"{file.path}: tokenizer.ggml.{key}_token_id is {number}, and there is no such token: "
                            f"{REMEDY}")
        named[ours] = tokens[number]
    # llama.cpp's defaults where a file says nothing.
    usual = _text(file, "model") == "llama" or _text(file, "pre") == "llama-bpe"
    add_bos = file.metadata.get("tokenizer.ggml.add_bos_token", usual)
    if not isinstance(add_bos, bool):
        raise DataError(f"{file.path}: tokenizer.ggml.add_bos_token is not true or false: {REMEDY}")
    return StatedTokens(named, add_bos, "its metadata has no tokenizer.ggml.eos_token_id")


def special_ids(file: GgufFile) -> tuple[int | None, tuple[int, ...]]:
    """The id of the token that ends a text, and those of all that end an answer."""
    eos = _id(file, "eos_token_id")
    ids = (eos, _id(file, "eot_token_id"), _id(file, "eom_token_id"))
    return eos, tuple(dict.fromkeys(number for number in ids if number is not None))


def _byte_level(file: GgufFile, tokens: list[str]) -> Tokenizer:
    name = _text(file, "pre")
    if name not in WORDS:
        raise _refused(file.path, "pre", name, tuple(WORDS))
    merges = []
    for merge in _list(file, "merges"):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise DataError(f"{file.path}: tokenizer.ggml.merges has {printable(merge[:80])!r}, not a pair: {REMEDY}")
        merges.append((left, right))
    model = models.BPE(
        {text: number for number, text in enumerate(tokens)}, merges, ignore_merges=name == "llama-bpe"
    )
    tokenizer = Tokenizer(model)
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    words = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in WORDS[name]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GgufFile, tokens: list[str]) -> Tokenizer:
    """Two pieces are merged where their union is a piece, the one with the highest score first."""
    for key, neutral in (("remove_extra_whitespaces", False), ("add_space_prefix", True)):
        if file.metadata.get(f"tokenizer.ggml.{key}", neutral) is not neutral:
            raise DataError(f"{file.path}: tokenizer.ggml.{key} is not {neutral}, which is not supported: {REMEDY}")
    types = _types(file, tokens)
    scores = file.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens) or not np.isfinite(scores).all():
        raise DataError(f"{file.path}: tokenizer.ggml.scores are not {len(tokens)} numbers, one a token: {REMEDY}")
    pieces = {text: number for number, text in enumerate(tokens) if types[number] == NORMAL}
    longest = max(map(len, pieces), default=0)
    if longest > LONGEST_PIECE:
        raise DataError(f"{file.path} has a piece of {longest} characters, more than {LONGEST_PIECE}: {REMEDY}")
    merges = []
    for text, number in pieces.items():
        merges += [(-float(scores[number]), number, text[:cut], text[cut:])
                   for cut in range(1, len(text)) if text[:cut] in pieces and text[cut:] in pieces]
        if len(merges) > MOST_MERGES:
            raise DataError(f"{file.path}: its pieces are more than {MOST_MERGES:,} unions of two: {REMEDY}")
    unknown = _of(tokens, types, UNKNOWN)
    if len(unknown) != 1:
        raise DataError(f"{file.path} has {len(unknown)} unknown tokens, one was expected: {REMEDY}")
    model = models.BPE(
        {text: number for number, text in enumerate(tokens)}, [(left, right) for *_, left, right in sorted(merges)],
        unk_token=unknown[0], fuse_unk=True, byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _types(file: GgufFile, tokens: list[str]) -> list[int]:
    found = file.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(found, np.ndarray) or len(found) != len(tokens):
        raise DataError(f"{file.path}: tokenizer.ggml.token_type is not a number for each of {len(tokens)} tokens: "
                        f"{REMEDY}")
    return found.tolist()


def _of(tokens: list[str], types: list[int], wanted: int) -> list[str]:
    return [text for text, found in zip(tokens, types, strict=True) if found == wanted]


def _text(file: GgufFile, key: str) -> str:
    found = file.metadata.get(f"tokenizer.ggml.{key}")
    return found if isinstance(found, str) else ""


def _list(file: GgufFile, key: str) -> list[str]:
    found = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(found, list) or not found:
        raise DataError(f"{file.path} has no texts in tokenizer.ggml.{key}: {REMEDY}")
    return found


def _id(file: GgufFile, key: str) -> int | None:
    found = file.metadata.get(f"tokenizer.ggml.{key}")
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 2**32 - 1 else None


def _refused(path: Path, key: str, found: str, known: tuple[str, ...]) -> DataError:
    return DataError(
        f"{path}: tokenizer.ggml.{key} is {printable(found[:80]) or 'missing'}; {', '.join(known)} can be imported: "
        f"{REMEDY}"
    )
