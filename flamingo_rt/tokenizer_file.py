"""The ``tokenizer.json`` of a stranger: its size, and what the tokenizers library makes of damage in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable

MOST_BYTES = 100_000_000  # vocabularies of 256,000 tokens take some 35 MB


def open_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer. Raises `DataError` when the file is missing, damaged, or longer than `MOST_BYTES`."""
    with explained(f"cannot read {path}", "the file is damaged or not a tokenizer.json"):
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES / 1e6:g} MB")
        return Tokenizer.from_buffer(path.read_bytes())  # the library opens no path that is not UTF-8


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Make whatever the library raises a `DataError`: bare Exceptions, and panics, which are no Exception.

    Its regular expressions give up after ten million steps, with a panic: a pattern that never ends is one of these.
    """
    try:
        yield
    except DataError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{what}: {printable(' '.join(str(error).split()))[:300]}; {remedy}") from error
