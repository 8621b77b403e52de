"""A folder for a GPU's machine without a network: wheels of this project and of what that machine lacks, in pieces.

pip resolves for that machine's Python and system. What the machine has is shown to it as empty wheels of those
versions: versions that do not go together are found here, not there. Weights are made there.
"""

from __future__ import annotations

import datetime
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_steps.pieces import PackedFile, write_manifest, write_pieces
from benchmarks.gpu_steps.pip_calls import pip_options, reason
from benchmarks.processes import ROOT, run
from flamingo_rt import __version__
from flamingo_rt.child_process import python_command
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.files import new_directory

PEERS = ROOT / "benchmarks" / "peers"
MACHINE = "x86_64"
# Groups of wheels in the order in which they are installed, with the extras that each one is: the first must be whole,
# a backend's group has its name. The peer has an environment of its own.
PRODUCT, PEER, SOURCE = "product", "peer", "source"
EXTRAS = {
    PRODUCT: "export,train", "cuda": "cuda", "ort-cuda": "gpu", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx",
    "ort-tensorrt-rtx": "gpu-rtx",
}
CARRIED = ("torch", "tensorrt", "ort-cuda")  # backends by default: TensorRT-RTX has no Hopper
SOURCES = ("benchmarks", "models/tiny")  # folders of the checkout that the steps need; the package itself is a wheel
SKIPPED = {"__pycache__", ".venv", "results"}
PEER_HAS = ("torch",)  # of the peer's requirements: any build will do, and the machine has one
MARK = "+there"  # the local part of an empty wheel's version


@dataclass(frozen=True)
class Target:
    """The machine: a version of Python such as ``3.12``, and versions of what it ``has`` by normalized name, None where
    the version is not known. ``wheels`` is a folder of further wheels for it."""

    python: str
    has: Mapping[str, str | None]
    wheels: Path | None = None


def write_pack(out: Path, target: Target, backends: Sequence[str], limit: int) -> dict[str, str]:
    """Write the folder ``out``, which appears whole or not at all, with no file of more than ``limit`` bytes. Returns
    the groups that had to be left out, with the reasons.

    Raises `UsageError` where ``out`` exists or backends exclude each other, `DataError` where this project or what it
    needs itself cannot be had.
    """
    if {"ort-cuda", "ort-tensorrt-rtx"} <= set(backends):
        raise UsageError("ort-cuda and ort-tensorrt-rtx take different onnxruntimes, of one name: carry one of the two")
    left_out: dict[str, str] = {}
    files: list[PackedFile] = []
    with new_directory(out) as folder, tempfile.TemporaryDirectory() as temporary:
        making = Path(temporary)
        wheel = _own_wheel(making / "own")
        write_empty_wheels(target.has, making / "there")
        groups: dict[str, list[Path]] = {PRODUCT: [wheel], SOURCE: [_source(making)]}
        for group, extras in EXTRAS.items():
            if group not in (PRODUCT, "cuda", *backends):
                continue
            more = _options(target, making / "there")
            found = _fetched(making / group, [*more, f"{wheel}[{extras}]"])
            if isinstance(found, str) and group == PRODUCT:
                raise DataError(f"what flamingo-rt[{extras}] needs on that machine cannot be had: {found}")
            _take(group, found, groups, left_out)
        pinned = [*requirements(PEERS / "requirements.txt"), *requirements(PEERS / "requirements-no-deps.txt")]
        _take(PEER, _fetched(making / PEER, ["--no-deps", *pip_options(target.python, MACHINE), *pinned]), groups,
              left_out)
        carried: dict[str, tuple[str, Path]] = {}
        for group, paths in groups.items():
            for path in paths:
                if group == PEER or not _is_there(path, target.has):  # the peer has its own versions of what is there
                    carried.setdefault(path.name, (group, path))
        for name, (group, path) in sorted(carried.items()):
            print(f"{name}: {path.stat().st_size / 1e6:.1f} MB, {group}", flush=True)
            files.append(write_pieces(path, folder, group, limit))
        write_manifest(folder, files, {
            "made": datetime.date.today().isoformat(), "version": __version__, "python": target.python,
            "machine": MACHINE, "peer": sorted(path.name for path in groups.get(PEER, ())),
            "extras": {group: EXTRAS[group] for group in EXTRAS if group in groups}, "left_out": left_out,
        })
    return left_out


