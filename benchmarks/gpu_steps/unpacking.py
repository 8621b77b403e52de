"""From a pack to the table on a GPU's machine without a network. Imports the standard library, and of this project only
what needs no other: nothing is installed yet.

Everything lies in a private folder:

    wheels/         the files of the pack, put together
    source/         the steps' scripts and the checkpoint that they verify
    venv/, peer/    environments that see the packages of the Python that runs this, with the wheels before them
    installed.json  written last: what was installed from which pack
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import site
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_steps.pieces import AGAIN, MANIFEST, PackedFile, check_pieces, join, read_manifest
from benchmarks.gpu_steps.pip_calls import reason
from flamingo_rt.child_process import child_environment, python_command
from flamingo_rt.errors import DataError
from flamingo_rt.files import replacing_file

INSTALLED = "installed.json"
PEER, ARCHIVE, PROJECT = "peer", "source.zip", "flamingo_rt-"


def unpack_and_run(pack: Path, work: Path, minutes: float, arguments: Sequence[str]) -> int:
    """Check a pack, install it below ``work`` unless that was done, and run the benchmark there, with ``arguments`` of
    its own, in what is left of ``minutes``. Returns its exit code.

    Raises `DataError` for a pack that cannot be used or is for another Python, and where it cannot be installed.
    """
    start = time.monotonic()
    about, files = read_manifest(pack)
    _check_machine(about)
    _check_content(pack, about, [file.name for file in files])
    print(f"== check {len(files)} files of {pack}", flush=True)
    check_pieces(pack, files)
    notes = work / INSTALLED
    found = _installed(notes, pack)
    if found is None:
        found = _install(pack, about, files, work)
        with replacing_file(notes) as beside:
            beside.write_text(json.dumps(found), encoding="utf-8")
    spent = time.monotonic() - start
    print(f"== unpacked and installed in {spent:.0f} s", flush=True)
    with replacing_file(work / "notes.json") as beside:
        told = {"seconds": round(spent, 1), "missing": found["missing"], "notes": found["notes"]}
        beside.write_text(json.dumps(told), encoding="utf-8")
    peer = work / "peer" / "bin" / "python"
    more = ["--notes", str(work / "notes.json"), "--minutes", f"{max(minutes - spent / 60, 0.1):.2f}"]
    if PEER not in found["missing"]:
        more += ["--peer-python", str(peer)]
    command = (str(_python(work / "venv")), *python_command("benchmarks.gpu_run", *more, *arguments)[1:])
    return subprocess.run(command, env=child_environment(_on_source(work))).returncode


def _check_machine(about: dict[str, Any]) -> None:
    """Raise `DataError` unless a pack is for the Python and the processor here."""
    wanted = f"Python {about.get('python')} on {about.get('machine')}"
    here = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {platform.machine()}"
    if wanted != here:
        raise DataError(f"the pack is for {wanted}, this is {here}: run it with that Python, or make the pack for this "
                        "one (--python)")


def _check_content(pack: Path, about: dict[str, Any], names: Sequence[str]) -> None:
    """Raise `DataError` for a manifest of other files than a pack has."""
    kinds = {"extras": dict, "left_out": dict, "peer": list}
    whole = all(isinstance(about.get(key), kind) for key, kind in kinds.items())
    if not whole or ARCHIVE not in names or not any(name.startswith(PROJECT) for name in names):
        raise DataError(f"{pack / MANIFEST} is damaged (it lacks what a pack has); {AGAIN}")


def _installed(notes: Path, pack: Path) -> dict[str, Any] | None:
    """The record of an installation from this pack, if there is one."""
    try:
        found = json.loads(notes.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("pack") == _sum(pack) else None


def _sum(pack: Path) -> str:
    return hashlib.sha256((pack / MANIFEST).read_bytes()).hexdigest()


def _install(pack: Path, about: dict[str, Any], files: Sequence[PackedFile], work: Path) -> dict[str, Any]:
    """Put the files together and install them. Returns what is kept in `INSTALLED`: a group that does not install
    costs what it is for alone."""
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    (work / INSTALLED).unlink(missing_ok=True)
    for name in ("wheels", "source", "venv", "peer"):
        shutil.rmtree(work / name, ignore_errors=True)
    wheels = work / "wheels"
    wheels.mkdir()
    paths = {file.name: join(pack, file, wheels) for file in files}
    with zipfile.ZipFile(paths.pop(ARCHIVE)) as archive:
        archive.extractall(work / "source")
    missing, notes = dict(about["left_out"]), list[str]()
    _make_environment(work / "venv")
    own = next(path for path in paths.values() if path.name.startswith(PROJECT))
    # Without its needs and whatever is installed: an older one may be in the packages that the environment sees.
    why = _pip(work, "venv", "--no-deps", "--force-reinstall", str(own))
    if why:
        raise DataError(f"{own.name} cannot be installed from the pack: {why}; is there room in {work}? Give another "
                        "--work")
    for group, extras in about["extras"].items():
        print(f"== install {group}", flush=True)
        why = _pip(work, "venv", "--find-links", str(wheels), f"flamingo-rt[{extras}]")
        its_own = [str(paths[file.name]) for file in files if file.group == group]
        if why and not _pip(work, "venv", "--no-deps", *its_own):
            # What was resolved for the list of what is here is in place; doctor tells what does not work with it.
            notes.append(f"{group}: what is here does not fit ({why}); installed as it was packed. A pack that is made "
                         "with --there fits")
        elif why:
            missing[group] = f"its part of the pack cannot be installed: {why}"
    if PEER not in missing:
        print(f"== install {PEER}", flush=True)
        _make_environment(work / "peer")
        why = _pip(work, "peer", "--no-deps", *(str(wheels / name) for name in about["peer"]))
        if why:
            missing[PEER] = f"its part of the pack cannot be installed: {why}"
        _copy_stand_in(work)
    return {"pack": _sum(pack), "missing": missing, "notes": notes}


def _make_environment(folder: Path) -> None:
    """An environment of this Python without pip. It sees the packages of this one, which may be an environment itself:
    ``system_site_packages`` alone would show those of the Python below it."""
    try:
        venv.EnvBuilder(system_site_packages=True, symlinks=os.name == "posix").create(folder)
    except (OSError, subprocess.SubprocessError) as error:
        raise DataError(f"no environment can be made in {folder} ({error}): give another --work") from error
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages() if Path(path).is_dir()]
    (_packages(folder) / "zz_packages_there.pth").write_text("".join(lines), encoding="utf-8")


def _copy_stand_in(work: Path) -> None:
    """Give the peer its stand-in for torchvision, which it imports and does not call, as `benchmarks/peers/make.sh`."""
    stand_in = work / "source" / "benchmarks" / "peers" / "torchvision_stand_in"
    shutil.copytree(stand_in, _packages(work / "peer") / "torchvision", dirs_exist_ok=True)


def _packages(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"


def _pip(work: Path, environment: str, *arguments: str) -> str | None:
    """Install into an environment by this Python's pip, without a network. Returns why that failed, or None."""
    command = python_command("pip", "--python", str(_python(work / environment)), "install", "--quiet", "--no-index",
                             "--no-cache-dir", "--no-compile", "--disable-pip-version-check", *arguments)
    done = subprocess.run(command, env=child_environment(_on_source(work)), capture_output=True, text=True)
    return reason(f"{done.stdout}\n{done.stderr}") if done.returncode else None


def _on_source(work: Path) -> dict[str, str]:
    """Variables that let Python find ``benchmarks`` in the pack's source, where no folder ``flamingo_rt`` hides the
    wheel; and no other folder of modules."""
    return {"PYTHONPATH": str(work / "source")}
