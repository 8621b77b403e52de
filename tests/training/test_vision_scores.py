"""Scores of a dual encoder against what loops count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_pairs import MadePairs, dual_encoder_config, pair_reader, single_objects
from tokenizers import Tokenizer, normalizers

from flamingo_rt.errors import DataError
from flamingo_rt.training.data.pair_batches import PairReader
from flamingo_rt.training.data.samples import Said, Sample
from flamingo_rt.training.dual_encoder import DualEncoder
from flamingo_rt.training.sharding import World
from flamingo_rt.training.vision_scores import (
    Recall,
    VisionScores,
    check_evaluation,
    class_embeddings,
    encode_texts,
    linear_probe,
    measure,
    recall,
)

SAMPLES = single_objects(64, "heldout", labelled=True)
READER = pair_reader(SAMPLES)


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(dual_encoder_config())


def unlabelled(samples) -> list[Sample]:
    return [Sample(sample.name, sample.segments) for sample in samples]


def test_recall_counts_queries_with_a_right_candidate_among_the_first() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(30, 12, generator=generator)
    right = torch.rand(30, 12, generator=generator) < 0.1
    counted = []
    for most in (1, 5):
        hits = 0
        for row in range(30):
            first = sorted(range(12), key=lambda place: -float(similarity[row, place]))[:most]
            hits += any(bool(right[row, place]) for place in first)
        counted.append(hits / 30)
    assert recall(similarity, right) == pytest.approx(Recall(*counted))
    assert 0 < counted[0] < counted[1] < 1


def test_a_class_is_the_mean_direction_of_its_name_in_every_template(model) -> None:
    with torch.no_grad():
        found = class_embeddings(model, ["red", "dark blue"], READER, ("a {}", "{} it is"))
        for row, texts in enumerate((["a red", "red it is"], ["a dark blue", "dark blue it is"])):
            mean = encode_texts(model, texts, READER).mean(0)
            torch.testing.assert_close(found[row], mean / mean.norm())


def test_texts_are_encoded_alone_as_they_are_together(model) -> None:
    texts = [f"a {'red ' * number}star" for number in range(3)] * 30
    with torch.no_grad():
        together = encode_texts(model, texts, READER)
        alone = torch.cat([encode_texts(model, [text], READER) for text in texts[:3]])
    assert together.shape == (90, 24)
    torch.testing.assert_close(together[:3], alone, rtol=1e-5, atol=1e-6)


def test_pictures_with_classes_are_classified_by_the_nearest_name(model) -> None:
    scores = measure(model, MadePairs(SAMPLES), READER, templates=("{}",))
    colors = sorted({sample.label for sample in SAMPLES})
    right = 0
    with torch.no_grad():
        names = encode_texts(model, colors, READER)
        for sample in SAMPLES:
            model.eval()
            picture = model(pixel_values=torch.from_numpy(READER.pixels(sample))[None]).images[0]
            right += colors[int((names @ picture).argmax())] == sample.label
    assert scores.zero_shot == pytest.approx(right / 64)
    assert (scores.pictures, scores.classes, scores.damaged) == (64, len(colors), 0)
    assert scores.image_to_text is None
    assert len(scores.examples) == 4
    assert scores.examples[0].startswith(f"{SAMPLES[0].name}: ")
    assert scores.examples[0].endswith(f"(right: {SAMPLES[0].label})")


def test_a_text_of_several_pictures_is_right_for_each(model) -> None:
    """With one text for all, everything is found; the pictures are then the right ones of that text."""
    same = [Sample(sample.name, (sample.segments[0], Said("a star"))) for sample in SAMPLES[:6]]
    scores = measure(model, MadePairs(same), READER)
    assert scores.image_to_text == scores.text_to_image == Recall(1.0, 1.0)
    scores = measure(model, MadePairs(unlabelled(SAMPLES)), READER)
    assert scores.zero_shot is None
    assert 0 <= scores.image_to_text.at_1 <= scores.image_to_text.at_5 < 1


def test_damaged_pictures_are_left_out_and_counted(model) -> None:
    scores = measure(model, MadePairs(SAMPLES, damaged=(0, 5)), READER)
    assert (scores.pictures, scores.damaged) == (62, 2)
    assert str(scores).startswith("62 pictures (2 damaged left out): zero-shot ")
    with pytest.raises(DataError, match=r"none of the 64 pictures"):
        measure(model, MadePairs(SAMPLES, damaged=range(64)), READER)


def without(text: str) -> PairReader:
    """A reader whose tokenizer makes nothing of a text."""
    deaf = Tokenizer.from_str(READER.tokenizer.to_str())
    deaf.normalizer = normalizers.Replace(text, "")
    return replace(READER, tokenizer=deaf)


def test_a_text_without_tokens_is_left_out_and_wins_nothing(model) -> None:
    odd = [Sample("odd", (SAMPLES[0].segments[0], Said("zzz"))), *unlabelled(SAMPLES[:15])]
    scores = measure(model, MadePairs(odd), without("zzz"))
    assert (scores.pictures, scores.damaged) == (15, 1)
    assert not any("zzz" in line for line in scores.examples)
    with pytest.raises(DataError, match="none of the 1 pictures"):
        check_evaluation(MadePairs(odd[:1]), without("zzz"))


def test_a_template_in_which_a_class_has_no_tokens_is_left_out_of_it(model) -> None:
    with torch.no_grad():
        found = class_embeddings(model, ["zzz", "red"], without("zzz"), ("{}", "a {}"))
        torch.testing.assert_close(found[0], encode_texts(model, ["a zzz"], without("zzz"))[0])
    assert found.isfinite().all()
    named = [Sample(sample.name, sample.segments, "zzz" if number < 4 else sample.label)
             for number, sample in enumerate(SAMPLES)]
    assert measure(model, MadePairs(named), without("zzz"), templates=("{}",)).damaged == 4


def test_no_more_pictures_than_asked_for_are_encoded_at_once(model, monkeypatch) -> None:
    sizes = []

    def encoded(self, pixel_values) -> torch.Tensor:
        sizes.append(len(pixel_values))
        return forward(self, pixel_values)

    forward = type(model.vision).forward
    monkeypatch.setattr(type(model.vision), "forward", encoded)
    measure(model, MadePairs(SAMPLES[:10]), READER, at_once=4)
    assert sizes == [4, 4, 2]


def test_the_first_of_several_ranks_reads_for_all(model) -> None:
    said = []

    class First(World):
        def from_first(self, make):
            said.append(make())
            return said[-1]

    class Second(World):
        def from_first(self, make):
            return said.pop(0)

    scores = measure(model, MadePairs(SAMPLES[:10], damaged=[3]), READER, world=First(0, 2))
    assert (scores.pictures, scores.damaged) == (9, 1)
    assert measure(model, MadePairs(SAMPLES[:10], damaged=range(10)), READER, world=Second(1, 2)) == scores


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(model, training) -> None:
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure(model, MadePairs(SAMPLES[:8]), READER)
    assert model.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_linear_probe_is_measured_on_pictures_that_it_did_not_learn() -> None:
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", "c"] * 20)
    apart = np.array([{"a": [4.0, 0.0], "b": [0.0, 4.0], "c": [-4.0, -4.0]}[label] for label in labels])
    assert linear_probe(apart + 0.1 * rng.standard_normal((60, 2)), labels) == 1.0
    # As many random features as pictures can be learnt by heart: what is measured then is chance.
    assert linear_probe(rng.standard_normal((60, 60)), labels) < 0.7


@pytest.mark.parametrize("labels", [["a"] * 6, ["a", "b", "c"], ["a", "a", "b"]], ids="".join)
def test_without_two_pictures_of_two_classes_there_is_no_probe(labels) -> None:
    assert linear_probe(np.eye(len(labels)), np.array(labels)) is None


def test_scores_are_one_line_and_named_numbers() -> None:
    scores = VisionScores(1200, 0, 10, zero_shot=0.5, linear_probe=0.625)
    assert str(scores) == "1200 pictures: zero-shot 50.0% of 10 classes (chance 10.0%), linear probe 62.5%"
    assert scores.scalars() == {"evaluation.zero_shot": 0.5, "evaluation.linear_probe": 0.625}
    scores = VisionScores(8, image_to_text=Recall(0.25, 0.5), text_to_image=Recall(0.125, 1.0))
    assert str(scores) == "8 pictures: picture to text R@1 25.0%, R@5 50.0%, text to picture R@1 12.5%, R@5 100.0%"
    assert scores.scalars() == {
        "evaluation.image_to_text.recall_at_1": 0.25, "evaluation.image_to_text.recall_at_5": 0.5,
        "evaluation.text_to_image.recall_at_1": 0.125, "evaluation.text_to_image.recall_at_5": 1.0,
    }
