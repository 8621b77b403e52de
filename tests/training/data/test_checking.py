"""A checked source: each figure of the report is counted by hand, and each kind of fault is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from made_data import captions, pairs, png, tar, write_clip, write_lines
from small_model import small_config

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.training.data import contact_sheet
from flamingo_rt.training.data.checking import DataReport, Spread, check_source
from flamingo_rt.training.data.contact_sheet import SheetEntry, draw_sheet, write_sheet
from flamingo_rt.training.data.token_lengths import DocumentLength, TextLength
from flamingo_rt.training.options import DataOptions
from flamingo_rt.training.tokenizer_training import train_tokenizer

CONFIG = replace(small_config(), language=replace(small_config().language, vocab_size=400, context=512))
TEXTS = ["Output: number 1 number 2", "a picture of a cat"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, CONFIG.tokens)


def checked(source: object, **options) -> DataReport:
    return check_source(DataOptions(str(source), **options))


def measured(source: object, tokenizer, config=CONFIG, **options) -> DataReport:
    given = DataOptions(str(source), **options)
    return check_source(given, lambda kind: DocumentLength(config, tokenizer, given, kind))


def names(problems) -> list[tuple[str, str]]:
    return [(Path(problem.name).name, problem.reason) for problem in problems]


def test_pictures_and_captions_are_counted_and_measured(tmp_path) -> None:
    rows = []
    for number, size in enumerate([(10, 10), (40, 20), (20, 20), (8, 64), (30, 30)]):
        (tmp_path / f"{number}.png").write_bytes(png(number, size))
        rows.append({"image": f"{number}.png", "text": "x" * (number + 1)})
    write_lines(tmp_path / "captions.jsonl", rows)
    report = checked(tmp_path)
    assert (report.kind, report.samples, report.damaged, report.nothing_to_learn) == ("pairs", 5, (), ())
    visuals = report.visuals
    assert (visuals.count, visuals.different) == (5, 5)
    assert visuals.file_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.png"))
    assert visuals.sizes == ((10, 10), (8, 64), (30, 30))
    assert visuals.in_a_sample == Spread(1, 1, 1, 1)
    assert report.texts.characters == Spread(1, 3, 5, 5)
    assert report.texts.tokens is report.texts.limit is report.texts.too_long is None
    assert (report.texts.different, report.texts.commonest, report.texts.commonest_count) == (5, "x", 1)
    assert (report.repeated, report.repeats, report.classes) == (0, (), {})


def test_every_damaged_sample_is_named_with_its_reason(tmp_path) -> None:
    captions(tmp_path, 8)
    (tmp_path / "2.png").write_bytes(png(2)[:60])
    (tmp_path / "3.png").write_text("no picture")
    rows = [{"image": f"{number}.png", "text": "a"} for number in range(8)]
    rows[4]["text"] = " "
    rows[5]["image"] = "gone.png"
    write_lines(tmp_path / "captions.jsonl", [*rows[:7], "{"])
    report = checked(tmp_path)
    assert report.samples == 8
    (cut, none, empty, gone, line) = names(report.damaged)
    assert cut[0] == "captions.jsonl:3"
    assert "2.png" in cut[1]
    assert none[0] == "captions.jsonl:4"
    assert empty == ("captions.jsonl:5", "text is empty")
    assert gone[0] == "captions.jsonl:6"
    assert "does not exist" in gone[1]
    assert line[0] == "captions.jsonl:8"
    assert (report.empty_texts, report.damaged_share) == (1, 5 / 8)
    assert report.visuals.count == 3


def test_equal_pictures_equal_texts_and_equal_samples_are_told_apart(tmp_path) -> None:
    shown = [(1, "a"), (1, "b"), (2, "b"), (3, "b"), (2, "b"), (1, "a"), (2, "b")]
    members = [member for number, (level, text) in enumerate(shown)
               for member in ((f"{number}.png", png(level)), (f"{number}.txt", text.encode()))]
    (tmp_path / "x.tar").write_bytes(tar(members))
    report = checked(tmp_path)
    assert (report.visuals.count, report.visuals.different) == (7, 3)
    assert (report.texts.different, report.texts.commonest, report.texts.commonest_count) == (2, "b", 5)
    assert report.repeated == 3
    assert [[Path(name).name for name in group] for group in report.repeats] == [["0", "5"], ["2", "4", "6"]]


def test_a_question_and_its_answer_are_one_text(tmp_path) -> None:
    captions(tmp_path, 2)
    write_lines(tmp_path / "captions.jsonl", [
        {"image": "0.png", "question": "Is it?", "answer": "yes"}, {"image": "0.png", "question": "Is it?",
                                                                    "answer": "no"}])
    report = checked(tmp_path)
    assert (report.texts.different, report.repeated, report.visuals.different) == (2, 0, 1)
    assert report.texts.characters.most == len("Is it?\nyes")


def test_the_pictures_of_each_class_are_counted(tmp_path) -> None:
    for name, count in (("red_fox", 2), ("cat", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.png").write_bytes(png(10 * number))
    report = checked(tmp_path)
    assert list(report.classes.items()) == [("cat", 3), ("red fox", 2)]
    assert (report.texts.commonest, report.texts.commonest_count) == ("a picture of cat", 3)
    assert report.visuals.different == 3


def test_clips_are_decoded_and_those_that_cannot_be_are_damaged(tmp_path) -> None:
    write_clip(tmp_path / "a.avi", [10, 20, 30])
    (tmp_path / "b.avi").write_bytes(b"RIFF" + b"x" * 100)
    write_lines(tmp_path / "captions.jsonl", [{"video": f"{name}.avi", "text": "grey"} for name in "ab"])
    report = checked(tmp_path)
    assert report.kind == "videos"
    assert (report.visuals.count, report.visuals.sizes) == (1, ((32, 32),) * 3)
    assert [name for name, _ in names(report.damaged)] == ["captions.jsonl:2"]


def test_pages_without_pictures_or_without_text_hold_nothing_to_learn(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    write_lines(tmp_path / "pages.jsonl", [
        {"texts": ["one", None, None], "images": [None, "a.png", "a.png"]}, {"texts": ["two"], "images": [None]},
        {"texts": [None], "images": ["a.png"]}])
    report = checked(tmp_path)
    assert names(report.nothing_to_learn) == [("pages.jsonl:2", "has no picture"), ("pages.jsonl:3", "has no text")]
    assert report.damaged == ()
    assert report.visuals.in_a_sample == Spread(2, 2, 2, 2)


def test_the_rest_of_a_shard_that_is_cut_short_is_damaged(tmp_path) -> None:
    whole = tar(pairs(4))
    (tmp_path / "x.tar").write_bytes(whole[: 7 * 1024 - 100])  # within the fourth picture
    report = checked(tmp_path)
    assert report.visuals.count == 3
    assert "cut short" in report.damaged[-1].reason


# --- Tokens


def test_more_images_than_the_model_takes_are_no_fault_of_the_pages(tmp_path, tokenizer) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    write_lines(tmp_path / "pages.jsonl", [{"texts": [None, "one"], "images": ["a.png", None]}])
    with pytest.raises(UsageError, match="the model takes 6: lower images"):
        measured(tmp_path, tokenizer, images=7)


def test_a_tokenizer_counts_the_tokens_of_texts(tmp_path, tokenizer) -> None:
    captions(tmp_path, 12, text="number {0} " * 3)
    options = DataOptions(str(tmp_path), tokens=8)
    report = check_source(options, lambda kind: TextLength(tokenizer, options))
    lengths = sorted(len(tokenizer.encode(f"number {number} " * 3).ids) for number in range(12))
    assert lengths[0] < lengths[-1]
    assert (report.texts.tokens.least, report.texts.tokens.most) == (lengths[0], lengths[-1])
    assert (report.texts.limit, report.texts.too_long) == (8, sum(length > 8 for length in lengths))
    assert report.texts.too_long > 0
    assert report.nothing_to_learn == ()


def test_a_model_counts_the_tokens_of_whole_documents(tmp_path, tokenizer) -> None:
    captions(tmp_path, 3, text="cat " * 9)
    tokens = CONFIG.tokens
    text = f"{tokens.bos}{tokens.image}Output: {('cat ' * 9).strip()}{tokens.end_of_chunk}{tokens.eos}"
    whole = len(tokenizer.encode(text).ids)
    assert measured(tmp_path, tokenizer).texts.tokens == Spread(*[whole] * 4)
    assert measured(tmp_path, tokenizer, tokens=whole).texts.too_long == 0
    report = measured(tmp_path, tokenizer, tokens=whole - 1)
    assert (report.texts.limit, report.texts.too_long, report.damaged) == (whole - 1, 3, ())
    short = replace(CONFIG, language=replace(CONFIG.language, context=16))
    assert measured(tmp_path, tokenizer, short).texts.limit == 16  # the model's context


@pytest.mark.parametrize(("next_image", "reason"), [(0.0, "a text sees a picture"), (0.5, ""), (1.0, "")])
def test_a_page_whose_pictures_follow_all_texts_is_of_use_in_one_direction_alone(
    tmp_path, tokenizer, next_image, reason
) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    write_lines(tmp_path / "pages.jsonl", [{"texts": ["number 1", None], "images": [None, "a.png"]}])
    problems = names(measured(tmp_path, tokenizer, next_image=next_image).nothing_to_learn)
    assert [name for name, _ in problems] == (["pages.jsonl:1"] if reason else [])
    assert all(reason in said for _, said in problems)


def test_a_text_that_spells_a_special_token_is_damaged_for_a_model(tmp_path, tokenizer) -> None:
    captions(tmp_path, 1, text=f"a {CONFIG.tokens.image} b")
    assert checked(tmp_path).damaged == ()
    (problem,) = measured(tmp_path, tokenizer).damaged
    assert "which are put around texts" in problem.reason


# --- What cannot be checked


def test_a_source_that_changes_while_it_is_read_is_an_error(tmp_path) -> None:
    captions(tmp_path, 2)
    file = tmp_path / "captions.jsonl"

    class Changing:
        limit = 100

        def __call__(self, sample) -> int:
            if sample.name.endswith(":2"):
                file.write_text("x" * 200)
            return 1

    with pytest.raises(DataError, match="changed while the data was checked"):
        check_source(DataOptions(str(tmp_path)), lambda kind: Changing())


def test_a_source_that_is_missing_is_an_error(tmp_path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        checked(tmp_path / "gone")


# --- The contact sheet


def test_the_sheet_gets_evenly_taken_samples_without_the_damaged_ones(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.training.data.checking.ENTRIES", 4)
    captions(tmp_path, 12)
    (tmp_path / "3.png").write_bytes(b"x")
    sheet: list[SheetEntry] = []
    check_source(DataOptions(str(tmp_path)), sheet=sheet)
    assert [entry.text for entry in sheet] == ["number 0", "number 6", "number 9"]
    assert [np.asarray(entry.pictures[0])[0, 0, 0] for entry in sheet] == [0, 30, 45]


def test_a_page_has_numbers_where_its_pictures_stand(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    write_lines(tmp_path / "pages.jsonl", [
        {"texts": ["one", None, None, "two"], "images": [None, "a.png", "a.png", None]}])
    sheet: list[SheetEntry] = []
    check_source(DataOptions(str(tmp_path)), sheet=sheet)
    assert sheet[0].text == "one [1] [2] two"
    assert len(sheet[0].pictures) == 2


def test_a_sheet_shows_each_picture_above_its_text(tmp_path) -> None:
    entries = [SheetEntry(f"x:{number}", "a text", (PIL.Image.new("RGB", (100, 50), (level, 0, 0)),))
               for number, level in enumerate((90, 160, 250))]
    write_sheet(tmp_path / "sheet.png", entries)
    with PIL.Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    for number, level in enumerate((90, 160, 250)):
        found = np.argwhere((pixels == (level, 0, 0)).all(axis=-1))
        assert len(found) == 100 * 50
        left, right, bottom = found[:, 1].min(), found[:, 1].max(), found[:, 0].max()
        assert (number == 0) == (left < contact_sheet.BOX[0])
        below = pixels[bottom + 1 :, left : right + 1]
        assert (below == contact_sheet.INK).all(axis=-1).any()


@pytest.mark.parametrize("text", ["", "word " * 5000, "x" * 5000, "a\x1b[2Jb\u202e", "\U0001f680 \u732b\n"],
                         ids=["empty", "long", "one word", "control characters", "other scripts"])
def test_any_text_fits_on_a_sheet(text) -> None:
    entries = [SheetEntry("folder/" * 60, text, tuple(PIL.Image.new("RGB", (40, 40)) for _ in range(pictures)))
               for pictures in (0, 1, 30)]
    sheet = draw_sheet(entries)
    assert sheet.width <= 1400
    assert sheet.height <= 1200
