"""Shared by the tests of weight files."""

from __future__ import annotations

import pytest

from flamingo_rt.weights import flattening


@pytest.fixture
def few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when more names are made than a checkpoint may have entries: 2 ** 30 of them take an hour."""
    made, joined = 0, flattening._joined

    def counted(prefix: str, key: object) -> str:
        nonlocal made
        made += 1
        if made > flattening.MOST_NODES:
            pytest.fail(f"more than {flattening.MOST_NODES} names were made")
        return joined(prefix, key)

    monkeypatch.setattr(flattening, "_joined", counted)
