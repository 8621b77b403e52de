"""A system's own OpenCV and TensorRT, as a JetPack has them: they are imported where they are found, doctor sees what
hides them, and the page's commands bring all requirements but those.

The stand-ins are folders as on a JetPack: modules, and records of distributions where there are any.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from flamingo_rt.cli import doctor
from flamingo_rt.cli.module_places import places
from flamingo_rt.engines.tensorrt.versions import import_tensorrt
from flamingo_rt.errors import DataError, DependencyError
from flamingo_rt.processing import opencv_clips

ROOT = Path(__file__).parent.parent
OPENCV, TENSORRT = "4.8.0", "10.3.0"


@pytest.fixture
def jetpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's folder of packages: an OpenCV that pip has no record of, a TensorRT with one; first on the path."""
    folder = tmp_path / "dist-packages"
    for name, version in (("cv2", OPENCV), ("tensorrt", TENSORRT)):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"__version__ = {version!r}\nSYSTEM = True\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    record(folder, "tensorrt", TENSORRT)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("cv2", "tensorrt"):
        if hasattr(sys.modules.get(name), "SYSTEM"):
            del sys.modules[name]


def record(folder: Path, name: str, version: str) -> None:
    """The record of an installed distribution."""
    (folder / f"{name}-{version}.dist-info").mkdir()
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def required(extra: str) -> dict[str, Requirement]:
    """Requirements of the package with an extra, by name."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    text = setup["options"]["install_requires"] + (setup["options.extras_require"][extra] if extra else "")
    return {requirement.name: requirement for requirement in map(Requirement, text.strip().splitlines())}


def missing(folder: Path, extra: str) -> set[str]:
    """The requirements that pip would look for where these distributions are installed."""
    there = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions(path=[str(folder)])}
    return {name for name, wanted in required(extra).items()
            if name not in there or not wanted.specifier.contains(there[name])}


def test_the_opencv_that_is_found_reads_clips(jetpack: Path) -> None:
    cv2 = opencv_clips._opencv()
    assert cv2.SYSTEM
    assert Path(cv2.__file__).parent == jetpack / "cv2"
    assert opencv_clips._version() == (4, 8)


def test_the_tensorrt_that_is_found_builds_engines(jetpack: Path) -> None:
    found = import_tensorrt("tensorrt")
    assert found.module.SYSTEM
    assert (found.version, found.lowerings) == (TENSORRT, ("tensorrt-classic",))


def test_a_jetpack_s_tensorrt_satisfies_the_extra_and_its_opencv_no_requirement(jetpack: Path) -> None:
    assert "tensorrt" not in missing(jetpack, "tensorrt")
    assert "opencv-python-headless" in missing(jetpack, "tensorrt")
    record(jetpack, "opencv", OPENCV)  # as Debian names its own
    assert "opencv-python-headless" in missing(jetpack, "")


def test_the_page_s_commands_bring_every_requirement_but_opencv(jetpack: Path) -> None:
    text = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8").replace("\\\n", "")
    (line,) = re.findall(r"venv/bin/pip install ('.*)", text)
    asked = {each.name: each for each in map(Requirement, shlex.split(line))}
    wanted = required("cuda")
    assert set(asked) == set(wanted) - {"opencv-python-headless"}
    for name, requirement in asked.items():
        lowest = next(str(each.version) for each in wanted[name].specifier if each.operator == ">=")
        assert requirement.specifier.contains(lowest), requirement
        above = {str(each) for each in requirement.specifier if each.operator == "<"}
        assert above <= {str(each) for each in wanted[name].specifier} | {"<2", "<13"}, requirement
        record(jetpack, name, lowest)
    assert missing(jetpack, "cuda") == {"opencv-python-headless"}


def test_every_extra_asks_for_opencv_as_the_package_itself_does() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert "opencv-python-headless" in required("")
    assert not [name for name, text in setup["options.extras_require"].items() if "opencv" in text]


# Doctor


def test_a_module_is_found_where_it_would_be_imported_from_and_where_it_is_hidden(jetpack: Path, tmp_path) -> None:
    (tmp_path / "own" / "cv2").mkdir(parents=True)
    (tmp_path / "own" / "cv2" / "__init__.py").touch()
    (tmp_path / "folder" / "cv2").mkdir(parents=True)
    path = [str(tmp_path / "folder"), str(tmp_path / "own"), "", str(tmp_path / "absent"), str(jetpack), str(jetpack)]
    assert places("cv2", path) == [tmp_path / "own", jetpack]
    assert places("no_such_module", path) == []


def test_doctor_warns_of_a_module_that_hides_the_system_s(jetpack: Path, monkeypatch) -> None:
    hiding = {"cv2": [Path("/venv/site-packages"), jetpack], "tensorrt": [jetpack]}
    monkeypatch.setattr(doctor, "places", hiding.__getitem__)
    (warning,) = doctor._warnings({})
    assert warning.startswith(f"the cv2 in /venv/site-packages hides another one in {jetpack}: pip uninstall opencv-p")


def test_doctor_knows_an_opencv_of_another_name_or_without_any(jetpack: Path, monkeypatch) -> None:
    versions: dict[str, str] = {}
    monkeypatch.setattr(doctor, "_version", versions.get)
    assert doctor._found("opencv-python-headless") == f"in {jetpack}"
    versions["opencv"] = OPENCV
    assert doctor._found("opencv-python-headless") == f"{OPENCV} (opencv)"
    versions["opencv-python-headless"] = "5.0.0"
    assert doctor._found("opencv-python-headless") == "5.0.0"
    assert doctor._found("scikit-learn") is None


# An OpenCV that was built without FFmpeg


@pytest.mark.parametrize(("backends", "error", "said"), [
    ((1800,), DependencyError, r"clip\.mp4 cannot be read: OpenCV 4\.8\.0 \(/system/cv2\) was built without FFmpeg"),
    ((1900, 1800), DataError, r"clip\.mp4"),
], ids=["without", "with"])
def test_a_clip_that_cannot_be_opened_is_not_blamed_on_an_opencv_without_ffmpeg(
    tmp_path: Path, monkeypatch, backends, error, said
) -> None:
    class Closed:
        def isOpened(self) -> bool:
            return False

        def release(self) -> None:
            pass

    stand_in = SimpleNamespace(
        __version__="4.8.0", __file__="/system/cv2", CAP_FFMPEG=1900, VideoCapture=lambda *given: Closed(),
        videoio_registry=SimpleNamespace(getStreamBackends=lambda: backends),
    )
    monkeypatch.setattr(opencv_clips, "_opencv", lambda: stand_in)
    (tmp_path / "clip.mp4").write_bytes(b"no clip at all")
    with pytest.raises(error, match=said), opencv_clips.open_clip(str(tmp_path / "clip.mp4"), "clip.mp4"):
        pass


def test_doctor_shows_the_place_in_its_json(run_doctor_json, jetpack: Path) -> None:
    assert run_doctor_json()["opencv-python-headless"]


@pytest.fixture
def run_doctor_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Libraries of ``doctor --json``, without trying the backends."""
    def call() -> dict[str, str | None]:
        monkeypatch.setattr(doctor, "_try", lambda *checks: {"works": False, "detail": ""})
        doctor.command.main(["--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out)["libraries"]

    return call
