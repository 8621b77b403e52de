"""TOML files: what is read, what is refused, and what a misspelt key was meant to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.toml_files import MOST_BYTES, nearest, read_toml


def test_a_byte_order_mark_and_line_ends_of_windows_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b'\xef\xbb\xbfa = 1\r\nb = ["c"]\r\n')
    assert read_toml(tmp_path / "a.toml") == {"a": 1, "b": ["c"]}


@pytest.mark.parametrize("text", [
    "a = ", "a", "a = 1\na = 2", f"a = {'9' * 5000}", f"a = [0x{'f' * 5000}]", f"a = {'[' * 5000}",
], ids=lambda text: text[:8])
def test_what_is_no_toml_or_cannot_be_shown_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UsageError, match=r"a.toml is no TOML file: "):
        read_toml(tmp_path / "a.toml")


def test_a_file_that_is_too_long_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"#" * (MOST_BYTES + 1))
    for name in ("a.toml", "b.toml"):
        with pytest.raises(DataError, match=name):
            read_toml(tmp_path / name)


def test_the_nearest_keys_are_named_or_all() -> None:
    assert nearest("metrik", ("kind", "metric")) == "did you mean metric?"
    assert nearest("zzz", ("kind", "beams")) == "known: beams, kind"


def test_a_folder_is_refused_with_the_files_in_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r" is a folder: give a \.toml file$"):
        read_toml(tmp_path)
    for name in ("b.toml", "a.toml", "c.jsonl", ".d.toml"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r" is a folder: give a \.toml file; in it are a\.toml, b\.toml$"):
        read_toml(tmp_path)
    for number in range(20):
        (tmp_path / f"x{number}.toml").touch()
    with pytest.raises(UsageError, match=r", …$"):
        read_toml(tmp_path)
