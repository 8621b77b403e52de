"""Fixtures of runs of stage 3 (`small_runs.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from small_model import small_config
from small_runs import SCENES, run

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.presets import PRESETS
from flamingo_rt.training import flamingo_start


@pytest.fixture(scope="module")
def small() -> Iterator[FlamingoConfig]:
    """A preset that trains in a moment, and a tokenizer from few texts."""
    config = replace(small_config(), language=replace(small_config().language, context=512))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "small", lambda: config)
        patch.setattr(flamingo_start, "TOKENIZER_SCENES", SCENES)
        yield config


@pytest.fixture(scope="module")
def unbroken(small: FlamingoConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `WHOLE`."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    run(out)
    return out
