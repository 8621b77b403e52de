"""Sources of training data: the kind is found out, and whatever cannot be used is named."""

from __future__ import annotations

import codecs
import errno
import io
import json
import pickle

import pytest
from made_data import captions, pairs, png, tar, write_clip, write_lines
from opened_sources import every, faults, opened, said, shards

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.processing import input_files
from flamingo_rt.training.data.sources import line_kind
from flamingo_rt.training.options import DataOptions

PAGE = {"texts": ["first", None, "second"], "images": [None, "a.png", None]}
MMC4 = {"text_list": ["one", "two", "three"], "image_info": [
    {"image_name": "b.png", "matched_text_index": 1}, {"image_name": "a.png", "matched_text_index": 1}]}


# --- JSONL files and folders


def test_captions_and_questions_of_pictures(tmp_path) -> None:
    captions(tmp_path, 2)
    path = write_lines(tmp_path / "captions.jsonl", [
        {"image": "0.png", "text": "a cat"}, "", {"image": "1.png", "question": "Is it?", "answer": "yes"}])
    for source in (opened(tmp_path), opened(path)):
        assert (source.kind, len(source)) == ("pairs", 2)
        assert every(source) == [["<0.png>", "a cat"], ["<1.png>", "[Is it?]", "yes"]]
        assert source.sample(0).segments[0].content == tmp_path / "0.png"
        assert source.sample(1).name == f"{path}:3"  # blank lines count


