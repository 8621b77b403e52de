"""Unfinished output: files of others are not taken for it, running processes keep theirs, and leftovers are removed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.files import check_file, check_output, new_directory, replacing_file
from flamingo_rt.unfinished import is_leftover_name

LEFT, LEFT_ASIDE = ".flamingo-rt-0a1b2c3d.partial", ".flamingo-rt-0a1b2c3d.replaced"
MANIFEST = '{"format_version": 1, "graphs": {}}'

HOLDING = """
import sys
from pathlib import Path
from flamingo_rt.files import replacing_file
with replacing_file(Path(sys.argv[1])) as beside:
    beside.write_text("from the other process")
    print("ready", flush=True)
    sys.stdin.readline()
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from flamingo_rt import files
if sys.argv[2] == "between":
    rename = os.replace
    def replace(source, target):
        if Path(source).parent.name.endswith(".partial") and Path(target) == Path(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
    os.replace = replace
with files.new_directory(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "manifest.json").write_text("new")
    if sys.argv[2] == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def old_output(path: Path) -> Path:
    path.mkdir()
    (path / "manifest.json").write_text(MANIFEST)
    return path


def kill(path: Path, when: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), when], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("name", [".shots.prompt.partial", "shots.prompt.partial", LEFT + "x", ".flamingo-rt-.partial"])
def test_a_file_of_the_users_own_is_neither_used_nor_removed(tmp_path, name) -> None:
    (tmp_path / name).write_text("mine")
    with replacing_file(tmp_path / "shots.prompt") as beside:
        beside.write_text("new")
    assert (tmp_path / name).read_text() == "mine"
    assert names(tmp_path) == sorted([name, "shots.prompt"])


