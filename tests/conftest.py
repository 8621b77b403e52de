"""Settings of the whole suite: the same examples in every run, the same names in every process, and no graph traced
twice in one."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import settings
from traced_once import tracing_once

settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names that differ between the processes which share the tests."""
    named = [item.nodeid for item in items if re.search(r" at 0x[0-9a-f]+", item.nodeid)]
    if named:
        raise pytest.UsageError(f"an address is in the name of {named[0]}: give its parameters ids")


@pytest.fixture(scope="session", autouse=True)
def state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use an empty state folder: the user's own record of built engines is neither read nor written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def graphs_traced_once() -> Iterator[None]:
    with tracing_once():
        yield
