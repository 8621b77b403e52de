"""Settings of the whole suite: the same examples in every run, and no graph traced twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from traced_once import tracing_once

settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that is remembered of the user is read or written: not which engines were built here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def graphs_traced_once() -> Iterator[None]:
    with tracing_once():
        yield
