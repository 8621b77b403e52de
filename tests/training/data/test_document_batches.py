"""Batches of documents, read back without the code that wrote them: each text stands with its own picture."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_data import captions, level_of, png, write_clip, write_lines
from small_model import small_config, small_flamingo

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.training.data import document_batches
from flamingo_rt.training.data.document_batches import DocumentBatches
from flamingo_rt.training.data.samples import Visual
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.feature_cache import content_key
from flamingo_rt.training.options import DataOptions
from flamingo_rt.training.tokenizer_training import train_tokenizer

CONFIG = replace(small_config(), language=replace(small_config().language, vocab_size=400, context=512))
IMAGE, END = "<image>", "<|endofchunk|>"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Output: number 1 number 2", "Question: which number? Answer: 3"] * 3, 400, CONFIG.tokens)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve captioned pictures: picture i has the level 5 * i and the caption "number i"."""
    return captions(tmp_path_factory.mktemp("captions"), 12)


@pytest.fixture
def batches(tokenizer, folder):
    def make(source=folder, seed=0, number=0, cache=None, config=CONFIG, **options):
        options = DataOptions(str(source), **{"batch": 4, **options})
        return DocumentBatches(open_source(options), options, config, tokenizer, seed, number, cache)

    return make


def read(drawn, tokenizer) -> list[list[tuple[int, str]]]:
    """Each row as (level of the picture, text up to the end of its chunk)."""
    assert drawn.error is None
    batch, rows = drawn.batch, []
    assert batch.missing.tolist() == list(range(len(batch.pixel_values)))
    for row in range(len(batch.input_ids)):
        text = tokenizer.decode(batch.input_ids[row].tolist(), skip_special_tokens=False)
        head, *chunks = text.split(IMAGE)
        assert head == "<bos>"
        assert set(chunks[-1].split("<eos>")[1].split("<pad>")) == {""}
        levels = [level_of(batch.pixel_values[visual, 0]) for visual in batch.rows[row].tolist()]
        rows.append([(level, chunk.split(END)[0]) for level, chunk in zip(levels, chunks, strict=False)])
    return rows


def same(one, other) -> bool:
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True))


def test_captions_stand_with_their_own_pictures(batches, tokenizer) -> None:
    plain = batches()
    for step in range(3):
        drawn = plain.draw(step, 0, 1)
        assert drawn.batch.pixel_values.shape == (4, 1, 3, 32, 32)
        for [(level, text)], name in zip(read(drawn, tokenizer), drawn.names, strict=True):
            assert text == f"Output: number {level // 5}"
            assert name.endswith(f"captions.jsonl:{level // 5 + 1}")


def test_padding_sees_no_picture_and_is_not_learnt(batches, tokenizer, tmp_path) -> None:
    batch = batches(captions(tmp_path, 4, text="number {}" + " and 1" * 9), chunks=(2,), tokens=64).draw(0, 0, 1).batch
    pad = batch.input_ids == tokenizer.token_to_id("<pad>")
    assert batch.media_index[pad].eq(0).all()
    assert batch.labels[pad].eq(-100).all()
    assert batch.media_index[:, 0].eq(0).all()


def test_a_batch_is_a_function_of_seed_dataset_and_step(batches) -> None:
    first = batches().draw(5, 0, 1).batch
    assert same(first, batches().draw(5, 0, 1).batch)
    assert same(first, pickle.loads(pickle.dumps(batches())).draw(5, 0, 1).batch)
    for other in (batches(seed=1).draw(5, 0, 1), batches(number=1).draw(5, 0, 1), batches().draw(6, 0, 1)):
        assert not torch.equal(first.pixel_values, other.batch.pixel_values)


@pytest.mark.parametrize("parts", [2, 3, 6])
@pytest.mark.parametrize("chunks", [(1,), (1, 3)])
def test_parts_together_are_the_whole_batch_without_duplicates(batches, tokenizer, parts, chunks) -> None:
    plain = batches(batch=6, chunks=chunks)
    for step in range(3):
        whole = plain.draw(step, 0, 1)
        some = [plain.draw(step, part, parts) for part in range(parts)]
        assert [row for part in some for row in read(part, tokenizer)] == read(whole, tokenizer)
        assert [name for part in some for name in part.names] == list(whole.names)
        assert sum(part.read for part in some) == whole.read
        assert sum(int((part.batch.labels != -100).sum()) for part in some) == int((whole.batch.labels != -100).sum())


