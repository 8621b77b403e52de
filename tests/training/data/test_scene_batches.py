"""Batches, read back without the code that wrote them: what is said, of which picture, and where loss is taken."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
import torch
from small_model import small_config

from flamingo_rt.config import PromptsConfig
from flamingo_rt.errors import DataError
from flamingo_rt.processing.preprocess import pixel_values
from flamingo_rt.training import scenes
from flamingo_rt.training.data.loader import drawn as drawn_ahead
from flamingo_rt.training.data.scene_batches import SceneBatches
from flamingo_rt.training.data.scene_documents import texts_of_scene
from flamingo_rt.training.stage import Dataset
from flamingo_rt.training.tokenizer_training import train_tokenizer

CONFIG = replace(small_config(), language=replace(small_config().language, vocab_size=400, context=512))
PICTURES, STEPS = 4, range(14)


class Said(NamedTuple):
    """One chunk of a row: the picture in the batch, its text before the answer, and the text loss is taken on."""

    picture: int
    prompt: str
    answer: str


@pytest.fixture(scope="module")
def tokenizer():
    texts = (text for index in range(30) for text in texts_of_scene(0, index, CONFIG.prompts))
    return train_tokenizer(texts, CONFIG.language.vocab_size, CONFIG.tokens)


@pytest.fixture(scope="module")
def batches(tokenizer):
    return SceneBatches(CONFIG, tokenizer, seed=3, pictures=PICTURES, questions=2)


@pytest.fixture(scope="module")
def drawn(batches):
    return [batches.batch(step) for step in STEPS]


@pytest.fixture(scope="module")
def read(drawn, tokenizer):
    """Read every row of every step, as a list of its chunks."""
    return [[read_row(batch, row, tokenizer) for row in range(len(batch.rows))] for batch in drawn]


def read_row(batch, row, tokenizer):
    ids = batch.input_ids[row].tolist()
    name = {tokenizer.token_to_id(text): text for text in ("<bos>", "<eos>", "<pad>", "<image>", "<|endofchunk|>")}
    words = [name.get(token, "") for token in ids]
    end = words.index("<eos>")
    assert words[0] == "<bos>"
    assert set(words[end + 1 :]) <= {"<pad>"}
    said, wanted = [], batch.labels[row].tolist()
    for start in [place for place, word in enumerate(words) if word == "<image>"]:
        stop = words.index("<|endofchunk|>", start)
        asked = [token for token, label in zip(ids[start:stop], wanted[start:stop], strict=True) if label == -100]
        answered = [token for token, label in zip(ids[start:stop], wanted[start:stop], strict=True) if label != -100]
        assert asked + answered == ids[start:stop]  # the prompt is before the answer
        said.append(Said(int(batch.rows[row, len(said)]), tokenizer.decode(asked), tokenizer.decode(answered)))
    assert words.count("<|endofchunk|>") == len(said) == batch.rows.shape[1]
    return said


def samples(step):
    return [scenes.sample(3, step * PICTURES + index, "train", 96, "varied") for index in range(PICTURES)]


def same(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


def test_a_batch_is_a_function_of_seed_and_step(batches, drawn) -> None:
    assert same(batches.batch(5), drawn[5])
    assert same(SceneBatches(CONFIG, batches.tokenizer, 3, PICTURES, 2).batch(5), drawn[5])
    assert not torch.equal(replace(batches, seed=4).batch(5).pixel_values, drawn[5].pixel_values)
    assert not torch.equal(drawn[6].pixel_values, drawn[5].pixel_values)


def test_a_second_process_draws_the_same_in_order(batches, drawn) -> None:
    ahead = list(drawn_ahead([Dataset("scenes", 1.0, batches)], 4, 7, range(1), 1, workers=1, in_turn=False))
    assert len(ahead) == 3
    assert all(same(one.batch, other) for one, other in zip(ahead, drawn[4:7], strict=True))
    assert [part.names[0] for part in ahead] == [f"scene {step * PICTURES}" for step in (4, 5, 6)]


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_hold_the_rows_of_the_whole_with_their_own_pictures(batches, drawn, parts) -> None:
    for step in STEPS:
        whole, row = drawn[step], 0
        for part in range(parts):
            batch = batches.draw(step, part, parts).batch
            for own, shown in enumerate(batch.rows):
                assert torch.equal(batch.input_ids[own], whole.input_ids[row])
                assert torch.equal(batch.labels[own], whole.labels[row])
                assert torch.equal(batch.pixel_values[shown], whole.pixel_values[whole.rows[row]])
                row += 1
            assert sorted(set(batch.rows.flatten().tolist())) == list(range(len(batch.pixel_values)))
        assert row == len(whole.rows)


def test_more_parts_than_rows_are_refused(batches) -> None:
    drawn = replace(batches, pictures=1, questions=0).draw(0, 0, 2)
    assert drawn.batch is None
    assert "1 rows of drawn scenes cannot be divided into 2 parts" in str(drawn.error)


def test_rows_hold_one_to_four_chunks_and_every_chunk_once(drawn, read) -> None:
    assert {batch.rows.shape[1] for batch in drawn} == {1, 2, 3, 4}
    for rows in read:
        said = [chunk for row in rows for chunk in row]
        assert len(set(said)) == len(said)
        assert PICTURES * 3 - 3 <= len(said) <= PICTURES * 3  # chunks that do not fill a row are left out


def test_a_share_of_the_questions_asks_for_places_first(batches, tokenizer) -> None:
    asking = replace(batches, by_place=0.5, questions=6)
    said = [chunk for step in STEPS for batch in [asking.batch(step)] for row in range(len(batch.rows))
            for chunk in read_row(batch, row, tokenizer) if "Question:" in chunk.prompt]
    by_place = [chunk for chunk in said if ", by place?" in chunk.prompt]
    assert 0.4 < len(by_place) / len(said) < 0.6
    found = [chunk for chunk in by_place if re.match(r" ?[A-J]", chunk.answer)]
    assert 0.6 < len(found) / len(by_place) < 1  # what is not there has no place
    assert not any(re.match(r" ?[A-J]\d", chunk.answer) for chunk in said if chunk not in by_place)


def test_captions_stand_with_their_own_picture(read) -> None:
    seen = 0
    for step, rows in zip(STEPS, read, strict=True):
        captions = [sample.caption for sample in samples(step)]
        for chunk in (chunk for row in rows for chunk in row if chunk.prompt == "Output:"):
            assert chunk.answer == f" {captions[chunk.picture]}"
            seen += 1
    assert seen > len(STEPS)


def test_questions_are_answered_by_their_own_picture(read) -> None:
    """Answer three kinds of questions from the list of objects, and compare."""
    seen = 0
    for step, rows in zip(STEPS, read, strict=True):
        drawn_scenes = [sample.scene for sample in samples(step)]
        for chunk in (chunk for row in rows for chunk in row if chunk.prompt != "Output:"):
            question = re.fullmatch("Question: (.*) Answer:", chunk.prompt)[1]
            objects = drawn_scenes[chunk.picture].objects
            if match := re.fullmatch(r"What shape is the (\w+) object\?", question):
                right = next(thing.shape for thing in objects if thing.color == match[1])
            elif match := re.fullmatch(r"What color is the (\w+)\?", question):
                right = next(thing.color for thing in objects if match[1] in (thing.shape, "digit"))
            elif question == "How many objects are there?":
                right = scenes.NUMBERS[len(objects)]
            else:
                continue
            assert chunk.answer == f" {right}"
            seen += 1
    assert seen > len(STEPS)


def test_phi_counts_the_pictures_up_to_each_token(drawn, tokenizer) -> None:
    image, pad = tokenizer.token_to_id("<image>"), tokenizer.token_to_id("<pad>")
    for batch in drawn:
        counted = (batch.input_ids == image).cumsum(1)
        written = batch.input_ids != pad
        assert torch.equal(batch.media_index[written], counted[written])
        assert batch.media_index[~written].eq(0).all()


def test_loss_is_taken_on_answers_and_what_ends_them_alone(drawn, tokenizer) -> None:
    ends = [tokenizer.token_to_id(text) for text in ("<|endofchunk|>", "<eos>")]
    never = [tokenizer.token_to_id(text) for text in ("<image>", "<bos>", "<pad>")]
    for batch in drawn:
        wanted = batch.labels != -100
        assert torch.equal(batch.labels[wanted], batch.input_ids[wanted])
        for token in ends:
            assert wanted[batch.input_ids == token].all()
        for token in never:
            assert not wanted[batch.input_ids == token].any()


def test_pixels_are_the_drawn_pictures_preprocessed(drawn) -> None:
    for step in STEPS[:2]:
        pixels = drawn[step].pixel_values
        assert pixels.shape == (PICTURES, 1, 3, 32, 32)
        for index, sample in enumerate(samples(step)):
            picture = pixel_values(PIL.Image.fromarray(sample.image), CONFIG.preprocessing, 32)
            assert np.array_equal(pixels[index, 0].numpy(), picture)


def test_the_smallest_batches_hold_what_there_is(tokenizer) -> None:
    smallest = SceneBatches(CONFIG, tokenizer, seed=0, pictures=1, questions=0)
    for step in range(12):
        assert smallest.batch(step).rows.tolist() == [[0]]


def test_the_tokenizers_texts_are_the_batches_kind_and_repeat(read) -> None:
    texts = [text for index in range(20) for text in texts_of_scene(0, index, PromptsConfig())]
    assert sum(text.startswith("Output: ") for text in texts) == 20
    assert all(re.fullmatch(r"Output: \w.*|Question: .*\? Answer: \w.*", text) for text in texts)


def test_a_model_with_other_prompts_is_taught_those(batches, tokenizer) -> None:
    prompts = PromptsConfig("Caption:", "Question:{} Short answer:", "")
    other = replace(batches, config=replace(CONFIG, prompts=prompts))
    said = {(chunk.prompt, chunk.answer) for row in range(4) for chunk in read_row(other.batch(0), row, tokenizer)}
    own = {(chunk.prompt, chunk.answer) for row in range(4) for chunk in read_row(batches.batch(0), row, tokenizer)}
    assert said == {
        (prompt.replace("Output:", "Caption:").replace("Question: ", "Question:").replace(" Answer:", " Short answer:"),
         answer.removeprefix(" "))
        for prompt, answer in own
    }
    for text in texts_of_scene(0, 5, prompts):
        assert re.fullmatch(r"Caption:\w.*|Question:\w.*\? Short answer:\w.*", text)


def test_each_dataset_of_a_mixture_has_scenes_of_its_own(batches) -> None:
    first, second, third = (replace(batches, number=number) for number in range(3))
    assert same(first.batch(0), batches.batch(0))
    pictures = [each.batch(0).pixel_values for each in (first, second, third)]
    assert not any(torch.equal(one, other) for number, one in enumerate(pictures) for other in pictures[:number])
    assert len({each.fingerprint()["data"] for each in (first, second, third)}) == 3
    assert same(second.batch(3), replace(batches, number=1).batch(3))


def test_rows_stay_within_the_models_context(batches, drawn) -> None:
    longest = [batch.input_ids.shape[1] for batch in drawn]
    context = max(batch.input_ids.shape[1] for batch in drawn if batch.rows.shape[1] == 1)
    assert context < max(longest)
    short = replace(batches, config=replace(CONFIG, language=replace(CONFIG.language, context=context)))
    for step, length in zip(STEPS, longest, strict=True):
        batch, before = short.batch(step), drawn[step]
        assert batch.input_ids.shape[1] <= context
        assert len(batch.rows) == len(before.rows)
        assert (batch.media_index.amax(1) <= batch.rows.shape[1]).all()
        assert same(batch, before) == (length <= context)
    found = replace(batches, config=replace(CONFIG, language=replace(CONFIG.language, context=8))).draw(0, 0, 1)
    assert isinstance(found.error, DataError)
    assert re.search(r"takes \d+ tokens, and the model's context is 8", str(found.error))


def test_a_model_without_a_beginning_of_text_gets_rows_without_it(batches, tokenizer):
    without = SceneBatches(replace(CONFIG, tokens=replace(CONFIG.tokens, bos="")), tokenizer, 3, PICTURES, 2).batch(0)
    batch, bos = batches.batch(0), tokenizer.token_to_id(CONFIG.tokens.bos)
    assert (batch.input_ids[:, 0] == bos).all()
    for ours, theirs in ((without.input_ids, batch.input_ids), (without.media_index, batch.media_index),
                         (without.labels, batch.labels)):
        assert torch.equal(ours, theirs[:, 1:])
