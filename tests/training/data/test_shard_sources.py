"""Tar shards as sources of training data: every kind in them, and whatever cannot be used is named."""

from __future__ import annotations

import json
import tarfile

import pytest
from made_data import pairs, png, tar, write_clip
from opened_sources import every, every_whole, faults, opened, said, shards

from flamingo_rt.errors import DataError
from flamingo_rt.training.data.shards import expand_braces

PAGE = {"texts": ["first", None, "second"], "images": [None, "a.png", None]}


def test_pairs_in_shards_by_pattern_folder_and_file(tmp_path) -> None:
    shards(tmp_path, tar(pairs(2)), tar(pairs(1, first=2)))
    for source in (tmp_path, tmp_path / "s-{00..01}.tar", tmp_path / "s-0{0,1}.tar"):
        assert opened(source).kind == "pairs"
        assert every(opened(source)) == [[f"<00000{i}.png>", f"number {i}"] for i in range(3)]
    assert opened(tmp_path).sample(2).segments[0].content == png(2)
    assert opened(tmp_path).sample(2).name == f"{tmp_path}/s-01.tar/000002"
    assert len(opened(tmp_path / "s-01.tar")) == 1


def test_every_kind_in_shards(tmp_path) -> None:
    clip = write_clip(tmp_path / "a.avi", [1]).read_bytes()
    row = json.dumps({"texts": ["a", None, None], "images": [None, "0.png", "p/000.1.jpg"]}).encode()
    row = row.replace(b"p/000.1.jpg", b"000.1.jpg")
    cases = {
        "captions": ([("1.jpg", png(1)), ("1.json", b'{"caption": "c", "url": "x"}')], [["<1.jpg>", "c"]]),
        "questions": ([("1.WebP", png(1)), ("1.json", b'{"question": "q", "answer": "a"}')],
                      [["<1.WebP>", "[q]", "a"]]),
        "txt goes first": ([("1.jpg", png(1)), ("1.json", b'{"text": "no"}'), ("1.txt", b"yes")], [["<1.jpg>", "yes"]]),
        "videos": ([("1.avi", clip), ("1.txt", b"it moves")], [["<1.avi>", "it moves"]]),
        "pages": ([("p/000.0.png", png(1)), ("p/000.1.jpg", png(2)), ("p/000.json", row)],
                  [["a", "<p/000.0.png>", "<p/000.1.jpg>"]]),
        "text": ([("1.txt", b"one"), ("2.json", b'{"text": "two"}')], [["one"], ["two"]]),
        "others": ([("1.jpg", png(1)), ("1.txt", b"a"), ("1.cls", b"7"), ("1.pickle", b"cos"), ("README.md", b"x")],
                   [["<1.jpg>", "a"]]),
    }
    for name, (members, expected) in cases.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(tar(members))
        assert every(opened(path)) == expected, name


def test_files_of_a_sample_that_do_not_follow_each_other_are_named(tmp_path) -> None:
    unsorted = [*pairs(3)[::2], *pairs(3)[1::2]]
    with pytest.raises(DataError, match=r"3 of pairs \(.*000000\) and 3 of text \(.*000000\), and one of these stands "
                                        r"in two places: .*tar --sort=name"):
        opened(shards(tmp_path, tar(unsorted)))


@pytest.mark.parametrize("suffix", ["bmp", "tif", "TIFF", "jfif", "avif", "ppm", "jp2"])
def test_every_picture_that_is_decoded_is_a_picture_of_a_shard(tmp_path, suffix) -> None:
    source = opened(shards(tmp_path, tar([(f"1.{suffix}", png(1)), ("1.txt", b"a")])))
    assert (source.kind, every(source)) == ("pairs", [[f"<1.{suffix}>", "a"]])


@pytest.mark.parametrize("suffix", ["wmv", "ts", "gif", "apng"])
def test_every_clip_that_is_decoded_is_a_clip_of_a_shard(tmp_path, suffix) -> None:
    assert opened(shards(tmp_path, tar([(f"1.{suffix}", b"x"), ("1.txt", b"a")]))).kind == "videos"


def test_samples_with_long_names_that_differ_at_an_end_have_different_names(tmp_path) -> None:
    keys = ["k" * 90 + "1", "k" * 90 + "2", "1" + "k" * 90]
    source = opened(shards(tmp_path, tar([member for key in keys for member in
                                          ((f"{key}.png", png(1)), (f"{key}.txt", b"a"))])))
    names = {source.sample(index).name for index in range(3)}
    assert len(names) == 3
    assert all(len(name) == len(f"{tmp_path}/s-00.tar/") + 80 for name in names)