def test_a_batch_that_cannot_be_divided_is_refused_with_the_figures(batches) -> None:
    error = batches().draw(0, 0, 3).error
    assert isinstance(error, UsageError)
    assert "a batch of 4 cannot be divided into 3 equal parts" in str(error)


def test_every_sample_is_drawn_once_an_epoch(batches) -> None:
    plain = batches()
    epochs = [[name for step in range(3 * epoch, 3 * epoch + 3) for name in plain.draw(step, 0, 1).names]
              for epoch in range(3)]
    assert all(len(set(names)) == len(names) == 12 for names in epochs)
    assert len({tuple(names) for names in epochs}) == 3


def test_documents_of_several_pairs_come_in_every_number_and_draw_each_sample_once(batches, tokenizer) -> None:
    plain = batches(batch=2, chunks=(1, 2, 3))
    drawn = [plain.draw(step, 0, 1) for step in range(12)]
    rows = [read(step, tokenizer) for step in drawn]
    lengths = [{len(row) for row in step} for step in rows]
    assert all(len(found) == 1 for found in lengths)
    for start in range(0, 12, 3):
        assert sorted(min(found) for found in lengths[start : start + 3]) == [1, 2, 3]
    assert len({tuple(min(found) for found in lengths[start : start + 3]) for start in range(0, 12, 3)}) > 1
    assert set(Counter(name for step in drawn for name in step.names).values()) == {4}  # 48 pairs of 12 samples
    for step in rows:
        for row in step:
            assert len(set(row)) == len(row)
            assert all(text == f"Output: number {level // 5}" for level, text in row)


def test_a_document_repeats_no_sample_across_the_end_of_an_epoch(batches, tokenizer, tmp_path) -> None:
    plain = batches(captions(tmp_path, 5), batch=1, chunks=(4,))
    for step in range(40):
        [row] = read(plain.draw(step, 0, 1), tokenizer)
        assert len(set(row)) == 4


def test_a_document_holds_as_many_pairs_as_fit(batches, tokenizer, folder) -> None:
    one = batches().draw(0, 0, 1).batch.input_ids.shape[1]
    plain = batches(chunks=(3,), tokens=2 * one)
    for step in range(3):
        drawn = plain.draw(step, 0, 1)
        assert drawn.batch.input_ids.shape[1] <= 2 * one
        rows = read(drawn, tokenizer)
        assert {len(row) for row in rows} <= {1, 2}
        used = [f"{folder}/captions.jsonl:{level // 5 + 1}" for row in rows for level, _ in row]
        assert list(drawn.names) == used  # the pair that did not fit is not named


def test_more_pairs_in_a_document_than_there_are_or_the_model_takes_are_refused(batches, tmp_path) -> None:
    with pytest.raises(UsageError, match="chunks asks for 7 pairs in a document, of 12 samples, and the model takes 6"):
        batches(chunks=(1, 7))
    with pytest.raises(UsageError, match="of 2 samples"):
        batches(captions(tmp_path, 2), chunks=(3,))


def test_more_images_in_a_window_than_the_model_takes_are_refused(batches, pages) -> None:
    assert batches(pages, images=6)
    with pytest.raises(UsageError, match="images allows 7 pictures in a window of a page, and the model takes 6"):
        batches(pages, images=7)


def test_a_page_without_text_is_passed_over_and_not_damaged(batches, tokenizer, tmp_path) -> None:
    (tmp_path / "1.png").write_bytes(png(5))
    rows = [{"texts": [None], "images": ["1.png"]}, {"texts": [None, "number 1"], "images": ["1.png", None]}]
    drawn = batches(write_lines(tmp_path / "pages.jsonl", rows), next_image=0.0).draw(0, 0, 1)
    assert read(drawn, tokenizer) == [[(5, "number 1")]] * 4
    assert drawn.damaged == ()


