"""`flamingo-rt describe`: the paper's models have the paper's sizes."""

from __future__ import annotations

import json

import pytest

from flamingo_rt.presets import PRESETS

# Flamingo paper, table 5 and section 3.1: billions of parameters.
PAPER = {
    "flamingo-3b": {"vision": 0.435, "resampler": 0.194, "cross_attention": 1.2, "language": 1.4},
    "flamingo-9b": {"vision": 0.435, "resampler": 0.194, "cross_attention": 1.6, "language": 7.1},
    "flamingo-80b": {"vision": 0.435, "resampler": 0.194, "cross_attention": 10.0, "language": 70.0},
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_presets_are_within_5_percent_of_the_papers_sizes(run, name) -> None:
    outcome = run("describe", "--preset", name, "--json")
    assert outcome.code == 0
    described = json.loads(outcome.out)
    assert set(described) == {"preset", "parameters"}
    assert described["preset"] == name
    counts = described["parameters"]
    assert set(counts) == {"vision", "resampler", "cross_attention", "language", "total", "trainable"}
    for part, billions in PAPER[name].items():
        assert counts[part] == pytest.approx(billions * 1e9, rel=0.05), part
    assert counts["total"] == sum(counts[part] for part in PAPER[name])
    assert counts["trainable"] == counts["resampler"] + counts["cross_attention"]


def test_the_table_shows_the_papers_figures_beside_the_counts(run) -> None:
    outcome = run("describe", "--preset", "flamingo-3b")
    assert outcome.code == 0
    assert "paper" in outcome.out
    row = next(line for line in outcome.out.splitlines() if "vision encoder" in line)
    assert "435.0M" in row
    assert "%" in row


def test_a_model_that_is_not_the_papers_has_no_such_column(run) -> None:
    outcome = run("describe", "--preset", "tiny")
    assert outcome.code == 0
    header = next(line for line in outcome.out.splitlines() if "parameters" in line)
    assert "paper" not in header


@pytest.mark.parametrize("command", [
    ["describe"], ["train", "flamingo", "--data", "scenes", "--unfreeze", "vision,language", "--out", "never"],
], ids=["describe", "train"])
def test_an_unknown_preset_lists_the_known_ones(run, command) -> None:
    outcome = run(*command, "--preset", "flamingo-7b")
    assert outcome.code == 2
    assert "'flamingo-7b'" in outcome.err
    assert all(name in outcome.err for name in PRESETS)
