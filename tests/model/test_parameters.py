"""Parameter counts against table 5 of the paper."""

from __future__ import annotations

import pytest
import torch

from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.parameters import count_parameters
from flamingo_rt.presets import PAPER_PARAMETERS, preset

PARTS = ("vision", "resampler", "cross_attention", "language")


@pytest.mark.parametrize("name", PAPER_PARAMETERS)
def test_a_preset_has_the_papers_parameters(name):
    counts = count_parameters(preset(name))
    published = PAPER_PARAMETERS[name]
    assert set(published) == {*PARTS, "total"}
    assert {part: counts[part] / 1e9 for part in published} == pytest.approx(published, rel=0.05)


def test_parts_sum_to_the_total_and_to_what_is_trained(flamingo_config):
    counts = count_parameters(flamingo_config)
    assert counts["total"] == sum(counts[part] for part in PARTS)
    assert counts["trainable"] == counts["resampler"] + counts["cross_attention"]


def test_counting_agrees_with_a_real_model(flamingo_config):
    model = Flamingo(flamingo_config)
    assert count_parameters(flamingo_config)["total"] == sum(p.numel() for p in model.parameters())
    assert all(p.device == torch.device("cpu") for p in model.parameters())
