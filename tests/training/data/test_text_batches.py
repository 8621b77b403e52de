"""Packing: the rows hold the documents, whole and in order, and are the same however they are drawn."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import TEXTS
from text_lists import TextList
from tokenizers import Tokenizer

from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.model.flamingo import IGNORED_LABEL
from flamingo_rt.training.data.repeated_segments import STRETCH, repeated_segment
from flamingo_rt.training.data.sample_order import SampleOrder
from flamingo_rt.training.data.samples import Said, Sample, Visual
from flamingo_rt.training.data.text_batches import TextBatch, TextBatches, document_text
from flamingo_rt.training.options import DataOptions
from flamingo_rt.training.tokenizer_training import train_tokenizer

TOKENS = TokensConfig()
DOCUMENTS = [f"{count} {colour} {shape}" for count in ("one", "two", "three", "seven")
             for colour in ("red", "blue", "violet") for shape in ("stars", "circles")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300, TOKENS)


def batches(texts: list[str | None], tokenizer: Tokenizer, tokens: TokensConfig = TOKENS, **options) -> TextBatches:
    options = {"context": 64, "seed": 0} | options
    data = DataOptions("texts", batch=options.pop("batch", 8))
    return TextBatches(TextList(texts), data, tokenizer, tokens, **options)


def drawn(found: TextBatches, step: int = 0) -> TextBatch:
    result = found.draw(step, 0, 1)
    assert result.error is None, result.error
    return result.batch


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text).ids


def documents_of(row: list[int], tokenizer: Tokenizer) -> list[list[int]]:
    """The tokens of each document of a row, the last of which may be cut, or lack its end."""
    bos, eos = tokenizer.token_to_id(TOKENS.bos), tokenizer.token_to_id(TOKENS.eos)
    found: list[list[int]] = []
    for token in row:
        if token == bos:
            found.append([])
        elif token != eos:
            found[-1].append(token)
    return found


# Packing


def test_a_row_holds_documents_in_order_until_it_is_full(tokenizer: Tokenizer) -> None:
    batch = drawn(batches(DOCUMENTS, tokenizer))
    known = [encoded(tokenizer, text) for text in DOCUMENTS]
    bos, eos = tokenizer.token_to_id(TOKENS.bos), tokenizer.token_to_id(TOKENS.eos)
    assert batch.input_ids.shape == batch.labels.shape == (8, 64)
    for row in batch.input_ids.tolist():
        *whole, last = documents_of(row, tokenizer)
        assert all(ids in known for ids in whole)
        assert any(ids[: len(last)] == last for ids in known)
        assert row[0] == bos
        assert all((following == bos) == (token == eos) for token, following in pairwise(row))


def test_an_epoch_holds_each_document_once_and_the_next_one_has_another_order(tokenizer: Tokenizer) -> None:
    """Documents of one length, four of which fill a row."""
    texts = [f"{first}{second}{third}" for first in "abc" for second in "def" for third in "gh"][:16]
    assert {len(encoded(tokenizer, text)) for text in texts} == {3}
    found = batches(texts, tokenizer, context=20, batch=4)
    epochs = [documents_of([token for row in drawn(found, step).input_ids.tolist() for token in row], tokenizer)
              for step in range(2)]
    for epoch in epochs:
        assert Counter(map(tuple, epoch)) == Counter(tuple(encoded(tokenizer, text)) for text in texts)
    assert epochs[0] != epochs[1]
    order = SampleOrder(16, 0)
    assert epochs[0] == [encoded(tokenizer, texts[order.index(position)]) for position in range(16)]


def test_every_token_is_a_target_but_the_beginnings(tokenizer: Tokenizer) -> None:
    batch = drawn(batches(DOCUMENTS, tokenizer))
    beginnings = batch.input_ids == tokenizer.token_to_id(TOKENS.bos)
    assert torch.equal(batch.labels == IGNORED_LABEL, beginnings)
    assert torch.equal(batch.labels[~beginnings], batch.input_ids[~beginnings])
    assert not batch.repeated.any()


def test_all_of_a_long_text_is_seen(tokenizer: Tokenizer) -> None:
    """Longer than what is read of it at a time; each row is a part of it, and knows its beginning and its end."""
    text = " ".join(str(number) for number in range(100, 500))
    found = batches([text], tokenizer, context=16)
    bos, eos = tokenizer.token_to_id(TOKENS.bos), tokenizer.token_to_id(TOKENS.eos)
    seen: set[str] = set()
    began = ended = 0
    for step in range(150):
        batch = drawn(found, step)
        for row, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
            first = row[: row.index(eos)] if eos in row else row
            piece = tokenizer.decode([token for token in first if token != bos])
            assert piece in text
            assert (row[0] == bos) == text.startswith(piece)
            assert labels[0] == IGNORED_LABEL
            assert eos not in row or text.endswith(piece)
            began, ended = began + (row[0] == bos), ended + (eos in row)
            seen |= set(piece.split()[1:-1])
    assert len(seen) > 390
    assert began > 5
    assert ended > 5


def test_special_tokens_that_a_text_spells_are_text(tokenizer: Tokenizer) -> None:
    row = drawn(batches(["say <eos> and <image> or <bos>"], tokenizer, context=32, batch=1)).input_ids[0].tolist()
    special = {tokenizer.token_to_id(text) for text in (TOKENS.image, TOKENS.end_of_chunk, TOKENS.pad)}
    assert not special & set(row)
    assert tokenizer.decode(row[: row.index(tokenizer.token_to_id(TOKENS.eos))]) == "say <eos> and <image> or <bos>"


def test_a_tokenizer_without_a_beginning_has_none(tokenizer: Tokenizer) -> None:
    tokens = TokensConfig(bos="")
    row = drawn(batches(DOCUMENTS, tokenizer, tokens)).input_ids[0].tolist()
    assert tokenizer.token_to_id(TOKENS.bos) not in row
    assert tokenizer.token_to_id(TOKENS.eos) in row


def test_captions_and_pages_are_documents_too() -> None:
    picture = Visual("image", Path("a.png"), "a.png")
    sample = Sample("page", (Said("before"), picture, Said("  "), Said("behind", learnt=False)))
    assert document_text(sample) == "before\nbehind"


@dataclass(frozen=True)
class Questions(TextList):
    """Documents of a question that is not learnt, and its answer on the same line, between texts of all kinds."""

    def sample(self, index: int) -> Sample:
        said = (Said("two blue stars", learnt=False), Said("How many?", learnt=False), Said(" two", same_line=True),
                Said(" "), Said("one red circle"), Said("How many?", learnt=False))
        return Sample(f"document {index}", said)


def test_loss_is_taken_on_the_texts_that_are_learnt_and_on_what_ends_them(tokenizer: Tokenizer) -> None:
    source = Questions(["text"])
    assert document_text(source.sample(0)) == "two blue stars\nHow many? two\none red circle\nHow many?"
    found = TextBatches(source, DataOptions("texts", batch=4), tokenizer, TOKENS, context=64, seed=0)
    for row in range(4):
        ids, labels = (tensor[row].tolist() for tensor in drawn(found)[:2])
        ends = [place for place, token in enumerate(ids) if token == tokenizer.token_to_id(TOKENS.eos)]
        document = slice(0, ends[0] + 1)
        assert all(label in (token, IGNORED_LABEL) for token, label in zip(ids, labels, strict=True))
        learnt = [label for label in labels[document] if label != IGNORED_LABEL]
        assert tokenizer.decode(learnt, skip_special_tokens=False) == " two\none red circle\n<eos>"


def test_a_long_document_is_learnt_in_the_same_places_wherever_it_is_entered(tokenizer: Tokenizer) -> None:
    class Long(TextList):
        def sample(self, index: int) -> Sample:
            return Sample("long", tuple(Said(word, learnt=bool(number % 2)) for number in range(2000)
                                        for word in [("seven" if number % 2 else "violet")]))

    found = TextBatches(Long(["text"]), DataOptions("texts", batch=4), tokenizer, TOKENS, context=32, seed=0)
    for step in range(5):
        batch = drawn(found, step)
        for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
            learnt = tokenizer.decode([label for label in labels if label != IGNORED_LABEL])
            assert "seven" in learnt
            assert not {"i", "o", "l", "t"} & set(learnt)  # of violet
            assert "violet" in tokenizer.decode(ids)


# The same rows


@pytest.mark.parametrize("repeats", [0.0, 0.25])
def test_any_number_of_parts_makes_the_same_batch(tokenizer: Tokenizer, repeats: float) -> None:
    found = batches(DOCUMENTS, tokenizer, repeats=repeats)
    whole = drawn(found, 3)
    for parts in (2, 4, 8):
        split = [found.draw(3, part, parts).batch for part in reversed(range(parts))][::-1]
        for name in TextBatch._fields:
            assert torch.equal(torch.cat([getattr(part, name) for part in split]), getattr(whole, name)), name


def test_another_process_makes_the_same_batch(tokenizer: Tokenizer) -> None:
    found = batches(DOCUMENTS, tokenizer, repeats=0.5)
    copy = pickle.loads(pickle.dumps(found))
    assert torch.equal(drawn(copy, 5).input_ids, drawn(found, 5).input_ids)
    assert copy.fingerprint() == found.fingerprint()


def test_seed_dataset_and_step_give_other_rows(tokenizer: Tokenizer) -> None:
    rows = [drawn(batches(DOCUMENTS, tokenizer, seed=seed, number=number), step).input_ids.tolist()
            for seed, number, step in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert all(one != other for index, one in enumerate(rows) for other in rows[:index])


def test_a_resumed_run_finds_out_that_data_or_packing_changed(tokenizer: Tokenizer) -> None:
    prints = {str(batches(DOCUMENTS, tokenizer, **options).fingerprint())
              for options in ({}, {"context": 32}, {"repeats": 0.5}, {"batch": 4})}
    assert len(prints | {str(batches(DOCUMENTS[1:], tokenizer).fingerprint())}) == 5


# Repeated segments


@pytest.mark.parametrize(("repeats", "expected"), [(0.0, [0, 0, 0]), (0.25, [2, 2, 2]), (0.2, [1, 2, 1]),
                                                   (1.0, [8, 8, 8])])
def test_the_share_of_repeated_segments_is_exact(tokenizer: Tokenizer, repeats: float, expected: list[int]) -> None:
    found = batches(DOCUMENTS, tokenizer, repeats=repeats)
    assert [int(drawn(found, step).repeated.sum()) for step in range(3)] == expected


def test_repeats_take_no_documents_from_an_epoch(tokenizer: Tokenizer) -> None:
    plain = drawn(batches(DOCUMENTS, tokenizer, batch=4))
    mixed = drawn(batches(DOCUMENTS, tokenizer, batch=8, repeats=0.5))
    assert torch.equal(mixed.input_ids[~mixed.repeated], plain.input_ids)


@pytest.mark.parametrize("length", [16, 24, 64])
def test_all_but_a_segments_first_occurrence_is_learnt(length: int) -> None:
    token_ids = np.arange(1000, 9000)
    sizes = set()
    for seed in range(60):
        ids, labels = repeated_segment(np.random.default_rng(seed), token_ids, length)
        assert len(ids) == len(labels) == length
        assert set(ids) <= set(token_ids.tolist())
        size = sum(label == IGNORED_LABEL for label in labels)
        assert labels[size:] == ids[size:] == [ids[place - size] for place in range(size, length)]
        sizes.add(size)
    assert sizes == set(range(4, min(15, length // 2) + 1))


@pytest.mark.parametrize("length", [65, 130, 257])
def test_a_long_row_has_a_segment_of_its_own_in_each_stretch(length: int) -> None:
    token_ids = np.arange(1000, 9000)
    for seed in range(20):
        ids, labels = repeated_segment(np.random.default_rng(seed), token_ids, length)
        assert len(ids) == len(labels) == length
        segments = []
        for start in range(0, length, STRETCH):
            stretch, wanted = ids[start : start + STRETCH], labels[start : start + STRETCH]
            size = sum(label == IGNORED_LABEL for label in wanted)
            assert wanted[size:] == stretch[size:] == stretch[: len(stretch) - size]
            segments.append(tuple(stretch[:size]))
        assert len(set(segments)) == len(segments)


def test_repeated_segments_hold_no_special_tokens(tokenizer: Tokenizer) -> None:
    ids = drawn(batches(DOCUMENTS, tokenizer, repeats=1.0)).input_ids
    assert int(ids.min()) >= 5  # the five special tokens come first
    assert int(ids.max()) < 300


# Documents that cannot be used


def test_damaged_documents_are_named_and_replaced_by_others(tokenizer: Tokenizer) -> None:
    texts = [None if number % 3 == 0 else text for number, text in enumerate(DOCUMENTS)]
    result = batches(texts, tokenizer).draw(0, 0, 1)
    assert result.error is None
    assert "text 0: is damaged" in result.damaged
    assert result.read == len(result.damaged) + len(result.names)
    assert not set(result.names) & {text.split(":")[0] for text in result.damaged}


def test_documents_without_text_are_passed_over(tokenizer: Tokenizer) -> None:
    result = batches(["", " \n", *DOCUMENTS], tokenizer).draw(0, 0, 1)
    assert (result.error, result.damaged) == (None, ())
    assert not {"text 0", "text 1"} & set(result.names)


@pytest.mark.parametrize("texts", [[None] * 20, [" "] * 20])
def test_a_dataset_of_nothing_usable_is_an_error_that_names_it(tokenizer: Tokenizer, texts: list[str | None]) -> None:
    result = batches(texts, tokenizer).draw(0, 0, 1)
    assert isinstance(result.error, DataError)
    assert str(result.error).startswith("texts: ")
    assert result.batch is None


def test_what_cannot_be_cut_into_batches_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="texts holds no documents"):
        batches([], tokenizer)
    with pytest.raises(DataError, match="no token '<end>'"):
        batches(DOCUMENTS, tokenizer, TokensConfig(eos="<end>"))
    error = batches(DOCUMENTS, tokenizer).draw(0, 0, 3).error
    assert isinstance(error, UsageError)
    assert "a batch of 8 cannot be divided into 3" in str(error)
