"""Packages of the recipe, fetched by their registries' own clients into ``runs/photos/fetched``.

    python -m recipes.photos.fetch                  # all: 500 MB are downloaded, 200 MB kept
    python -m recipes.photos.fetch --only model     # encoder, language model, emoji to calibrate with, photographs
    python -m recipes.photos.fetch --only try       # photographs to test on alone

Of each package only the files that are used stay, once their content is what `packages.py` says. A second run skips
what is there and undamaged.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from flamingo_rt.child_process import child_environment, python_command
from flamingo_rt.errors import DataError, FlamingoError
from flamingo_rt.printable import printable
from recipes.photos import FETCHED
from recipes.photos.packages import PACKAGES, Package

INTERRUPTED = 130  # the exit code, as of the shell
DOWNLOAD_SECONDS = 1800  # of one package: 160 MB at 100 kB a second
PROGRAMS = {"npm": ("npm",), "apt": ("apt-get", "dpkg-deb")}  # that a client's packages need; pip is this Python's
INSTALL = {"pip": f"run {sys.executable} -m ensurepip", "npm": "install Node.js",
           "apt-get": "use Debian or Ubuntu", "dpkg-deb": "install dpkg"}
ERROR = re.compile(r"\b(error|ERR|E:)")  # as npm, older npm and pip, and apt-get begin their errors
Download = Callable[[Package, Path], None]


def fetch(package: Package, fetched: Path, download: Download | None = None) -> bool:
    """Fetch a package into a folder of its name in ``fetched``; False where it is there already.

    ``download`` puts the archive into a folder; default: the package's client. Raises `DataError` when the client or
    the network is missing and when the content is not the expected one; then nothing is left behind.
    """
    if is_fetched(package, fetched):
        return False
    if download is None:
        require_clients((package,))
    folder = fetched / package.name
    fetched.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{package.name}-", dir=fetched) as beside:
        archives, content = Path(beside) / "archive", Path(beside) / "content"
        archives.mkdir()
        content.mkdir()
        (download or _download)(package, archives)
        archive = _only_file(package, archives)
        _extract(package, archive, content)
        _check(package, archive, content)
        if folder.exists():
            folder.rename(Path(beside) / "before")  # removed with the rest: it takes long, and may be interrupted
        content.rename(folder)
    return True


def is_fetched(package: Package, fetched: Path) -> bool:
    """Whether a package's folder holds the expected files, each byte of which is read."""
    folder = fetched / package.name
    return folder.is_dir() and content_digest(folder) == package.sha256


def require_clients(packages: Iterable[Package]) -> None:
    """Raise `DataError` that names every program the packages need and this system lacks, and for which packages."""
    lacking: dict[str, list[str]] = {}
    for package in packages:
        if package.client == "pip":
            missing = [] if importlib.util.find_spec("pip") else ["pip"]
        else:
            missing = [program for program in PROGRAMS[package.client] if shutil.which(program) is None]
        for program in missing:
            lacking.setdefault(program, []).append(package.name)
    if lacking:
        told = ". ".join(f"{program} was not found ({INSTALL[program]}); needed for {', '.join(names)}"
                         for program, names in lacking.items())
        raise DataError(f"{told}. Nothing was downloaded: mend this, then run again")


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
        _run(package, ("npm", "pack", "--loglevel=error", f"{package.name}@{package.version}"), folder)
    else:
        _run(package, ("apt-get", "download", package.name), folder)


def _run(package: Package, command: Sequence[str], folder: Path) -> None:
    name = f"{package.name} {package.version}"
    try:
        done = subprocess.run(command, cwd=folder, env=child_environment(), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, errors="replace", timeout=DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{name}: {' '.join(command[:2])} took more than {DOWNLOAD_SECONDS} s and was stopped; "
                        "run again") from error
    if done.returncode:
        said = _first_error(done.stderr) or _first_error(done.stdout) or f"exit code {done.returncode}"
        if package.client == "apt":  # fresh containers have no lists of packages; changing the system's is not ours
            raise DataError(f"{name}: apt-get failed with {said}; run apt-get update as root, then again")
        raise DataError(f"{name}: {package.client} failed with {said}; is there a network that reaches the registry? "
                        "Nothing was kept; run again")


def _first_error(said: str) -> str:
    """The first line that is an error, else the last line; empty where nothing was said."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and "A complete log of this run" not in line]
    errors = [line for line in lines if ERROR.search(line)]
    return printable((errors or lines[-1:] or [""])[0])


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
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # of damaged flags
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
        raise DataError(f"{archive.name}: dpkg-deb was not found; {INSTALL['dpkg-deb']}, then run again")
    command = ("dpkg-deb", "--fsys-tarfile", str(archive))
    damage: tarfile.TarError | None = None
    with (tempfile.TemporaryFile() as said,
          subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, stderr=said) as process):
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                yield tar
        except tarfile.TarError as error:
            damage = error
        while process.stdout.read(1 << 20):  # a tar file ends before its stream does; a closed pipe would be an error
            pass
        if process.wait() or damage:
            said.seek(0)
            told = _first_error(said.read().decode(errors="replace"))
            raise tarfile.ReadError(told or str(damage or f"dpkg-deb gave {process.returncode}")) from damage


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
        wanted = [package for package in chosen if not is_fetched(package, FETCHED)]
        require_clients(wanted)
        for package in chosen:
            done = package in wanted and fetch(package, FETCHED)
            print(f"{package.name}: {'fetched' if done else 'is there'}", flush=True)
    except FlamingoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; nothing half-written stays", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        print(f"error: {FETCHED}: {error.strerror or error}; nothing half-written stays", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