def test_a_warning_names_the_shards_that_are_not_whole(tmp_path, caplog) -> None:
    whole, cut = tar(pairs(4)), tar(pairs(4))[:3000]
    opened(shards(tmp_path, whole))
    assert caplog.messages == []
    opened(shards(tmp_path, whole, cut, b"", *[cut] * 5))
    [warning] = caplog.messages
    assert warning.startswith("7 of 8 shards are not whole, and samples that they lack are not counted: ")
    assert f"{tmp_path}/s-01.tar is cut short: it ends at byte 3,000" in warning
    assert f"{tmp_path}/s-02.tar is empty (0 bytes)" in warning
    assert warning.endswith("; and 2 more")


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("9.png", png(1))], "has no text"),
        ([("9.txt", b"alone")], "has no picture"),
        ([("9.png", png(1)), ("9.txt", b" ")], "text is empty"),
        ([("9.png", png(1)), ("9.txt", b"\xff")], "is no UTF-8"),
        ([("9.png", png(1)), ("9.json", b"{")], "9.json is not valid JSON"),
        ([("9.png", png(1)), ("9.json", b"[]")], "not a JSON object"),
        ([("9.png", png(1)), ("9.json", b'{"width": 3}')], "neither a .txt, nor text or caption"),
        ([("9.png", png(1)), ("9.json", b'{"text": null}')], "text is None"),
        ([("9.png", png(1)), ("9.jpg", png(1)), ("9.txt", b"a")], "2 files that could be its picture"),
        ([("9.png", png(1)), ("9.txt", b"a"), ("9.TXT", b"a")], "2 files that could be its txt"),
        ([("../9.png", png(1)), ("../9.txt", b"a")], "out of its folder"),
        ([(f"9.{number}.cls", b"") for number in range(1001)] + [("9.png", png(1))], "more than 1,000 files"),
    ],
)
def test_a_damaged_sample_of_a_shard_is_named_with_its_reason(tmp_path, members, reason) -> None:
    source = opened(shards(tmp_path, tar([*pairs(11), *members])))
    assert source.kind == "pairs"
    [fault] = faults(source)
    assert fault.startswith(f"{tmp_path}/s-00.tar/")
    assert reason in fault


def test_a_link_in_a_shard_is_a_damaged_sample(tmp_path) -> None:
    link = tarfile.TarInfo("9.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    source = opened(shards(tmp_path, tar([*pairs(1), link, ("9.txt", b"a")])))
    assert faults(source) == [f"{tmp_path}/s-00.tar/9: 9.png is a link"]


def test_large_members_are_refused_unread(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("flamingo_rt.training.data.tar_samples.MOST_SAMPLE", 1000)
    source = opened(shards(tmp_path, tar([*pairs(1), ("9.png", b"x" * 1001), ("9.txt", b"a")])))
    assert "9.png has more than 0.001 MB" in faults(source)[0]
    page = [("1.0.png", b"x" * 600), ("1.1.png", b"x" * 600), ("1.json", json.dumps(PAGE).encode())]
    assert "pictures have more than" in faults(opened(shards(tmp_path, tar(page))))[0]


def test_a_page_that_names_a_missing_picture_is_damaged(tmp_path) -> None:
    source = opened(shards(tmp_path, tar([("1.b.png", png(1)), ("1.json", json.dumps(PAGE).encode())])))
    assert "the picture 'a.png' is not among its files" in faults(source)[0]


def test_of_a_shard_that_is_cut_short_the_whole_samples_are_there(tmp_path) -> None:
    content = tar(pairs(4))
    within_fourth = content[: content.index(b"number 2") + 1100]
    source = opened(shards(tmp_path, tar(pairs(1, first=9)), within_fourth))
    found = [said(source.sample(index))[1] for index in range(len(source) - 1)]
    assert found == ["number 9", "number 0", "number 1", "number 2"]
    [fault] = faults(source)
    assert fault.startswith(f"{tmp_path}/s-01.tar: is cut short")


def test_a_shard_cut_at_any_place_gives_whole_samples_and_one_fault(tmp_path) -> None:
    content = tar(pairs(3))
    path = tmp_path / "s.tar"
    whole = every(opened(shards(tmp_path / "whole", content)))
    none_whole = range(0, content.index(b"000001.png") + 512, 333)  # the next sample's name says that this one ends
    for cut in none_whole:
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"s\.tar holds no sample that is known: .*s\.tar "):
            opened(path)
    for cut in range(none_whole[-1] + 333, len(content) - 11_000, 333):
        path.write_bytes(content[:cut])
        source = opened(path)
        assert every_whole(source) == whole[: len(source) - 1]
        assert len(faults(source)) == 1


def test_missing_shards_are_named(tmp_path) -> None:
    shards(tmp_path, tar(pairs(1)))
    with pytest.raises(DataError, match=r"2 of 3 shards are missing: .*s-01.tar, .*s-02.tar; check the pattern"):
        opened(tmp_path / "s-{00..02}.tar")


def test_braces_count_and_list() -> None:
    assert [str(path) for path in expand_braces("{a,b}-{08..10}.tar")] == [
        "a-08.tar", "a-09.tar", "a-10.tar", "b-08.tar", "b-09.tar", "b-10.tar"]
    assert [str(path) for path in expand_braces("{9..10}.tar")] == ["9.tar", "10.tar"]
    for pattern in ("{}.tar", "{x}.tar", "{5..4}.tar", "{0..99999999999999999}.tar", "{0..999}{0..999}{0..1}.tar"):
        with pytest.raises(DataError):
            expand_braces(pattern)
