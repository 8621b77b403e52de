"""Writing: what was there before survives every failure, and what a killed run left does not stand in the way."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.files import adding_files, check_file, check_output, new_directory, replacing_file

OLD = json.dumps({"name": "old", "resampler": {}, "cross_attention": {}})  # like this project's output

KILLED_IN_FILE = """
import os, signal, sys
from pathlib import Path
from flamingo_rt.files import replacing_file
with replacing_file(Path(sys.argv[1])) as beside:
    beside.write_text("half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""

KILLED_IN_DIRECTORY = """
import os, signal, sys
from pathlib import Path
from flamingo_rt.files import new_directory
with new_directory(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "new").write_text("half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_until_killed(script: str, path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.fixture
def old_file(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    return path


@pytest.fixture
def old_folder(tmp_path):
    path = tmp_path / "result"
    path.mkdir()
    (path / "config.json").write_text(OLD)
    return path


def write_half(opened, error):
    """Write half of the file or folder that ``opened`` gives, and break off with ``error``."""
    with opened as path:
        (path / "new" if path.is_dir() else path).write_text("half")
        raise error


def test_a_file_is_replaced_and_nothing_is_left_beside_it(old_file):
    with replacing_file(old_file) as beside:
        beside.write_text("new")
        assert old_file.read_text() == "old"
    assert contents(old_file.parent) == {"result.json": "new"}


def test_a_files_missing_folders_are_made(tmp_path):
    with replacing_file(tmp_path / "a" / "b" / "c.txt") as beside:
        beside.write_text("new")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "new"


def test_files_are_added_to_a_folder_all_at_once_or_not_at_all(tmp_path):
    folder = tmp_path / "a" / "b"

    def add(*names: str) -> None:
        with adding_files(folder) as beside:
            for name in names:
                (beside / name).write_text("new")
            assert not any((folder / name).exists() and (folder / name).read_text() == "new" for name in names)
            if "bad" in names:
                raise full_disk()

    add("one", "two")
    (folder / "two").write_text("old")
    (folder / "mine").write_text("old")
    with pytest.raises(DataError, match="no space left while writing"):
        add("two", "bad")
    assert contents(folder) == {"one": "new", "two": "old", "mine": "old"}
    (folder / "one").write_text("old")
    add("one")
    assert contents(folder) == {"one": "new", "two": "old", "mine": "old"}


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_the_old_file_survives_an_exception(old_file, raised):
    with pytest.raises(raised):
        write_half(replacing_file(old_file), raised())
    assert contents(old_file.parent) == {"result.json": "old"}


def test_the_old_file_survives_a_full_disk(old_file):
    with pytest.raises(DataError, match=r"no space left while writing .*result\.json"):
        write_half(replacing_file(old_file), full_disk())
    assert contents(old_file.parent) == {"result.json": "old"}


def test_the_old_file_survives_a_disk_that_fills_up_while_flushing(old_file, monkeypatch):
    def fail(_descriptor: int) -> None:
        raise full_disk()

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError, match="no space left"), replacing_file(old_file) as beside:
        beside.write_text("new")
    assert contents(old_file.parent) == {"result.json": "old"}


def test_the_old_file_survives_a_kill_and_the_next_run_succeeds(old_file):
    run_until_killed(KILLED_IN_FILE, old_file)
    assert old_file.read_text() == "old"
    with replacing_file(old_file) as beside:
        beside.write_text("new")
    assert contents(old_file.parent) == {"result.json": "new"}


def test_a_file_that_cannot_be_written_is_a_data_error(old_file):
    with pytest.raises(DataError, match=r"cannot write .*result.json is a file"), \
            replacing_file(old_file / "below") as beside:
        beside.write_text("new")
    assert old_file.read_text() == "old"


def test_a_new_folder_appears_whole(tmp_path):
    path = tmp_path / "a" / "result"
    with new_directory(path) as folder:
        (folder / "new").write_text("new")
        assert not path.exists()
    assert contents(path) == {"new": "new"}
    assert [entry.name for entry in path.parent.iterdir()] == ["result"]


def test_an_existing_output_is_refused_before_any_work(old_folder):
    with pytest.raises(UsageError, match=r"already exists.*--overwrite"), new_directory(old_folder):
        pytest.fail("the body ran")
    assert contents(old_folder) == {"config.json": OLD}


def test_a_file_in_the_way_is_refused_even_with_overwrite(old_file):
    with pytest.raises(UsageError, match="is a file"):
        check_output(old_file, overwrite=True)
    with pytest.raises(UsageError, match="is a file"), new_directory(old_file, overwrite=True):
        pytest.fail("the body ran")
    assert old_file.read_text() == "old"


def test_a_new_output_may_be_written(tmp_path, old_folder):
    check_output(tmp_path / "absent", overwrite=False)
    check_output(old_folder, overwrite=True)


BUNDLE = {"manifest.json": json.dumps({"format_version": 1, "graphs": {}}), "tokenizer.json": "{}"} | {
    f"{name}.onnx{suffix}": "" for name in ("vision_encoder", "resampler", "language_model") for suffix in ("", ".data")
}
SHARDS = {"config.json": OLD, "tokenizer.json": "{}", "model.safetensors.index.json": "{}"} | {
    f"model-0000{number}-of-00002.safetensors": "" for number in (1, 2)
}
LLAMA = {
    "config.json": json.dumps({"model_type": "llama", "hidden_size": 4096}), "model.safetensors": "weights",
    "tokenizer.json": "{}",
}


def folder_of(path: Path, files: dict[str, str]) -> Path:
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)
    return path


@pytest.mark.parametrize("files", [{}, BUNDLE, SHARDS], ids=["empty", "bundle", "sharded checkpoint"])
def test_overwrite_replaces_what_this_project_wrote(tmp_path, files):
    path = folder_of(tmp_path / "result", files)
    with new_directory(path, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert contents(path) == {"new": "new"}


@pytest.mark.parametrize(
    "files",
    [
        LLAMA,
        {name: text for name, text in LLAMA.items() if name != "config.json"},
        LLAMA | {"config.json": "{"},
        LLAMA | {"config.json": json.dumps(["resampler", "cross_attention"])},
        LLAMA | {"config.json": "[" * 100_000},
        {"manifest.json": json.dumps({"name": "an extension", "version": "1"})},
        BUNDLE | {"notes.txt": "mine"},
        SHARDS | {"optimizer.pt": "mine"},
        SHARDS | {"other.safetensors": "mine"},
    ],
    ids=["llama", "no config", "damaged config", "list", "deep config", "other manifest", "notes", "optimizer",
         "other weights"],
)
def test_overwrite_deletes_nothing_that_another_program_wrote(tmp_path, files):
    path = folder_of(tmp_path / "result", files)
    with pytest.raises(UsageError, match=f"{path}.*is not replaced"):
        check_output(path, overwrite=True)
    with pytest.raises(UsageError), new_directory(path, overwrite=True):
        pytest.fail("the body ran")
    assert contents(path) == files


def test_overwrite_replaces_the_whole_folder(old_folder):
    with new_directory(old_folder, overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert contents(old_folder) == {"config.json": OLD}
    assert contents(old_folder) == {"new": "new"}
    assert [entry.name for entry in old_folder.parent.iterdir()] == ["result"]


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_the_old_folder_survives_an_exception(old_folder, raised):
    with pytest.raises(raised):
        write_half(new_directory(old_folder, overwrite=True), raised())
    assert contents(old_folder) == {"config.json": OLD}
    assert [entry.name for entry in old_folder.parent.iterdir()] == ["result"]


def test_the_old_folder_survives_a_full_disk(old_folder):
    with pytest.raises(DataError, match=r"no space left while writing .*result: nothing was changed"):
        write_half(new_directory(old_folder, overwrite=True), full_disk())
    assert contents(old_folder) == {"config.json": OLD}


def test_the_old_folder_comes_back_when_the_last_rename_fails(old_folder, monkeypatch):
    rename = os.replace

    def fail_for_the_new_one(source: Path, target: Path) -> None:
        if source.parent.name.endswith(".partial"):
            raise full_disk()
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_for_the_new_one)
    with pytest.raises(DataError), new_directory(old_folder, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert contents(old_folder) == {"config.json": OLD}
    assert [entry.name for entry in old_folder.parent.iterdir()] == ["result"]


def test_the_old_folder_survives_a_kill_and_the_next_run_succeeds(old_folder):
    run_until_killed(KILLED_IN_DIRECTORY, old_folder)
    assert contents(old_folder) == {"config.json": OLD}
    with new_directory(old_folder, overwrite=True) as folder:
        assert contents(folder) == {}
        (folder / "new").write_text("new")
    assert contents(old_folder) == {"new": "new"}
    assert [entry.name for entry in old_folder.parent.iterdir()] == ["result"]


def test_a_first_run_that_was_killed_leaves_no_output(tmp_path):
    path = tmp_path / "result"
    run_until_killed(KILLED_IN_DIRECTORY, path)
    check_output(path, overwrite=False)
    with new_directory(path) as folder:
        (folder / "new").write_text("new")
    assert contents(path) == {"new": "new"}


def test_an_unwritable_place_is_a_data_error(old_file):
    with pytest.raises(DataError, match=r"cannot write|failed"), new_directory(old_file / "below"):
        pytest.fail("the body ran")


def test_links_that_lead_in_a_circle_are_refused_like_other_links(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(UsageError, match="is a link"):
        check_output(loop, overwrite=True, sources=[tmp_path / "checkpoint"])
    check_output(tmp_path / "out", overwrite=False, sources=[loop])
    with pytest.raises(UsageError, match="a link that leads nowhere"):
        check_file(loop, overwrite=False)


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="a pipe or a device, and is not replaced"):
            check_file(pipe, overwrite)
