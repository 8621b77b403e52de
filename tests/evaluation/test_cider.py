"""CIDEr-D against scores of pycocoevalcap, and its properties."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.cider import cider

OFFICIAL = json.loads((Path(__file__).parent / "fixtures" / "cider.json").read_text(encoding="utf-8"))
REFERENCES = [["a dog on the grass"], ["two cats by a red sofa"], ["one man rides his bike home"]]


@pytest.mark.parametrize("corpus", OFFICIAL["corpora"], ids=lambda corpus: corpus["corpus"])
def test_captions_have_the_official_scores(corpus: dict) -> None:
    scores = cider(corpus["candidates"], corpus["references"])
    np.testing.assert_allclose(scores, corpus["scores"], rtol=1e-10, atol=1e-10)
    assert np.mean(scores) == pytest.approx(corpus["mean"], abs=1e-10)


def test_a_caption_like_its_only_reference_scores_ten_and_one_without_its_words_nothing() -> None:
    scores = cider(["A dog on the grass.", "zebra", "One man rides his bike home!"], REFERENCES)
    np.testing.assert_allclose(scores, [10, 0, 10])


def test_a_score_is_what_the_paper_says() -> None:
    """Two items of one reference each: every n-gram of a reference has the weight log 2, but for the shared "dog"."""
    [score, _] = cider(["red dog", "cat"], [["red dog runs"], ["dog sleeps"]])
    red, pairs = math.log(2), math.log(2)
    single = red * red / (red * math.hypot(red, red))  # of "red", against "red" and "runs"; "dog" weighs nothing
    double = pairs * pairs / (pairs * math.hypot(pairs, pairs))  # of "red dog", against it and "dog runs"
    penalty = math.exp(-1 / (2 * 6.0**2))  # one token less
    assert score == pytest.approx(10 * penalty * (single + double) / 4)


def test_the_order_of_items_and_references_does_not_matter() -> None:
    corpus = OFFICIAL["corpora"][-1]
    candidates, references = corpus["candidates"], corpus["references"]
    backwards = cider(candidates[::-1], [captions[::-1] for captions in references[::-1]])
    np.testing.assert_allclose(backwards[::-1], cider(candidates, references), rtol=1e-12)


def test_a_word_that_every_item_has_counts_nothing() -> None:
    assert cider(["dog", "dog"], [["dog runs"], ["dog sleeps"]]) == [0, 0]


def test_no_items_have_no_scores() -> None:
    assert cider([], []) == []


def test_an_item_without_references_is_refused() -> None:
    with pytest.raises(DataError, match="item 2 has no reference caption"):
        cider(["a dog", "a cat"], [["a dog"], []])


def test_candidates_and_items_are_as_many() -> None:
    with pytest.raises(ValueError, match="1 candidates for 3 items"):
        cider(["a dog"], REFERENCES)