def damage(folder, count=1) -> None:
    """Pictures that cannot be decoded in place of the first ``count``."""
    for index in range(count):
        (folder / f"{index}.png").write_bytes(png(index)[:50])


def test_a_damaged_sample_is_named_and_replaced_always_by_the_same(batches, tokenizer, tmp_path) -> None:
    whole = [batches(captions(tmp_path, 12)).draw(step, 0, 1) for step in range(3)]
    damage(tmp_path)
    first, again = ([batches(tmp_path).draw(step, 0, 1) for step in range(3)] for _ in range(2))
    assert all(same(one.batch, other.batch) for one, other in zip(first, again, strict=True))
    [reason] = [text for drawn in first for text in drawn.damaged]
    assert reason.startswith(f"{tmp_path}/captions.jsonl:1: 0.png cannot be decoded")
    assert sum(drawn.read for drawn in first) == 13
    before, after = ([name for drawn in steps for name in drawn.names] for steps in (whole, first))
    changed = [place for place in range(12) if before[place] != after[place]]
    assert [before[place].rsplit(":")[1] for place in changed] == ["1"]


def test_a_dataset_of_damaged_samples_stops(batches, tmp_path) -> None:
    captions(tmp_path, 40)
    damage(tmp_path, 40)
    drawn = batches(tmp_path).draw(0, 0, 1)
    assert isinstance(drawn.error, DataError)
    assert "16 samples in a row are damaged; the last: " in str(drawn.error)
    assert (drawn.batch, drawn.read, len(drawn.damaged)) == (None, 16, 16)


def test_a_dataset_with_nothing_to_learn_stops_and_is_not_damaged(batches, tmp_path) -> None:
    drawn = batches(captions(tmp_path, 3, text="number {} " + "number 1 " * 9), tokens=12, name="long").draw(0, 0, 1)
    assert str(drawn.error).startswith("long: 64 draws in a row, of 3 samples, hold nothing to learn; the last: ")
    assert "and a document at most 12" in str(drawn.error)
    assert drawn.damaged == ()


