"""The record of the user's own builds, in a folder that nobody else could have written to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from flamingo_rt.engines.tensorrt.local_builds import EngineTrust, is_local_build, remember_build, state_folder
from flamingo_rt.errors import DataError, UsageError

RECORD = b'{"format_version": 1}'


@pytest.fixture
def state(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "flamingo-rt" / "built-engines"


def test_a_build_is_known_by_every_byte_of_its_record(state, tmp_path) -> None:
    assert not is_local_build(RECORD)
    remember_build(RECORD, tmp_path)
    remember_build(RECORD, tmp_path / "moved")
    assert is_local_build(RECORD)
    assert not is_local_build(RECORD + b"\n")
    assert len(list(state.iterdir())) == 1


def test_what_is_remembered_is_the_users_alone(state, tmp_path) -> None:
    before = os.umask(0)
    try:
        remember_build(RECORD, tmp_path)
    finally:
        os.umask(before)
    (file,) = state.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("change", ["others may write", "of another user", "a link", "a folder"])
def test_what_somebody_else_could_have_written_is_not_believed(state, tmp_path, monkeypatch, change) -> None:
    remember_build(RECORD, tmp_path)
    (file,) = state.iterdir()
    if change == "others may write":
        file.chmod(0o622)
    elif change == "of another user":
        monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    else:
        file.rename(tmp_path / "moved")
        file.symlink_to(tmp_path / "moved") if change == "a link" else file.mkdir()
    assert not is_local_build(RECORD)


@pytest.mark.parametrize(("platform", "environment", "expected"), [
    ("linux", {}, "home/.local/state"), ("linux", {"XDG_STATE_HOME": "/elsewhere"}, "/elsewhere"),
    ("linux", {"XDG_STATE_HOME": "relative"}, "home/.local/state"),
    ("darwin", {}, "home/Library/Application Support"),
    ("win32", {"LOCALAPPDATA": "/local"}, "/local"), ("win32", {}, "home/AppData/Local"),
])
def test_the_folder_is_where_the_system_has_such_things(tmp_path, monkeypatch, platform, environment, expected) -> None:
    for name in ("XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "platform", platform)
    assert state_folder() == tmp_path / expected / "flamingo-rt"


def test_a_user_without_a_home_has_no_builds_and_is_told(monkeypatch, tmp_path) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert not is_local_build(RECORD)
    with pytest.raises(DataError, match="set XDG_STATE_HOME"):
        remember_build(RECORD, tmp_path)


def test_host_code_is_allowed_on_top_of_trust_alone() -> None:
    assert EngineTrust(engines=True, host_code=True)
    with pytest.raises(UsageError, match="goes with --trust-engines"):
        EngineTrust(host_code=True)