def test_clips(tmp_path) -> None:
    write_clip(tmp_path / "a.avi", [1, 2])
    write_lines(tmp_path / "captions.jsonl", [{"video": "a.avi", "text": "it moves"}])
    assert opened(tmp_path).kind == "videos"
    assert every(opened(tmp_path)) == [["<a.avi>", "it moves"]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"image": "0.png", "text": ', "is not valid JSON: Expecting value, at character"),
        ('{"image": "0.png", "text": "a", "text": "b"}', "appears twice"),
        ('["image"]', "not a JSON object"),
        ({"image": "0.png", "txt": "a"}, "has the keys 'image, txt'"),
        ({"image": "0.png", "text": "a", "license": "b"}, "has the keys"),
        ({"image": "0.png", "question": "a"}, "has the keys"),
        ({"image": "0.png", "text": ""}, "text is empty"),
        ({"image": "0.png", "text": " \n"}, "text is empty"),
        ({"image": "0.png", "text": 3}, "text is 3, not a text"),
        ('{"image": "0.png", "text": "\\ud800"}', "not valid Unicode"),
        ({"image": "0.png", "text": "a" * 100_001}, "more than 100,000"),
        ({"image": "0.png", "question": "why", "answer": ""}, "answer is empty"),
        ({"image": "none.png", "text": "a"}, "does not exist"),
        ({"image": "", "text": "a"}, "not the name of a file"),
        ({"image": ["0.png"], "text": "a"}, "not the name of a file"),
        ({"image": "../outside.png", "text": "a"}, "leads out"),
        ({"image": "inside/../../outside.png", "text": "a"}, "leads out"),
        ({"image": "/etc/passwd", "text": "a"}, "absolute"),
        ({"image": "linked.png", "text": "a"}, "a link that leads out"),
        ({"image": "linked/outside.png", "text": "a"}, "a link that leads out"),
        ({"image": "circle.png", "text": "a"}, "does not exist"),
        ({"image": "inside", "text": "a"}, "is no file"),
        ({"image": "a\0b.png", "text": "a"}, "does not exist"),
        ({"image": "n" * 5000, "text": "a"}, "does not exist"),
        ('{"\\u0069mage": "0.png", "\\u0074ext": "a", "x": 1}', "has the keys"),
    ],
)
def test_a_damaged_line_is_named_with_its_reason(tmp_path, line, reason) -> None:
    (tmp_path / "outside.png").write_bytes(png(1))
    folder = captions(tmp_path / "data", 1)
    (folder / "inside").mkdir()
    (folder / "linked.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "circle.png").symlink_to(folder / "circle.png")
    path = write_lines(folder / "captions.jsonl", [{"image": "0.png", "text": "whole"}, line])
    source = opened(folder)
    assert said(source.sample(0)) == ["<0.png>", "whole"]
    [fault] = faults(source)
    assert fault.startswith(f"{path}:2: ")
    assert reason in fault


def test_links_inside_the_folder_are_followed(tmp_path) -> None:
    folder = captions(tmp_path / "data", 1)
    (folder / "again.png").symlink_to(folder / "0.png")
    (tmp_path / "link").symlink_to(folder)
    write_lines(folder / "captions.jsonl", [{"image": "again.png", "text": "a"}])
    assert faults(opened(tmp_path / "link")) == []


def test_a_line_without_end_is_one_damaged_sample(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.training.data.json_lines.MOST_LINE", 100)
    captions(tmp_path, 1)
    line = {"image": "0.png", "text": "a"}
    write_lines(tmp_path / "captions.jsonl", [line, {"image": "0.png", "text": "a" * 1000}, line])
    source = opened(tmp_path)
    assert len(source) == 3
    [fault] = faults(source)
    assert "captions.jsonl:2: the line has more than" in fault


def test_control_characters_of_a_line_are_not_printed(tmp_path) -> None:
    captions(tmp_path, 1)
    write_lines(tmp_path / "captions.jsonl", [{"image": "\x1b[2J.png", "text": "a"}, {"image": "a", "\x1b]": 1}])
    assert not any("\x1b" in fault for fault in faults(opened(tmp_path)))


# --- Class folders


def test_class_folders_become_captions_by_a_template(tmp_path) -> None:
    for name, count in (("golden_retriever", 2), ("sea-horse/deep", 1)):
        (tmp_path / name).mkdir(parents=True)
        for index in range(count):
            (tmp_path / name / f"{index}.PNG").write_bytes(png(index))
    (tmp_path / "golden_retriever" / "notes.md").write_text("no picture")
    source = opened(tmp_path)
    assert (source.kind, len(source)) == ("pairs", 3)
    assert every(source)[1:] == [["<golden_retriever/1.PNG>", "a picture of golden retriever"],
                                 ["<sea-horse/deep/0.PNG>", "a picture of sea horse"]]
    assert [source.sample(index).label for index in range(3)] == ["golden retriever"] * 2 + ["sea horse"]
    assert every(opened(tmp_path, template="Class: {}."))[0][1] == "Class: golden retriever."


def test_hidden_files_and_folders_are_no_data(tmp_path) -> None:
    for name in ("cat/1.png", "cat/._1.png", ".thumbnails/2.png", "cat/.cache/3.png", ".texts.txt", "._captions.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    (tmp_path / ".link").symlink_to(tmp_path)
    assert every(opened(tmp_path)) == [["<cat/1.png>", "a picture of cat"]]


def test_links_in_class_folders_do_not_lead_out(tmp_path) -> None:
    (tmp_path / "outside.png").write_bytes(png(1))
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "1.png").write_bytes(png(1))
    (tmp_path / "data" / "cat" / "2.png").symlink_to(tmp_path / "outside.png")
    [fault] = faults(opened(tmp_path / "data"))
    assert "cat/2.png: the picture 'cat/2.png' is a link that leads out" in fault
    (tmp_path / "data" / "dog").symlink_to(tmp_path)
    with pytest.raises(DataError, match="dog is a link to a folder"):
        opened(tmp_path / "data")


def test_a_template_names_the_class_once() -> None:
    with pytest.raises(UsageError, match=r"'a picture' holds \{\} 0 times"):
        DataOptions("x", template="a picture")


# --- Pages


def test_pages_of_both_forms(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(7))
    source = opened(write_lines(tmp_path / "pages.jsonl", [PAGE, MMC4, {**PAGE, "metadata": {"license": "x"}}]))
    assert (source.kind, len(source)) == ("pages", 3)
    assert every(source)[:2] == [["first", "<a.png>", "second"], ["one", "<b.png>", "<a.png>", "two three"]]
    assert len(opened(tmp_path)) == 3


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"texts": ["a"], "images": []}, "1 texts and 0 images"),
        ({"texts": [None], "images": [None]}, "neither a text and an image at place 0"),
        ({"texts": ["a"], "images": ["a.png"]}, "both a text and an image at place 0"),
        ({"texts": [3], "images": [None]}, "texts holds 3"),
        ({"texts": "a", "images": [None]}, "texts is 'a', not a list"),
        ({"texts": [None, "a"], "images": ["../a.png", None]}, "leads out"),
        ({"texts": [None, "a"], "images": [7, None]}, "an image is 7"),
        ({"texts": ["a"] * 10_001, "images": [None] * 10_001}, "10,001 entries"),
        ({"texts": ["a" * 1_000_001], "images": [None]}, "characters, more than"),
        ({"text_list": ["a"]}, "image_info is None"),
        ({"text_list": ["a", 3], "image_info": []}, "something else than texts"),
        ({"text_list": ["a"], "image_info": [3]}, "image_info holds 3"),
        ({"text_list": ["a"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]}, "not one of the 1"),
        ({"text_list": ["a"], "image_info": [{"image_name": "a.png", "matched_text_index": -1}]}, "not one of"),
        ({"text_list": ["a"], "image_info": [{"image_name": "a.png", "matched_text_index": True}]}, "not one of"),
        ({"text_list": ["a"], "image_info": [{"image_name": "none.png", "matched_text_index": 0}]}, "does not exist"),
        ('{"texts": broken', "not valid JSON"),
    ],
)
def test_a_damaged_page_is_named_with_its_reason(tmp_path, row, reason) -> None:
    (tmp_path / "a.png").write_bytes(png(7))
    source = opened(write_lines(tmp_path / "pages.jsonl", [PAGE, row]))
    [fault] = faults(source)
    assert "pages.jsonl:2: " in fault
    assert reason in fault