def test_samples_with_nothing_to_learn_are_passed_over(batches, tokenizer, tmp_path) -> None:
    lines = [{"image": f"{i}.png", "text": f"number {i}" if i % 2 else "number 1 " * 20} for i in range(12)]
    write_lines(captions(tmp_path, 12) / "captions.jsonl", lines)
    drawn = batches(tmp_path, tokens=20, batch=12).draw(0, 0, 1)
    assert {level // 5 % 2 for [(level, _)] in read(drawn, tokenizer)} == {1}
    assert drawn.damaged == ()
    assert drawn.read > 12


def test_clips_have_equally_many_frames(batches, tmp_path) -> None:
    for index, length in enumerate((2, 9)):
        write_clip(tmp_path / f"{index}.avi", [30 * index + 20] * length)
    write_lines(tmp_path / "captions.jsonl", [{"video": f"{i}.avi", "text": f"number {i}"} for i in range(2)])
    batch = batches(tmp_path, batch=2, frames=3).draw(0, 0, 1).batch
    assert batch.pixel_values.shape == (2, 3, 3, 32, 32)
    assert len({round(level_of(frame), -1) for frame in batch.pixel_values[0]}) == 1


@pytest.fixture
def pages(tmp_path):
    for index in range(12):
        (tmp_path / f"{index}.png").write_bytes(png(5 * index))
    rows = []
    for first in range(0, 12, 3):
        parts = [(f"number {first + index}", f"{first + index}.png") for index in range(first // 3)]
        rows.append({"texts": [part for text, _ in parts for part in (None, text)] or ["number 1"],
                     "images": [part for _, image in parts for part in (image, None)] or [None]})
    return write_lines(tmp_path / "pages.jsonl", rows)


def test_texts_of_pages_stand_with_their_own_pictures(batches, tokenizer, pages) -> None:
    drawn = batches(pages, batch=8, next_image=0.0).draw(0, 0, 1)
    rows = read(drawn, tokenizer)
    assert {len(row) for row in rows} == {1, 2, 3}  # the page without a picture is not drawn
    assert all(text == f"number {level // 5}" for row in rows for level, text in row)
    batch = drawn.batch
    assert batch.rows.shape == (8, 3)
    assert batch.rows[[len(row) < 3 for row in rows], 2].eq(0).all()
    seen = (batch.input_ids == tokenizer.token_to_id(IMAGE)).cumsum(1)
    inside = batch.input_ids != tokenizer.token_to_id("<pad>")
    assert torch.equal(batch.media_index[inside], seen[inside])


def test_a_model_reads_a_batch_and_its_loss_is_a_number(batches, pages) -> None:
    model = small_flamingo(CONFIG)
    for drawn in (batches(chunks=(2,)).draw(0, 0, 1), batches(pages, next_image=1.0).draw(0, 0, 1)):
        batch = drawn.batch.to(torch.device("cpu"))
        _, loss = model(batch.input_ids, batch.media_index, batch.pixel_values, batch.rows, batch.labels)
        assert torch.isfinite(loss)


class Cache:
    """Features of some pictures in memory: full of the picture's number."""

    def __init__(self, folder, numbers) -> None:
        shape = (1, CONFIG.vision.feature_count, CONFIG.vision.width)
        self.features = {
            content_key(Visual("image", folder / f"{number}.png", ""), 8, 1.0): np.full(shape, number, np.float16)
            for number in numbers
        }

    def read(self, key, frames):
        assert frames == 1
        return self.features.get(key)


def test_cached_pictures_are_not_decoded(batches, tokenizer, tmp_path, monkeypatch) -> None:
    captions(tmp_path, 4)
    decoded, right = [], document_batches.visual_pixels
    monkeypatch.setattr(document_batches, "visual_pixels",
                        lambda visual, *rest: decoded.append(visual) or right(visual, *rest))
    plain = batches(tmp_path).draw(0, 0, 1)
    order = [level // 5 for [(level, _)] in read(plain, tokenizer)]
    assert plain.batch.cached is None
    assert plain.batch.keys == ("",) * 4
    decoded.clear()
    drawn = batches(tmp_path, cache=Cache(tmp_path, (0, 2))).draw(0, 0, 1).batch
    assert len(decoded) == 2
    assert [order[place] for place in drawn.missing.tolist()] == [number for number in order if number % 2]
    assert torch.equal(drawn.pixel_values, plain.batch.pixel_values[drawn.missing])
    assert drawn.cached.shape == (4, 1, CONFIG.vision.feature_count, CONFIG.vision.width)
    assert drawn.cached[:, 0, 0, 0].tolist() == [0 if number % 2 else number for number in order]
    assert len(set(drawn.keys)) == 4
    every = batches(tmp_path, cache=Cache(tmp_path, range(4))).draw(0, 0, 1).batch
    assert every.pixel_values.shape == (0, 1, 3, 32, 32)
    assert len(decoded) == 2


def test_augmented_pictures_differ_by_epoch_and_pass_the_cache_by(batches, folder) -> None:
    changed = batches(augment=True, batch=12)
    one, two, again = (changed.draw(step, 0, 1).batch.pixel_values for step in (0, 1, 0))
    plain = batches(batch=12).draw(0, 0, 1).batch.pixel_values
    assert torch.equal(one, again)
    assert not torch.equal(one, plain)
    assert len({pixels.numpy().tobytes() for pixels in (*one, *two)}) > 12
    cached = batches(augment=True, batch=12, cache=Cache(folder, range(12))).draw(0, 0, 1).batch
    assert torch.equal(cached.pixel_values, one)
    assert cached.cached is None


def test_texts_without_pictures_are_refused(batches, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(UsageError, match="train language"):
        batches(tmp_path)


def test_a_fingerprint_changes_with_what_changes_a_batch(batches, tmp_path) -> None:
    plain = batches().fingerprint()
    assert plain == batches(weight=0.3, name="other").fingerprint()
    others = [batches(tokens=64), batches(batch=2), batches(prompt=""), batches(chunks=(1, 2)), batches(augment=True),
              batches(captions(tmp_path, 12, text="{}"))]
    assert len({str(plain), *(str(other.fingerprint()) for other in others)}) == 7
