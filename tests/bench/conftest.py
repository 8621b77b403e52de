"""The packaged model, one quick measurement of it, and a report with made-up figures."""

from __future__ import annotations

import pytest
from made_up_report import BUFFER, QUICK, made_up_report

from flamingo_rt.bench import Report, measure
from flamingo_rt.loading import PACKAGED_BUNDLE, load
from flamingo_rt.runtime.model import Model


@pytest.fixture(scope="session")
def packaged() -> Model:
    return load(threads=1)


@pytest.fixture(scope="session")
def measured(packaged: Model) -> Report:
    return measure(packaged, QUICK, folder=PACKAGED_BUNDLE, buffer_bytes=BUFFER)


@pytest.fixture
def made_up() -> Report:
    return made_up_report()
