"""Members of tar archives: the same as the standard library's for whole archives, and named faults for others."""

from __future__ import annotations

import gzip
import io
import tarfile
from contextlib import suppress

import pytest
from made_data import pairs, tar

from flamingo_rt.training.data.tar_members import DamagedArchive, members

FILES = [("a/000001.jpg", b"x" * 700), ("a/000001.txt", b""), ("./b.c/000002.0.png", b"y" * 512), ("é.txt", b"z")]
LONG = [(f"{'folder/' * 20}{'n' * 90}.{ending}", ending.encode()) for ending in ("jpg", "txt")]


def found(content: bytes) -> list[tuple[str, bytes]]:
    return [(member.name, content[member.start : member.start + member.size])
            for member in members(io.BytesIO(content))]


def fault(content: bytes) -> DamagedArchive:
    with pytest.raises(DamagedArchive) as error:
        found(content)
    return error.value


def with_header(content: bytes, start: int, part: bytes) -> bytes:
    """An archive with a part of its first header replaced, and the header's sum set right."""
    header = bytearray(content[:512])
    header[start : start + len(part)] = part
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_whole_archives_are_read_as_the_standard_library_reads_them(form) -> None:
    files = FILES + (LONG if form != tarfile.USTAR_FORMAT else [(f"{'folder/' * 20}x.jpg", b"1")])
    content = tar(files, form)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        expected = [(info.name.removeprefix("./"), archive.extractfile(info).read()) for info in archive]
    assert found(content) == expected
    assert len(expected) == len(files)


def test_a_part_of_an_archive_is_read_by_offsets() -> None:
    content = tar([*LONG, *pairs(3)], tarfile.PAX_FORMAT)
    every = list(members(io.BytesIO(content)))
    for first in range(len(every)):
        some = list(members(io.BytesIO(content), every[first].header, every[-2].end))
        assert some == every[first:-1]


def test_keys_end_at_the_first_dot_of_the_last_part() -> None:
    every = list(members(io.BytesIO(tar(FILES))))
    assert [(member.key, member.suffix) for member in every] == [
        ("a/000001", "jpg"), ("a/000001", "txt"), ("b.c/000002", "0.png"), ("é", "txt"),
    ]


def test_folders_and_hidden_files_are_passed_over() -> None:
    folder = tarfile.TarInfo("a")
    folder.type = tarfile.DIRTYPE
    assert found(tar([folder, ("a/._1.jpg", b"resource fork"), ("a/1.jpg", b"x")])) == [("a/1.jpg", b"x")]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(tarfile.SYMTYPE, "is a link"), (tarfile.LNKTYPE, "is a link"), (tarfile.CHRTYPE, "is a device"),
     (tarfile.FIFOTYPE, "is a pipe")],
)
def test_links_and_devices_are_not_read(kind, reason) -> None:
    member = tarfile.TarInfo("1.jpg")
    member.type, member.linkname = kind, "/etc/passwd"
    refused, other = members(io.BytesIO(tar([member, ("2.jpg", b"x")])))
    assert (refused.fault, refused.size) == (reason, 0)
    assert other.fault == ""


@pytest.mark.parametrize(("name", "reason"), [("/etc/1.jpg", "absolute"), ("a/../../1.jpg", "out of its folder")])
def test_names_that_lead_out_are_refused(name, reason) -> None:
    [member] = members(io.BytesIO(tar([(name, b"x")])))
    assert reason in member.fault


def test_an_archive_cut_anywhere_is_never_taken_for_a_whole_one() -> None:
    content = tar(pairs(2))
    whole = found(content)
    ends = [member.end for member in members(io.BytesIO(content))]
    for cut in range(0, ends[-1] + 1, 64):
        part, names = content[:cut], []
        with pytest.raises(DamagedArchive) as error:
            names.extend((member.name, part[member.start : member.start + member.size])
                         for member in members(io.BytesIO(part)))
        assert "cut short" in str(error.value)
        assert names == whole[: len(names)]
        complete = sum(end <= cut for end in ends)
        cut_within = complete < len(ends) and cut >= (ends[complete - 1] if complete else 0) + 512
        assert error.value.cut_key == (whole[complete][0].split(".")[0] if cut_within else None)


def test_archives_that_were_joined_are_no_end_in_silence() -> None:
    assert "joined" in str(fault(tar(pairs(1)) + tar(pairs(1, first=1))))


def test_a_compressed_archive_and_a_damaged_header_are_named() -> None:
    assert "compressed" in str(fault(gzip.compress(tar(pairs(40)))))
    content = bytearray(tar(pairs(2)))
    second = list(members(io.BytesIO(bytes(content))))[1].header
    content[second + 130] ^= 1
    assert f"header at byte {second:,}" in str(fault(bytes(content)))


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" * 8])
def test_a_size_beyond_the_file_is_a_cut_archive(size) -> None:
    error = fault(with_header(tar([("1.jpg", b"x")]), 124, size))
    assert "cut short" in str(error)
    assert error.cut_key == "1"


@pytest.mark.parametrize("size", [b"-0000000010\0", b"+0000000010\0", b"1_0\0", b"\xff" * 12, b"9\0"])
def test_a_size_that_is_no_number_is_a_damaged_header(size) -> None:
    assert "no tar archive" in str(fault(with_header(tar([("1.jpg", b"x" * 9)]), 124, size)))


def test_sparse_files_are_named() -> None:
    assert "sparse" in str(fault(with_header(tar([("1.jpg", b"x")]), 156, b"S")))


def extended(content: bytes, kind: bytes = b"x") -> bytes:
    """An archive whose first member has an extended header of its own."""
    return with_header(tar([("header", content)]), 156, kind)[: 512 + -(-len(content) // 512) * 512]


def test_an_extended_header_without_bounds_is_not_read_whole() -> None:
    content = extended(b"20 path=" + b"x" * 100_000) + tar([("1.jpg", b"x")])
    [member] = members(io.BytesIO(content))
    assert "extended header of more than" in member.fault


@pytest.mark.parametrize("record", [b"", b"9999 path=a\n", b"0 path=x\n", b"-3 path=x\n", b"12 path=b.j", b"\xff" * 9])
def test_damaged_records_of_an_extended_header_are_passed_over(record) -> None:
    [member] = members(io.BytesIO(extended(record) + tar([("1.jpg", b"x")])))
    assert (member.name, member.fault) == ("1.jpg", "")


def test_sparse_files_and_sizes_of_pax_are_checked() -> None:
    for record, reason in ((b"26 GNU.sparse.realsize=99\n", "sparse"), (b"11 size=-1\n", "damaged")):
        [member] = members(io.BytesIO(extended(record) + tar([("1.jpg", b"x")])))
        assert reason in member.fault


def test_any_changed_byte_gives_members_or_a_named_fault() -> None:
    content = tar([*pairs(1), *LONG], tarfile.PAX_FORMAT)
    for place in range(0, len(content) - 10_240, 7):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        with suppress(DamagedArchive):
            for member in members(io.BytesIO(bytes(changed))):
                assert 0 <= member.start <= member.start + member.size <= len(content)
