"""Fingerprints of a source's files: what they notice, what they do not, and how little is read for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from made_data import captions, pairs, png, tar, write_lines

from flamingo_rt.training.data import file_prints
from flamingo_rt.training.data.file_prints import EDGE, edges_print, grouped
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.options import DataOptions

PAGE = {"text_list": ["a text"], "image_info": [{"image_name": "0.png", "matched_text_index": 0}]}


def files(place: Path) -> list[tuple[str, str]]:
    return list(open_source(DataOptions(str(place))).files)


def changed(before: list[tuple[str, str]], after: list[tuple[str, str]]) -> list[str]:
    assert [name for name, _ in before] == [name for name, _ in after]
    return [name for (name, one), (_, other) in zip(before, after, strict=True) if one != other]


@pytest.mark.parametrize(("place", "noticed"), [
    (0, True), (EDGE - 1, True), (EDGE, False), (2 * EDGE - 1, False), (2 * EDGE, True), (3 * EDGE - 1, True),
])
def test_the_first_and_the_last_64_kib_of_a_file_are_looked_at(tmp_path, place, noticed) -> None:
    file, content = tmp_path / "a.tar", bytearray(3 * EDGE)
    file.write_bytes(content)
    before = edges_print(file)
    content[place] = 1
    file.write_bytes(content)
    os.utime(file, (1, 1))
    assert (edges_print(file) != before) == noticed


def test_the_size_of_a_file_counts_where_its_ends_are_the_same(tmp_path) -> None:
    prints = set()
    for size in (0, 1, EDGE, 2 * EDGE, 3 * EDGE, 3 * EDGE + 1):
        (tmp_path / "a.tar").write_bytes(bytes(size))
        prints.add(edges_print(tmp_path / "a.tar"))
    assert len(prints) == 6


def test_of_a_large_file_no_more_is_read(tmp_path) -> None:
    with (tmp_path / "a.tar").open("wb") as file:
        file.truncate(1 << 40)  # takes no place on the disk, and hours to read
    assert edges_print(tmp_path / "a.tar")


def test_a_shard_with_the_same_names_and_sizes_and_another_text_is_noticed(tmp_path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(tar(pairs(2, first=2 * number)))
    before = files(tmp_path)
    assert [name for name, _ in before] == ["0.tar", "1.tar", "2.tar"]
    content = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(content.replace(b"number 2", b"number 9"))
    assert changed(before, files(tmp_path)) == ["1.tar"]
    (tmp_path / "1.tar").write_bytes(content)
    os.utime(tmp_path / "1.tar", (1, 1))
    assert files(tmp_path) == before


def test_a_member_of_another_size_in_the_middle_of_a_shard_is_noticed(tmp_path) -> None:
    prints = set()
    for length in (5, 6):
        filled = [("1.png", bytes(2 * EDGE)), ("1.txt", b"a" * length), ("2.png", bytes(2 * EDGE)), ("2.txt", b"b")]
        (tmp_path / "a.tar").write_bytes(tar(filled))
        source = open_source(DataOptions(str(tmp_path / "a.tar")))
        prints.add((source.fingerprint(), source.files))
    (first, _), (second, _) = prints
    assert first != second
    assert len({shown for _, shown in prints}) == 1


def test_captions_are_looked_at_whole_and_their_pictures_by_size(tmp_path) -> None:
    folder = captions(tmp_path / "mine", 4)
    before = files(folder)
    assert [name for name, _ in before] == ["captions.jsonl", "0.png", "1.png", "2.png", "3.png"]
    (folder / "2.png").write_bytes(png(7, (50, 50)))
    (folder / "3.png").unlink()
    assert changed(before, files(folder)) == ["2.png", "3.png"]
    text = (folder / "captions.jsonl").read_text()
    (folder / "captions.jsonl").write_text(text.replace("number 1", "number 7"))
    assert changed(before, files(folder)) == ["captions.jsonl", "2.png", "3.png"]


def test_pictures_of_pages_and_of_classes_are_looked_at_by_size(tmp_path) -> None:
    rows = [PAGE, {"texts": [None, "a"], "images": ["1.png", None]}, {"texts": ["a"], "images": [None]}]
    pages = write_lines(tmp_path / "pages" / "pages.jsonl", [*rows, '{"text_list": 3}'])
    for number in range(2):
        (pages.parent / f"{number}.png").write_bytes(png(number))
        (tmp_path / "classes" / "cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "classes" / "cat" / f"{number}.png").write_bytes(png(number))
    before = files(pages), files(tmp_path / "classes")
    assert [[name for name, _ in each] for each in before] == [["pages.jsonl", "0.png", "1.png"],
                                                               ["cat/0.png", "cat/1.png"]]
    (pages.parent / "1.png").write_bytes(png(1, (50, 50)))
    (tmp_path / "classes" / "cat" / "0.png").write_bytes(png(1, (50, 50)))
    assert changed(before[0], files(pages)) == ["1.png"]
    assert changed(before[1], files(tmp_path / "classes")) == ["cat/0.png"]


def test_texts_are_looked_at_whole(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("a" * 500_000)
    write_lines(tmp_path / "b.jsonl", [{"text": "b"}])
    before = files(tmp_path)
    (tmp_path / "a.txt").write_text("a" * 250_000 + "b" + "a" * 249_999)
    assert changed(before, files(tmp_path)) == ["a.txt"]


def test_pictures_outside_the_folder_and_names_without_an_end_are_not_followed(tmp_path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    rows = [{"image": name, "text": "a"} for name in ("../secret.png", str(tmp_path / "secret.png"), "n" * 5000)]
    found = files(write_lines(tmp_path / "mine" / "captions.jsonl", rows))
    assert [text for _, text in found[1:]] == ["missing"] * 3
    assert max(len(name) for name, _ in found) <= 80


def test_no_more_pictures_are_looked_at_than_a_limit_evenly_among_the_lines(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(file_prints, "MOST_SIZES", 3)
    assert [name for name, _ in files(captions(tmp_path / "mine", 9))] == ["captions.jsonl", "0.png", "4.png", "8.png"]


def test_many_files_are_kept_as_groups_of_neighbours_that_notice_each(monkeypatch) -> None:
    monkeypatch.setattr(file_prints, "MOST_PRINTS", 4)
    prints = [(f"{number}.tar", str(number)) for number in range(10)]
    before = list(grouped(prints))
    assert [name for name, _ in before] == ["0.tar to 1.tar", "2.tar to 4.tar", "5.tar to 6.tar", "7.tar to 9.tar"]
    for number in range(10):
        other = [*prints[:number], (prints[number][0], "other"), *prints[number + 1:]]
        found = changed(before, list(grouped(other)))
        assert len(found) == 1
        first, last = found[0].replace(".tar", "").split(" to ")
        assert int(first) <= number <= int(last)
    assert list(grouped(prints[:4])) == prints[:4]
