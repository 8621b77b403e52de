"""Shared by the tests of weight files."""

from __future__ import annotations

import pytest

from flamingo_rt.weights import flattening


@pytest.fixture
def few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when more names are made than a checkpoint may have entries: 2 ** 30 of them take an hour. A file
    that cannot be opened lazily is opened as a whole, and so is looked through twice."""
    made, most, joined = 0, 2 * flattening.MOST_NODES, flattening._joined

    def counted(prefix: str, key: object) -> str:
        nonlocal made
        made += 1
        if made > most:
            pytest.fail(f"more than {most} names were made")
        return joined(prefix, key)

    monkeypatch.setattr(flattening, "_joined", counted)
