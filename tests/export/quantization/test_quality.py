"""Quantization's cost: the figures against ones computed by hand, and the limits."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from flamingo_rt.bundle import QUANTIZATIONS
from flamingo_rt.contract import CACHE_FORMS, GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER
from flamingo_rt.errors import ParityError
from flamingo_rt.export.quantization.quality import GraphQuality, Quality, QualityMeter, check_quality
from flamingo_rt.export.quantization.quantization_options import (
    BLOCKS,
    BLOCKS_OF,
    DEFAULT_BLOCK,
    LIMITS,
    SCHEMES,
    SCHEMES_OF,
    WITHOUT_4_BITS,
    Limits,
)
from flamingo_rt.export.tracing import LOWERINGS


def measured(*checks: tuple[str, str, str, list, list]) -> Quality:
    """graph, tensor, prompt, what was found, what was expected."""
    meter = QualityMeter()
    for graph, tensor, case, found, expected in checks:
        meter.update(graph, tensor, case, np.array(found, np.float32), torch.tensor(expected, dtype=torch.float32))
    return meter.quality()


def quality(cosine: float = 1.0, changed: int = 0, tokens: int = 100, graph: str = LANGUAGE_MODEL) -> Quality:
    good = GraphQuality(1.0, 1.0, 1.0)
    return Quality(dict.fromkeys(GRAPHS, good) | {graph: GraphQuality(1.0, cosine, 1.0)}, tokens, changed)


def test_equal_outputs_cost_nothing() -> None:
    found = measured((VISION_ENCODER, "features", "p", [[1, 2], [3, 4]], [[1, 2], [3, 4]]))
    assert found.graphs == {VISION_ENCODER: GraphQuality(pytest.approx(1), pytest.approx(1), pytest.approx(1))}
    assert (found.tokens, found.changed, found.changed_share) == (0, 0, 0)


def test_the_cosine_is_that_of_the_vectors_along_the_last_axis() -> None:
    """(3, 4) against (4, 3): 24 / 25; (1, 0) against itself: 1; the mean is 0.98."""
    found = measured((RESAMPLER, "media", "p", [[[3, 4]], [[1, 0]]], [[[4, 3]], [[1, 0]]]))
    assert found.graphs[RESAMPLER].cosine == pytest.approx(0.98)
    assert found.graphs[RESAMPLER].lowest_cosine == pytest.approx(0.98)


def test_the_norm_ratio_is_what_a_cosine_does_not_see() -> None:
    found = measured((RESAMPLER, "media", "p", [[2, 0], [0, 1]], [[1, 0], [0, 2]]))
    assert found.graphs[RESAMPLER].cosine == pytest.approx(1)
    assert found.graphs[RESAMPLER].norm_ratio == pytest.approx((2 + 0.5) / 2)


def test_the_lowest_prompt_counts_as_a_whole_and_all_vectors_in_the_mean() -> None:
    """A prompt of three vectors at 1, 0 and 1; another of one vector at 0.8, shown in two pieces with one at 1."""
    found = measured(
        (RESAMPLER, "media", "first", [[1, 0], [1, 0], [0, 1]], [[1, 0], [0, 1], [0, 1]]),
        (RESAMPLER, "media", "second", [[4, 3]], [[5, 0]]),
        (RESAMPLER, "media", "second", [[1, 0]], [[1, 0]]),
    )
    assert found.graphs[RESAMPLER].lowest_cosine == pytest.approx(2 / 3)
    assert found.graphs[RESAMPLER].cosine == pytest.approx((1 + 0 + 1 + 0.8 + 1) / 5)


def test_a_changed_token_is_one_whose_likeliest_is_another() -> None:
    expected = [[0.1, 0.9, 0], [5, 4, 3], [0, 0, 1]]
    found = measured((LANGUAGE_MODEL, "logits", "p", [[0.2, 0.3, 0], [4, 4.1, 3], [0, 0, 9]], expected))
    assert (found.tokens, found.changed) == (3, 1)
    assert found.changed_share == pytest.approx(1 / 3)


def test_only_logits_count_of_the_language_models_outputs() -> None:
    found = measured(
        (LANGUAGE_MODEL, "logits", "p", [[1, 0]], [[1, 0]]), (LANGUAGE_MODEL, "present.0.key", "p", [[1, 0]], [[0, 1]]),
    )
    assert (found.tokens, found.changed, found.graphs[LANGUAGE_MODEL].cosine) == (1, 0, pytest.approx(1))


def test_outputs_of_nothing_but_zeros_are_no_error() -> None:
    found = measured((RESAMPLER, "media", "p", [[0, 0]], [[0, 0]]))
    assert math.isfinite(found.graphs[RESAMPLER].cosine)
    assert math.isfinite(found.graphs[RESAMPLER].norm_ratio)


# Limits


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    ("scheme", "remedy"),
    [("int4", "take --quantize mixed or int8"), ("mixed", "take --quantize int8"), ("int8", "without --quantize")],
)
def test_a_cosine_below_the_limit_names_graph_figure_and_remedy(graph: str, scheme: str, remedy: str) -> None:
    check_quality(quality(0.98, graph=graph), Limits(0.98, 0.1), scheme)
    with pytest.raises(ParityError) as refused:
        check_quality(quality(0.9712, graph=graph), Limits(0.98, 0.1), scheme)
    for part in (f"graph {graph}, {scheme}", "0.9712", "below the limit of 0.98", "no bundle was written",
                 "--min-cosine"):
        assert part in str(refused.value)
    if scheme != "int8":
        assert remedy in str(refused.value)
    else:
        assert "--quantize int" not in str(refused.value)
        assert "mixed" not in str(refused.value)


def test_too_many_changed_tokens_are_counted() -> None:
    check_quality(quality(changed=10), Limits(0.9, 0.1), "int4")
    with pytest.raises(ParityError) as refused:
        check_quality(quality(changed=11), Limits(0.9, 0.1), "int4")
    for part in ("int4 changes 11 of 100 greedy tokens (11.0%)", "above the limit of 10.0%", "no bundle was written",
                 "mixed", "--max-changed"):
        assert part in str(refused.value)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_cosine_that_is_not_a_number_is_refused(value: float) -> None:
    found = measured(*[(graph, "logits" if graph == LANGUAGE_MODEL else "x", "p", [[value, 1.0]], [[1.0, 1.0]])
                       for graph in GRAPHS])
    with pytest.raises(ParityError, match=r"graph vision_encoder, int8: the cosine .* is nan"):
        check_quality(found, Limits(-1.0, 1.0), "int8")


def test_a_graph_that_was_not_measured_is_an_error() -> None:
    with pytest.raises((ParityError, KeyError)):
        check_quality(measured((RESAMPLER, "media", "p", [[1, 0]], [[1, 0]])), Limits(0.5, 0.5), "int8")


def test_every_scheme_has_limits_that_fewer_bits_widen() -> None:
    assert set(LIMITS) == set(SCHEMES)
    assert LIMITS["int8"].cosine > LIMITS["mixed"].cosine > LIMITS["int4"].cosine > 0.9
    assert LIMITS["int8"].changed < LIMITS["mixed"].changed < LIMITS["int4"].changed < 0.25


def test_the_command_lines_choices_are_the_schemes_that_exist() -> None:
    """The command line lists the choices without numpy and torch, so they are kept apart from the schemes."""
    assert tuple(SCHEMES) == tuple(LIMITS) == QUANTIZATIONS
    assert tuple(name for name, scheme in SCHEMES.items() if 4 not in scheme.bits) == WITHOUT_4_BITS
    assert BLOCKS[-1] == DEFAULT_BLOCK
    assert set(BLOCKS_OF["tensorrt"]) < set(BLOCKS)
    assert set(SCHEMES_OF) == set(CACHE_FORMS) == set(LOWERINGS)
    assert {name for names in SCHEMES_OF.values() for name in names} == set(QUANTIZATIONS)
    for names in SCHEMES_OF.values():
        asked_for = [LIMITS[name] for name in names]  # the mildest first: an error advises those before
        assert asked_for == sorted(asked_for, key=lambda limits: (-limits.cosine, limits.changed))


def test_the_help_of_export_loads_no_torch_for_its_choices() -> None:
    listing = "import sys\nimport flamingo_rt.cli.quantize_options, flamingo_rt.cli.bench\n" \
              "print(sorted({'torch', 'numpy', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
