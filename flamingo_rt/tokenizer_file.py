"""Opening an untrusted ``tokenizer.json``: within limits, and tried before it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from flamingo_rt.bounded_files import read_bytes
from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable
from flamingo_rt.regex_cost import MOST_CHARACTERS, pattern_fault
from flamingo_rt.tokenizer_steps import steps_fault

MOST_BYTES = 100_000_000  # vocabularies of 256,000 tokens take some 35 MB
MOST_PATTERNS = 64  # known tokenizers have at most five
MOST_IDS = 1 << 22  # the library allocates memory for every id up to the largest
MOST_TOKEN = 10_000  # characters of a token; the longest known ones are some 250 spaces

# Letters of many scripts, accents apart from their letters, emoji with joiners, numbers, spaces, controls, long runs.
PROBE = (
    "A photo of two cats, isn't it? \u00c4\u00df \u00e9 e\u0301 \u0416\u0434 \u05d0\u05d1 \u0639\u0631 "
    "\u0939\u093f \u0e44\u0e17 \u4e2d\u6587 \u65e5\u672c\u3054 \ud55c\uae00 \U0001f469\u200d\U0001f680 "
    "\U00020000 12345 3.14e-5 \t\n\r\n  \u00a0\u3000 \x00\x7f \ufffd {}[]<>|_##\u2581\u0120 "
    + "a" * 40 + "!" + " " * 40 + "1" * 40 + "-" * 40 + "\n" * 20
)

# A letter written as an escape: no library writes one, and it could hide a key.
_ESCAPED_LETTER = re.compile(rb"\\u00(?:[46][1-9a-fA-F]|[57][0-9aA])")
_PATTERN = re.compile(rb'"Regex"\s*:\s*(?=")')


def open_tokenizer(path: Path, vocab_size: int | None = None) -> Tokenizer:
    """Read a tokenizer file of at most `MOST_BYTES`; see `parse_tokenizer`. Raises `DataError`."""
    return parse_tokenizer(read_bytes(path, MOST_BYTES), path, vocab_size)


def parse_tokenizer(content: bytes, path: Path, vocab_size: int | None = None) -> Tokenizer:
    """Make a tokenizer from the bytes of a tokenizer.json, read from ``path``, and try it.

    Whatever the file says, it neither truncates nor pads texts, and equal texts give equal tokens. Raises `DataError`
    when the file is damaged, exceeds a limit of this module, of `regex_cost` or of `tokenizer_steps`, fails on a text
    of many scripts (`PROBE`) or on one of its own tokens, or has a token id of ``vocab_size`` or more, which the model
    does not know.
    """
    with explained(f"cannot read {path}", "the file is damaged or not a tokenizer.json"):
        if len(content) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES / 1e6:g} MB")
        _check_patterns(content, path)
        tokenizer = Tokenizer.from_buffer(content)
        fault = steps_fault(tokenizer)
    if fault:
        raise DataError(f"{path} is refused: {fault}: this is not a language model's tokenizer")
    tokenizer.no_truncation()  # a stored setting would silently cut a prompt
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None  # leaves merges out at random: for training alone
    try_tokenizer(tokenizer, path, vocab_size)
    return tokenizer


def try_tokenizer(tokenizer: Tokenizer, path: Path, vocab_size: int | None = None) -> None:
    """Encode and decode `PROBE` and every token. Raises `DataError` as `parse_tokenizer` does."""
    vocabulary = tokenizer.get_vocab()
    largest = max(vocabulary.values(), default=-1)
    if vocab_size is not None and len(vocabulary) > vocab_size:
        raise DataError(f"{path} has {len(vocabulary)} tokens, the model knows {vocab_size}: not its tokenizer")
    if vocab_size is not None and largest >= vocab_size:
        raise DataError(f"{path} has the token id {largest}, the model knows {vocab_size} tokens: not its tokenizer")
    if largest >= MOST_IDS:
        raise DataError(f"{path} has the token id {largest}, beyond {MOST_IDS}, the most that is taken: it is damaged")
    if max(map(len, vocabulary), default=0) > MOST_TOKEN:
        raise DataError(f"{path} has a token of more than {MOST_TOKEN} characters: it is damaged")
    with explained(f"{path} fails on a text", "it is damaged, or was not made for this model"):
        ids = tokenizer.encode(PROBE, add_special_tokens=False).ids
        tokenizer.decode(ids)
        tokenizer.decode(list(vocabulary.values()), skip_special_tokens=False)
        around = tokenizer.encode("a").ids + tokenizer.encode("a", "a").ids
    unknown = max((number for number in ids + around if number > largest), default=None)
    if unknown is not None:
        raise DataError(f"{path} makes the token id {unknown}, which its vocabulary lacks: it is damaged")


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever the library raises into a `DataError`: bare Exceptions, and panics, which are not Exceptions.

    Its regular expressions give up, with a panic, after ten million steps at one place of a text.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{what}: {printable(' '.join(str(error).split()))[:300]}; {remedy}") from error


def _check_patterns(content: bytes, path: Path) -> None:
    """Raise `DataError` for a regular expression that may never finish. Call it before the library sees the file, which
    it compiles at once."""
    if any(_is_escape(content, match.start()) for match in _ESCAPED_LETTER.finditer(content)):
        raise DataError(f"{path} writes letters as \\u escapes, which no tokenizer needs: save it again, with "
                        "Tokenizer.from_file(FILE).save(FILE) of the tokenizers library, if you trust it")
    for count, match in enumerate(_PATTERN.finditer(content), start=1):
        if count > MOST_PATTERNS:
            raise DataError(f"{path} has more than {MOST_PATTERNS} patterns: it is not a language model's tokenizer")
        pattern = _text_at(content, match.end())
        if pattern is None:
            raise DataError(f"{path} has a pattern that is damaged or has more than {MOST_CHARACTERS} characters")
        fault = pattern_fault(pattern)
        if fault:
            shown = printable(pattern[:60]) + ("..." if len(pattern) > 60 else "")
            raise DataError(f"{path} has the pattern {shown!r}, which may take forever on some text: {fault}")


def _is_escape(content: bytes, start: int) -> bool:
    """Whether the backslash at a byte offset starts an escape, rather than being escaped itself; a run of 1000 or more
    backslashes counts as starting one."""
    before = content[max(start - 1000, 0) : start]
    count = len(before) - len(before.rstrip(b"\\"))
    return count % 2 == 0 or count >= 1000


def _text_at(content: bytes, start: int) -> str | None:
    """The JSON string that starts at a byte offset, or None when it is longer than the longest pattern."""
    window = content[start : start + 12 * MOST_CHARACTERS + 2]  # a character takes up to two escapes of 6 bytes
    try:
        return json.JSONDecoder().raw_decode(window.decode("utf-8", errors="replace"))[0]
    except ValueError:
        return None