def read_there(path: Path) -> dict[str, str | None]:
    """Distributions of a machine, from lines ``NAME==VERSION`` or ``NAME``. Raises `DataError` for a file that cannot
    be read or has other lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): give a file of what `pip list --format=freeze` prints "
                        "there") from error
    found: dict[str, str | None] = {}
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].split(" @ ")[0].strip()
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:==([A-Za-z0-9.!+-]+))?", text)
        if match:
            found[normalized(match[1])] = match[2]
        elif text:
            raise DataError(f"{path}, line {number}: {text!r} is no NAME==VERSION, as `pip list --format=freeze` "
                            "prints it")
    return found


def write_empty_wheels(has: Mapping[str, str | None], folder: Path) -> None:
    """Write a wheel without content for each distribution whose version is known, and ``constraints.txt``, which lets
    pip take no other version."""
    folder.mkdir(parents=True)
    constraints = []
    for name, version in has.items():
        if version is None:
            continue
        marked = version.split("+")[0] + MARK
        constraints.append(f"{name}=={marked}\n")
        stem = f"{name.replace('-', '_')}-{marked}"
        with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
            about = f"{stem}.dist-info"
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {marked}\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    (folder / "constraints.txt").write_text("".join(constraints), encoding="utf-8")


def normalized(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(path: Path) -> Iterator[str]:
    """The lines of a requirements file, but for what the machine has."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        if text and text.split("==")[0] not in PEER_HAS:
            yield text


def _own_wheel(folder: Path) -> Path:
    """Build this project's wheel. Raises `DataError` with what pip says."""
    finished = run(python_command("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)),
                   together=True)
    wheels = list(folder.glob("*.whl"))
    if finished.status or not wheels:
        raise DataError(f"the project's wheel cannot be built: {reason(finished.output)}")
    return wheels[0]


def _options(target: Target, there: Path) -> list[str]:
    """Options of ``pip download`` for the machine and what it has."""
    more = () if target.wheels is None else ("--find-links", str(target.wheels))
    return ["--find-links", str(there), "--constraint", str(there / "constraints.txt"), *more,
            *pip_options(target.python, MACHINE)]


def _fetched(folder: Path, arguments: Sequence[str]) -> list[Path] | str:
    """The wheels that pip fetches, or why it cannot."""
    finished = run(python_command("pip", "download", "--quiet", "--dest", str(folder), *arguments), together=True)
    return reason(finished.output) if finished.status else sorted(folder.glob("*.whl"))


def _take(
    group: str, found: list[Path] | str, groups: dict[str, list[Path]], left_out: dict[str, str]
) -> None:
    """Add what was fetched, or why it was not."""
    if isinstance(found, str):
        left_out[group] = found
    else:
        groups.setdefault(group, []).extend(found)


def _is_there(wheel: Path, has: Mapping[str, str | None]) -> bool:
    """Whether a wheel is one that the machine has: an empty one, or one of a version that is not known."""
    if wheel.suffix != ".whl":
        return False
    name, version, *_ = wheel.name.split("-")
    return version.endswith(MARK) or has.get(normalized(name), "") is None


def _source(folder: Path) -> Path:
    """An archive of the checkout's folders that the steps need."""
    path = folder / "source.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in SOURCES:
            for file in sorted((ROOT / name).rglob("*")):
                inside = file.relative_to(ROOT)
                if file.is_file() and not SKIPPED & set(inside.parts):
                    archive.write(file, inside.as_posix())
    return path