def test_a_planted_link_is_not_written_through(tmp_path) -> None:
    """A link at the name that was foreseeable, and one that looks like a leftover of ours."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("precious")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "precious" / "file")
    (tmp_path / LEFT).symlink_to(tmp_path / "precious")
    with replacing_file(tmp_path / "out") as beside:
        beside.write_text("new")
    with new_directory(tmp_path / "folder") as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "precious" / "file").read_text() == "precious"
    assert (tmp_path / LEFT).is_symlink()


def test_a_file_that_looks_like_a_leftover_stays(tmp_path) -> None:
    (tmp_path / LEFT).write_text("a file, not a folder")
    with replacing_file(tmp_path / "out") as beside:
        beside.write_text("new")
    assert (tmp_path / LEFT).read_text() == "a file, not a folder"


def test_output_is_made_where_nobody_else_may_enter_and_gets_the_users_usual_permissions(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        with replacing_file(tmp_path / "file") as beside:
            assert beside.parent.stat().st_mode & 0o777 == 0o700
            beside.write_text("new")
        with new_directory(tmp_path / "folder") as folder:
            (folder / "file").write_text("new")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder", "folder/file")]
    assert modes == [0o640, 0o750, 0o640]


def test_two_runs_have_different_places(tmp_path) -> None:
    with replacing_file(tmp_path / "out") as one, replacing_file(tmp_path / "out") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "out").read_text() == "one"  # this one ended last
    assert names(tmp_path) == ["out"]


def test_output_that_a_living_process_writes_is_left_alone(tmp_path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    old = time.time() - 1e7
    (unfinished,) = tmp_path.iterdir()
    os.utime(unfinished, (old, old))
    with replacing_file(tmp_path / "out") as beside:
        beside.write_text("mine")
    assert (tmp_path / "out").read_text() == "mine"
    process.communicate("\n")
    assert process.returncode == 0
    assert (tmp_path / "out").read_text() == "from the other process"


@pytest.mark.parametrize("target", ["out", "another"])
def test_leftovers_of_a_killed_run_are_removed_by_the_next_one_in_that_folder(tmp_path, target) -> None:
    path = old_output(tmp_path / "out")
    kill(path, "writing")
    assert [name for name in names(tmp_path) if is_leftover_name(name)]
    with new_directory(tmp_path / target, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path) == sorted({"out", target})


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path) -> None:
    path = old_output(tmp_path / "out")
    kill(path, "between")
    assert not path.exists()
    with replacing_file(tmp_path / "another") as beside:
        beside.write_text("new")
    assert (path / "manifest.json").read_text() == MANIFEST
    assert names(tmp_path) == ["another", "out"]


def test_a_replaced_output_does_not_come_back_over_its_replacement(tmp_path) -> None:
    old_output(tmp_path / "out")
    (tmp_path / LEFT_ASIDE).mkdir()
    (tmp_path / LEFT_ASIDE / "out").mkdir()
    with replacing_file(tmp_path / "another") as beside:
        beside.write_text("new")
    assert (tmp_path / "out" / "manifest.json").read_text() == MANIFEST
    assert names(tmp_path) == ["another", "out"]


def test_leftovers_of_another_user_stay(tmp_path, monkeypatch) -> None:
    (tmp_path / LEFT).mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path.stat().st_uid + 1))
    with replacing_file(tmp_path / "out") as beside:
        beside.write_text("new")
    assert names(tmp_path) == [LEFT, "out"]


@pytest.mark.parametrize(("days", "stays"), [(0, True), (2, False)])
def test_leftovers_are_removed_by_age_where_files_cannot_be_locked(tmp_path, monkeypatch, days, stays) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    (tmp_path / LEFT).mkdir()
    made = time.time() - days * 86400
    os.utime(tmp_path / LEFT, (made, made))
    with replacing_file(tmp_path / "out") as beside:
        beside.write_text("new")
    assert (LEFT in names(tmp_path)) == stays


def write_while_another_appears(path: Path, theirs: str, overwrite: bool) -> None:
    """Write a folder; before it is complete, somebody else makes one with a file ``theirs`` in its place."""
    with new_directory(path, overwrite) as folder:
        (folder / "new").write_text("new")
        path.mkdir()
        (path / theirs).write_text("theirs")


def test_a_folder_that_appeared_meanwhile_is_not_destroyed(tmp_path) -> None:
    path = tmp_path / "out"
    with pytest.raises(UsageError, match="out already exists"):
        write_while_another_appears(path, "theirs.txt", overwrite=False)
    assert (path / "theirs.txt").read_text() == "theirs"
    with pytest.raises(UsageError, match="is not replaced"):
        write_while_another_appears(tmp_path / "2", "notes.txt", overwrite=True)
    assert names(tmp_path) == ["2", "out"]


def test_a_leftover_within_an_output_does_not_keep_it_from_being_replaced(tmp_path) -> None:
    path = old_output(tmp_path / "out")
    (path / LEFT).mkdir()
    check_output(path, overwrite=True)


def test_a_folder_that_may_not_be_written_to_is_named_and_nothing_of_ours(tmp_path, monkeypatch) -> None:
    def refuse(name: str, mode: int = 0o777) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", name)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(DataError) as caught, replacing_file(tmp_path / "shots.prompt"):
        pytest.fail("the body ran")
    assert str(caught.value) == f"writing {tmp_path / 'shots.prompt'} failed: Permission denied; nothing was changed"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_file_that_is_there_is_refused_before_any_work(tmp_path, kind) -> None:
    path = tmp_path / "out"
    path.mkdir() if kind == "folder" else path.touch()
    with pytest.raises(UsageError, match=r"already exists.*--plot"):
        check_file(path, overwrite=False, option="--plot")
    if kind == "folder":
        with pytest.raises(UsageError, match="is a folder"):
            check_file(path, overwrite=True)
    else:
        check_file(path, overwrite=True)
    check_file(tmp_path / "new", overwrite=False)


GONE = """
import os, sys
from pathlib import Path
os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")
from flamingo_rt.errors import DataError
from flamingo_rt.files import check_file, check_output, check_space, new_directory, replacing_file
def refused(call):
    try: call()
    except DataError as error: print(error)
    else: raise AssertionError(call)
refused(lambda: check_output(Path("out"), False))
refused(lambda: check_file(Path("out"), False))
refused(lambda: check_space(Path("out"), 1))
refused(lambda: replacing_file(Path("out")).__enter__())
refused(lambda: new_directory(Path("out")).__enter__())
with replacing_file(Path(sys.argv[1])) as beside: beside.write_text("new")
with new_directory(Path(sys.argv[2])) as folder: (folder / "file").write_text("new")
"""


def test_in_a_working_folder_that_was_removed_whole_paths_are_written_and_others_refused(tmp_path) -> None:
    arguments = [sys.executable, "-c", GONE, str(tmp_path / "file"), str(tmp_path / "folder")]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "cannot write out: the working folder was removed; change to another, or give a whole path"
    ] * 5
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("name", [".envrc", "Makefile"])
def test_a_leftover_that_an_unpacked_archive_brought_is_neither_restored_nor_removed(tmp_path, name) -> None:
    planted = tmp_path / LEFT_ASIDE / name
    planted.parent.mkdir()
    planted.write_text("run me")
    with replacing_file(tmp_path / "new") as beside:
        beside.write_text("new")
    assert not (tmp_path / name).exists()
    assert planted.read_text() == "run me"  # nobody's to remove either