def test_a_page_of_pictures_alone_or_of_texts_alone_is_not_damaged(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(png(7))
    source = opened(write_lines(tmp_path / "pages.jsonl", [
        {"texts": [None, " "], "images": ["a.png", None]}, {"texts": ["a"], "images": [None]}]))
    assert every(source) == [["<a.png>"], ["a"]]


# --- Texts


def test_texts_of_files_and_lines(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst line\r\nsecond\n\nmore")
    write_lines(tmp_path / "b.jsonl", [{"text": "one", "url": "x"}, {"text": ""}, {"text": 'three "image": 3'}])
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe")
    source = opened(tmp_path)
    assert (source.kind, len(source)) == ("text", 6)
    assert said(source.sample(0)) == ["first line\nsecond\n\nmore"]
    assert [said(source.sample(index)) for index in (1, 3)] == [["one"], ['three "image": 3']]
    assert [fault.rsplit("/", 1)[1] for fault in faults(source)] == [
        "b.jsonl:2: text is empty", "c.txt: the text is empty", "d.txt: is no UTF-8 at its byte 0: convert it"]
    assert every(opened(tmp_path / "a.txt")) == [["first line\nsecond\n\nmore"]]


@pytest.mark.parametrize("between", ["\n\n", "\r\n\r\n", "\n", "é"])
def test_a_long_text_is_cut_into_pieces_that_are_whole_together(tmp_path, between) -> None:
    words = between.join(f"wörd{number:05}" for number in range(20_000))
    (tmp_path / "long.txt").write_bytes(words.encode())
    source = opened(tmp_path / "long.txt")
    texts = [said(source.sample(index))[0] for index in range(len(source))]
    assert len(texts) >= len(words.encode()) // 64_000
    assert all(len(text.encode()) <= 64_000 for text in texts)
    assert "".join(texts) == words.replace("\r\n", "\n")
    if between != "é":
        assert all(text.startswith("wörd") for text in texts)


# --- What cannot be opened


def test_several_kinds_are_refused_with_what_was_found(tmp_path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", [{"image": "a", "text": "b"}] * 2 + [{"video": "a", "text": "b"}])
    with pytest.raises(DataError, match=r"2 of pairs and 1 of videos"):
        opened(lines)
    clip = write_clip(tmp_path / "a.avi", [1]).read_bytes()
    mixed = shards(tmp_path / "mixed", tar([*pairs(2), ("9.avi", clip), ("9.txt", b"a")]))
    with pytest.raises(DataError, match=r"2 of pairs \(.*000000\) and 1 of videos \(.*9\)"):
        opened(mixed)
    (mixed / "notes.txt").write_text("a text")
    with pytest.raises(DataError, match=r"holds \.tar shards and \.txt and \.jsonl files: give one of them"):
        opened(mixed)


def test_the_kind_that_is_asked_for_decides_between_what_a_folder_holds(tmp_path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(png(1))
    (tmp_path / "readme.txt").write_text("about cats")
    with pytest.raises(DataError, match=r"\.txt and \.jsonl files and folders of pictures: .* say with kind"):
        opened(tmp_path)
    assert every(opened(tmp_path, kind="pairs")) == [["<cat/1.png>", "a picture of cat"]]
    assert every(opened(tmp_path, kind="text")) == [["about cats"]]
    shards(tmp_path, tar([("1.txt", b"text of a shard")]))
    with pytest.raises(DataError, match=r"holds \.tar shards and \.txt and \.jsonl files: "):
        opened(tmp_path, kind="text")


def test_captions_beside_pages_are_told_apart_by_the_kind(tmp_path) -> None:
    write_lines(captions(tmp_path, 1) / "pages.jsonl", [PAGE])
    with pytest.raises(DataError, match=r"captions\.jsonl and pages\.jsonl: give one of them, or say with kind"):
        opened(tmp_path)
    assert (opened(tmp_path, kind="pairs").kind, opened(tmp_path, kind="pages").kind) == ("pairs", "pages")


def test_the_kind_decides_also_beside_a_file_that_lists_the_data(tmp_path) -> None:
    write_lines(captions(tmp_path / "mixed", 2) / "texts.jsonl", [{"text": "a text"}])
    shards(tmp_path / "mixed", b"a page")
    write_lines(tmp_path / "pages" / "pages.jsonl", [{"texts": ["a"], "images": [None]}])
    (tmp_path / "pages" / "a.txt").write_text("a text")
    assert opened(tmp_path / "mixed").kind == "pairs"
    assert opened(tmp_path / "pages").kind == "pages"
    assert every(opened(tmp_path / "pages", kind="text")) == [["a text"]]
    with pytest.raises(DataError, match=r"holds \.tar shards and \.txt and \.jsonl files: give one of them"):
        opened(tmp_path / "mixed", kind="text")
    with pytest.raises(DataError, match=r"pages holds pages, not pairs"):
        opened(tmp_path / "pages", kind="pairs")


def test_a_link_to_a_folder_beside_shards_or_texts_is_passed_over(tmp_path) -> None:
    shards(tmp_path / "shards", tar(pairs(1)))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a text")
    for name in ("shards", "texts"):
        (tmp_path / name / "link").symlink_to(tmp_path)
        assert len(opened(tmp_path / name)) == 1


def test_a_row_of_another_kind_is_a_damaged_sample(tmp_path) -> None:
    page = [("9.a.png", png(1)), ("9.json", json.dumps(PAGE).encode())]
    rows = [("1.jpg", png(1)), ("1.json", b'{"text": "c"}')]
    assert "neither a .txt, nor text" in faults(opened(shards(tmp_path, tar([*rows, *page]))))[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none", "does not exist"),
        (lambda folder: folder / "none.jsonl", "does not exist"),
        (lambda folder: folder / "none.tar", "1 of 1 shards are missing"),
        (lambda folder: folder, "holds no data"),
        (lambda folder: write_lines(folder / "a.jsonl", [{"picture": "x"}]), 'no line with "image"'),
        (lambda folder: write_lines(folder / "a.jsonl", ["", ""]), 'no line with "image"'),
        (lambda folder: write_lines(folder / "a.csv", []), "none of a folder, a .jsonl file"),
    ],
)
def test_a_source_that_is_no_data_is_refused(tmp_path, make, message) -> None:
    with pytest.raises(DataError, match=message):
        opened(make(tmp_path))


class FailingFile(io.BytesIO):
    """A file on a disk that fails."""

    def read(self, *size):
        raise OSError(errno.EIO, "Input/output error")

    readline = read


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.tar"])
def test_a_disk_that_fails_is_an_error_of_the_data(tmp_path, monkeypatch, name) -> None:
    (tmp_path / name).write_bytes(tar(pairs(1)))
    monkeypatch.setattr(input_files, "open", lambda path, mode: FailingFile(b"x" * 1024), raising=False)
    with pytest.raises(DataError, match=f"{name} cannot be read: Input/output error"):
        opened(tmp_path / name)


def test_a_shard_that_may_not_be_read_is_refused_and_no_damaged_sample(tmp_path, monkeypatch) -> None:
    def guarded(path, mode):
        if path.endswith("s-01.tar"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return open(path, mode)

    shards(tmp_path, tar(pairs(1)), tar(pairs(1)))
    monkeypatch.setattr(input_files, "open", guarded, raising=False)
    with pytest.raises(DataError, match=r"s-01\.tar may not be read: permission denied"):
        opened(tmp_path)


def test_a_jsonl_file_in_utf_16_is_refused_with_the_remedy(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"text": "a"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match=r"a\.jsonl is in UTF-16: convert it to UTF-8"):
        opened(tmp_path / "a.jsonl")


def test_a_line_of_a_byte_order_mark_alone_is_blank(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + b'\n{"text": "a"}\n')
    assert every(opened(tmp_path / "a.jsonl")) == [["a"]]


def test_the_kind_of_a_line_is_told_by_its_own_keys(tmp_path) -> None:
    rows = [{"text": "a", "meta": {"image": "thumbnail.jpg"}}, {"text": "b"}, {"text": 'c "image": {'}]
    assert opened(write_lines(tmp_path / "a.jsonl", rows)).kind == "text"
    with pytest.raises(DataError, match='no line with "image"'):
        opened(write_lines(tmp_path / "b.jsonl", [{"caption": "a", "meta": {"text": "b"}}]))
    assert line_kind(b'{"image": "a", "meta": {"video": "b"}, broken') == "unknown"  # as good as can be told


def test_references_of_an_evaluation_are_no_pages_and_refused(tmp_path) -> None:
    rows = [{"image": "0.png", "texts": ["a", "b"]}, {"video": "0.mp4", "texts": ["a"]}, {"image": "1.png"}]
    with pytest.raises(DataError, match=r'a\.jsonl: 2 of its lines give "texts" of one picture or clip.* one "text" a'):
        opened(write_lines(tmp_path / "a.jsonl", rows))
    assert opened(write_lines(tmp_path / "b.jsonl", [{**PAGE, "image": "thumbnail.png"}])).kind == "pages"


def test_another_kind_than_asked_for_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="holds pairs, not pages"):
        opened(captions(tmp_path, 1), kind="pages")
    with pytest.raises(UsageError, match="make-scenes"):
        opened("scenes")


# --- All sources


def test_a_fingerprint_changes_with_the_data_and_a_copy_of_a_source_gives_the_same(tmp_path) -> None:
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "classes" / "cat" / "1.png").write_bytes(png(1))
    (tmp_path / "t.txt").write_text("a text")
    places = [captions(tmp_path / "captions", 2), tmp_path / "classes", shards(tmp_path / "shards", tar(pairs(2))),
              tmp_path / "t.txt", write_lines(tmp_path / "pages.jsonl", [PAGE])]
    sources = [opened(place) for place in places]
    before = [source.fingerprint() for source in sources]
    assert before == [opened(place).fingerprint() for place in places]
    for source in sources:
        copy = pickle.loads(pickle.dumps(source))
        assert (copy.fingerprint(), faults(copy)) == (source.fingerprint(), faults(source))
    write_lines(tmp_path / "captions" / "captions.jsonl", [{"image": "0.png", "text": "other"}] * 2)
    (tmp_path / "classes" / "cat" / "1.png").write_bytes(png(1, (99, 99)))
    shards(tmp_path / "shards", tar(pairs(2, first=1)))
    (tmp_path / "t.txt").write_text("b text")
    write_lines(tmp_path / "pages.jsonl", [MMC4])
    assert not {opened(place).fingerprint() for place in places} & set(before)
