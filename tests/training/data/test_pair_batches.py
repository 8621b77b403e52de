"""Batches of pairs: a function of the step, whole in their parts, and without damaged samples."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from made_pairs import SIZE, TEXT_TOKENS, MadePairs, pair_reader, single_objects
from tokenizers import Tokenizer, normalizers

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.processing.preprocess import pixel_values
from flamingo_rt.training.data.pair_batches import PairBatches, pair_text
from flamingo_rt.training.data.samples import DamagedSample, Said, Sample, Visual
from flamingo_rt.training.data.scene_pairs import ScenePairs
from flamingo_rt.training.options import DataOptions

SAMPLES = single_objects(10, "train")
READER = pair_reader(SAMPLES)
OPTIONS = DataOptions("made", batch=4)


def batches(source=None, options=OPTIONS, seed=3, **changes) -> PairBatches:
    return PairBatches(source or MadePairs(SAMPLES), options, replace(READER, **changes), seed)


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_batch_holds_the_pictures_and_texts_of_its_samples() -> None:
    drawn = batches().draw(1, 0, 1)
    assert drawn.error is None
    assert drawn.read == 4
    by_name = {sample.name: sample for sample in SAMPLES}
    assert len(set(drawn.names)) == 4
    for row, name in enumerate(drawn.names):
        picture, said = by_name[name].segments
        expected = pixel_values(PIL.Image.fromarray(picture.content), READER.preprocessing, SIZE)
        assert np.array_equal(drawn.batch.pixel_values[row].numpy(), expected)
        ids = READER.tokenizer.encode(said.text).ids[:TEXT_TOKENS]
        assert drawn.batch.text_ids[row][drawn.batch.mask[row]].tolist() == ids
        assert drawn.batch.mask[row].tolist() == [place < len(ids) for place in range(drawn.batch.mask.shape[1])]


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    assert same(batches().draw(5, 0, 1).batch, batches().draw(5, 0, 1).batch)
    assert batches().draw(5, 0, 1).names != batches().draw(4, 0, 1).names
    assert batches().draw(5, 0, 1).names != batches(seed=4).draw(5, 0, 1).names


def test_parts_are_the_whole_batch_in_order() -> None:
    whole, parts = batches().draw(2, 0, 1), [batches().draw(2, part, 2) for part in range(2)]
    assert parts[0].names + parts[1].names == whole.names
    assert torch.equal(torch.cat([part.batch.pixel_values for part in parts]), whole.batch.pixel_values)


def test_each_sample_is_drawn_once_in_an_epoch() -> None:
    names = [name for step in range(5) for name in batches().draw(step, 0, 1).names]
    assert sorted(names[:10]) == sorted(names[10:]) == sorted(sample.name for sample in SAMPLES)
    assert names[:10] != names[10:]


def test_a_batch_that_parts_do_not_divide_is_refused_with_the_figures() -> None:
    error = batches().draw(0, 0, 3).error
    assert isinstance(error, UsageError)
    assert "a batch of 4 cannot be divided into 3 equal parts" in str(error)


def test_a_damaged_sample_is_named_and_replaced_by_another() -> None:
    torn = batches(MadePairs(SAMPLES, damaged=range(3)))
    drawn = [torn.draw(step, 0, 1) for step in range(5)]
    for part in drawn:
        assert len(part.batch.pixel_values) == 4
        assert part.read == 4 + len(part.damaged)
        assert not set(part.names) & {sample.name for sample in SAMPLES[:3]}
    reasons = {reason for part in drawn for reason in part.damaged}
    assert reasons == {f"{sample.name}: is torn" for sample in SAMPLES[:3]}
    assert torn.draw(3, 0, 1).names == drawn[3].names


def test_where_everything_is_damaged_the_error_names_a_reason() -> None:
    error = batches(MadePairs(SAMPLES, damaged=range(10))).draw(0, 0, 1).error
    assert isinstance(error, DataError)
    assert "16 draws in a row, of 10 samples, are damaged" in str(error)
    assert "is torn" in str(error)


@pytest.mark.parametrize(("segments", "reason"), [
    ((Said("a red circle"),), "does not begin with a picture"),
    ((Visual("video", b"", "a.mp4"), Said("a clip")), "does not begin with a picture"),
    ((SAMPLES[0].segments[0],), "has no text"),
    ((SAMPLES[0].segments[0], Said("  ")), "has no text"),
    ((Visual("image", b"no picture", "a.jpg"), Said("a cat")), "a.jpg"),
], ids=["text alone", "clip", "no text", "empty text", "no picture's bytes"])
def test_what_is_no_pair_counts_as_damaged(segments, reason) -> None:
    odd = MadePairs([Sample("odd", segments), *SAMPLES[1:]])
    damaged = [entry for step in range(3) for entry in batches(odd).draw(step, 0, 1).damaged]
    assert damaged
    assert all(entry.startswith("odd: ") and reason in entry for entry in damaged)


def test_a_text_without_tokens_counts_as_damaged() -> None:
    deaf = Tokenizer.from_str(READER.tokenizer.to_str())
    deaf.normalizer = normalizers.Replace("a striped", "")
    odd = MadePairs([Sample("odd", (SAMPLES[0].segments[0], Said("a striped"))), *SAMPLES[1:]])
    damaged = [entry for step in range(3) for entry in batches(odd, tokenizer=deaf).draw(step, 0, 1).damaged]
    assert damaged
    assert all("makes no token of its text 'a striped'" in entry for entry in damaged)


def test_a_text_stays_the_partner_of_its_equals_with_a_space_before_it() -> None:
    same = MadePairs([Sample(str(number), (sample.segments[0], Said("a red circle")))
                      for number, sample in enumerate(SAMPLES)])
    drawn = batches(same, replace(OPTIONS, leading_space=0.5, batch=10)).draw(0, 0, 1).batch
    assert len({tuple(row) for row in drawn.text_ids.tolist()}) == 2
    assert len(set(drawn.text_keys.tolist())) == 1


@pytest.mark.parametrize(("count", "said"), [
    (1, "made has 1 pair, fewer than a batch of 4: a batch is of 2 pairs or more: give it more"),
    (3, "made has 3 pairs, fewer than a batch of 4: lower its batch"),
])
def test_too_few_pairs_for_a_batch_are_refused_with_what_can_be_done(count, said) -> None:
    with pytest.raises(UsageError) as caught:
        batches(MadePairs(SAMPLES[:count]), OPTIONS)
    assert str(caught.value) == said


def test_a_question_is_said_with_its_answer() -> None:
    question = Sample("asked", (SAMPLES[0].segments[0], Said("What color is it? ", learnt=False), Said(" red")))
    assert pair_text(question) == "What color is it? red"
    with pytest.raises(DamagedSample, match=r"asked: has no text"):
        pair_text(Sample("asked", (SAMPLES[0].segments[0],)))


def test_a_long_text_is_cut() -> None:
    drawn = batches(text_tokens=2).draw(0, 0, 1).batch
    assert drawn.text_ids.shape == (4, 2)
    assert drawn.mask.all()


def test_a_space_is_put_before_texts_as_often_as_asked() -> None:
    space = READER.tokenizer.encode(" a").ids[0]
    share = []
    for often in (0.0, 0.5, 1.0):
        some = batches(options=replace(OPTIONS, leading_space=often))
        first = torch.cat([some.draw(step, 0, 1).batch.text_ids[:, 0] for step in range(20)])
        share.append((first == space).double().mean().item())
    assert share[0] == 0.0
    assert 0.3 < share[1] < 0.7
    assert share[2] == 1.0


def test_augmentation_changes_pictures_and_not_their_texts() -> None:
    plain, changed = batches().draw(0, 0, 1), batches(options=replace(OPTIONS, augment=True)).draw(0, 0, 1)
    assert plain.names == changed.names
    assert torch.equal(plain.batch.text_ids, changed.batch.text_ids)
    assert all(not torch.equal(a, b)
               for a, b in zip(plain.batch.pixel_values, changed.batch.pixel_values, strict=True))
    assert same(changed.batch, batches(options=replace(OPTIONS, augment=True)).draw(0, 0, 1).batch)


def test_the_fingerprint_changes_with_what_changes_a_batch() -> None:
    plain = batches().fingerprint()
    assert plain == batches().fingerprint()
    for other in (replace(OPTIONS, batch=2), replace(OPTIONS, augment=True), replace(OPTIONS, leading_space=0.5)):
        assert batches(options=other).fingerprint() != plain
    assert batches(text_tokens=3).fingerprint() != plain
    assert batches(MadePairs(SAMPLES[1:])).fingerprint() != plain
    assert batches(options=replace(OPTIONS, name="else", weight=2.0)).fingerprint() == plain


def test_drawn_scenes_are_pairs_that_repeat() -> None:
    source = ScenePairs(seed=1)
    picture, said = source.sample(7).segments
    assert np.array_equal(picture.content, ScenePairs(seed=1).sample(7).segments[0].content)
    assert said.text.startswith("a")
    assert not np.array_equal(picture.content, ScenePairs(seed=1, split="heldout").sample(7).segments[0].content)
    assert source.fingerprint() != ScenePairs(seed=2).fingerprint()


def test_every_second_caption_that_is_learnt_from_tells_sizes_and_places() -> None:
    learnt, held_out = ScenePairs(seed=1), ScenePairs(seed=1, split="heldout")
    place = re.compile(r"\bat [A-J][0-9]\b")
    for texts in (learnt.captions(20), (learnt.sample(index).segments[1].text for index in range(20))):
        assert [bool(place.search(text)) for text in texts] == [False, True] * 10
    for texts in (held_out.captions(20), (held_out.sample(index).segments[1].text for index in range(20))):
        assert not any(place.search(text) for text in texts)
