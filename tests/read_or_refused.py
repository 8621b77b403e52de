"""The two ends that reading a damaged file may have: an answer, or an error that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flamingo_rt.errors import DataError, FlamingoError


@contextmanager
def may_be_refused(*named: object, error: type[FlamingoError] = DataError) -> Iterator[None]:
    """Let the block read and check the answer, or end in ``error`` with a message that holds each of ``named``."""
    try:
        yield
    except error as refusal:
        message = str(refusal)
        assert message
        assert all(str(each) in message for each in named), message
