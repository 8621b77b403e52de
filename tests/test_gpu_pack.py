"""A pack for a GPU's machine without a network, from end to end: pip and the commands are replaced, the pieces, the
environment and its packages are real."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_gpu_run import DOCTOR, RIGHT, Runner, bench, row

from benchmarks import gpu_run
from benchmarks.gpu_steps import gpu_measuring, pack, unpacking
from benchmarks.gpu_steps.gpu_support import GpuFacts
from benchmarks.gpu_steps.pieces import MANIFEST, check_pieces, join, read_manifest, write_pieces
from benchmarks.gpu_steps.pip_calls import reason
from benchmarks.processes import Finished
from flamingo_rt.errors import DataError, UsageError

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
LIMIT = 4000  # bytes of a piece


def make_wheel(folder: Path, name: str, version: str, content: str = "", needs: tuple[str, ...] = ()) -> Path:
    """A wheel of one module; pip installs it."""
    module, stem = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module}.py", content)
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"]
        extras = sorted({need.split("extra == ")[1].strip("'") for need in needs if "extra == " in need})
        lines += [f"Provides-Extra: {extra}\n" for extra in extras] + [f"Requires-Dist: {need}\n" for need in needs]
        wheel.writestr(f"{stem}.dist-info/METADATA", "".join(lines))
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return path


class FakePip:
    """In the place of `run`: writes the wheels that pip would, and refuses what is not in an index as wheels."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, ...]] = []

    def __call__(self, command: tuple[str, ...], together: bool) -> Finished:
        self.commands.append(command)
        folder = Path(command[command.index("--wheel-dir" if "wheel" in command else "--dest") + 1])
        needs = ("gguf ; extra == 'export'", "click ; extra == 'export'", "numpy ; extra == 'train'",
                 "onnxruntime-gpu ; extra == 'gpu'", "cuda-bindings ; extra == 'cuda'")
        if "wheel" in command:
            make_wheel(folder, "flamingo-rt", "0.1.0", "packed = True\n" * 500, needs)
        elif command[-1].endswith("[export,train]"):
            make_wheel(folder, "gguf", "0.19.0", "# " + "g" * 9000)
            there = Path(command[command.index("--find-links") + 1])
            for wheel in there.glob("*.whl"):  # as pip copies them: what the machine has
                (folder / wheel.name).write_bytes(wheel.read_bytes())
            make_wheel(folder, "numpy", "2.5.4")
        elif command[-1].endswith("[gpu]"):
            make_wheel(folder, "onnxruntime-gpu", "1.31.1", "providers = ['CUDAExecutionProvider']")
        elif command[-1].endswith("[cuda]"):
            make_wheel(folder, "cuda-bindings", "13.5.0")
        elif "--no-deps" in command:
            make_wheel(folder, "open-flamingo", "2.0.1", "peer = True")
            make_wheel(folder, "numpy", "1.99.1", "pinned = True")
        else:
            return Finished(command, 1, 0.1, 0, "Looking…\nERROR: No matching distribution found for tensorrt<12", None)
        return Finished(command, 0, 0.1, 0, "", None)


@pytest.fixture
def fake_pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(pack, "run", fake)
    monkeypatch.setattr(pack, "MACHINE", platform.machine())
    monkeypatch.setattr(pack, "SOURCES", ("benchmarks/peers/torchvision_stand_in", "benchmarks/gpu_steps"))
    return fake


@pytest.fixture
def packed(fake_pip: FakePip, tmp_path: Path) -> Path:
    """A pack for this Python, with pieces of a few kilobytes."""
    there = tmp_path / "there.txt"
    there.write_text("click==8.5.1\nnumpy  # in a version that is not known\n")
    arguments = ["--pack", str(tmp_path / "pack"), "--python", HERE, "--there", str(there)]
    assert gpu_run.main([*arguments, "--piece-mb", str(LIMIT / 1e6)]) == 0
    return tmp_path / "pack"


# Pieces


def test_a_file_comes_out_of_its_pieces_as_it_went_in(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for size, pieces in ((0, 1), (LIMIT, 1), (LIMIT + 1, 2), (3 * LIMIT, 3)):
        source = tmp_path / f"{size}.whl"
        source.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
        written = write_pieces(source, tmp_path / "out", "product", LIMIT)
        assert len(written.pieces) == pieces
        assert all((tmp_path / "out" / piece.file).stat().st_size <= LIMIT for piece in written.pieces)
        check_pieces(tmp_path / "out", [written])
        (tmp_path / "joined").mkdir(exist_ok=True)
        assert join(tmp_path / "out", written, tmp_path / "joined").read_bytes() == source.read_bytes()
        assert written.bytes == size


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "why"),
    [(Path.unlink, "is missing"), (cut, " bytes"), (flip, "is damaged"),
     (lambda path: (path.unlink(), path.mkdir()), "has ")],
    ids=["missing", "half written", "damaged", "a folder"],
)
def test_pieces_that_cannot_be_used_are_named_with_what_to_do(
    packed: Path, capsys, damage: Callable[[Path], None], why: str
) -> None:
    victims = sorted(packed.glob("gguf-*.part-*"))[:2]
    for victim in victims:
        damage(victim)
    assert gpu_run.main(["--unpack-and-run", str(packed)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: 2 pieces in ")
    for victim in victims:
        assert f"{victim.name} " in error
    assert why in error
    assert "copy them again" in error
    assert not (packed / "run" / "wheels").exists(), "nothing is made of them"


@pytest.mark.parametrize(
    ("manifest", "why"),
    [(None, "is half written or half copied"), ('{"format": 1, "fil', "cannot be read"), ("[1]", "not of format 1"),
     ('{"format": 9}', "not of format 1"), ('{"format": 1}', "is damaged"),
     ('{"format": 1, "files": [7]}', "is damaged"), ('{"format": 1, "files": []}', "this is Python"),
     (f'{{"format": 1, "files": [], "python": "{HERE}", "machine": "{platform.machine()}"}}', "lacks what a pack has"),
     ('{"format": 1, "files": [{"name": "../a", "group": "", "bytes": 0, "sha256": "", "pieces": []}]}', "is damaged")],
    ids=["none", "cut off", "no object", "another format", "no files", "files that are none", "an empty one",
         "an empty one for this machine", "a path in a name"],
)
def test_a_manifest_that_is_not_whole_is_named(packed: Path, capsys, manifest: str | None, why: str) -> None:
    if manifest is None:
        (packed / MANIFEST).unlink()
    else:
        (packed / MANIFEST).write_text(manifest)
    assert gpu_run.main(["--unpack-and-run", str(packed)]) == 1
    error = capsys.readouterr().err
    assert why in error
    assert "Traceback" not in error


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys) -> None:
    assert gpu_run.main(["--unpack-and-run", str(tmp_path / "nothing")]) == 1
    assert "nothing is not a folder" in capsys.readouterr().err


# Packing


def test_a_pack_has_the_project_and_what_the_machine_lacks_in_small_pieces(packed: Path, fake_pip: FakePip) -> None:
    about, files = read_manifest(packed)
    assert {file.name: file.group for file in files} == {
        "flamingo_rt-0.1.0-py3-none-any.whl": "product", "gguf-0.19.0-py3-none-any.whl": "product",
        "cuda_bindings-13.5.0-py3-none-any.whl": "cuda", "onnxruntime_gpu-1.31.1-py3-none-any.whl": "ort-cuda",
        "open_flamingo-2.0.1-py3-none-any.whl": "peer", "numpy-1.99.1-py3-none-any.whl": "peer",
        "source.zip": "source",
    }, "neither click, which is there, nor a numpy beside the peer's"
    assert {path.name for path in packed.iterdir()} == {
        MANIFEST, *(piece.file for file in files for piece in file.pieces)}
    assert max(path.stat().st_size for path in packed.iterdir() if path.name != MANIFEST) <= LIMIT
    assert about["left_out"] == {"tensorrt": "No matching distribution found for tensorrt<12"}
    assert about["extras"] == {"product": "export,train", "cuda": "cuda", "ort-cuda": "gpu"}
    [resolving] = [command for command in fake_pip.commands if command[-1].endswith("[export,train]")]
    assert resolving[resolving.index("--python-version") + 1] == HERE
    assert f"manylinux_2_28_{platform.machine()}" in resolving
    assert not any("tensorrt-rtx" in command[-1] for command in fake_pip.commands)


def test_the_source_in_a_pack_hides_no_package(packed: Path) -> None:
    _, files = read_manifest(packed)
    path = join(packed, next(file for file in files if file.name == "source.zip"), packed)
    names = zipfile.ZipFile(path).namelist()
    assert "benchmarks/gpu_steps/unpacking.py" in names
    assert not any(name.startswith(("flamingo_rt", "export/", "engines/")) or "__pycache__" in name for name in names)


def test_a_pack_that_cannot_be_whole_is_not_written(fake_pip: FakePip, tmp_path: Path, monkeypatch) -> None:
    target = pack.Target(HERE, {})
    with pytest.raises(UsageError, match="carry one of the two"):
        pack.write_pack(tmp_path / "pack", target, ("ort-cuda", "ort-tensorrt-rtx"), LIMIT)
    monkeypatch.setitem(pack.EXTRAS, "product", "unknown")
    with pytest.raises(DataError, match=r"flamingo-rt\[unknown\] needs on that machine cannot be had: No matching"):
        pack.write_pack(tmp_path / "pack", target, ("torch",), LIMIT)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "pack").mkdir()
    with pytest.raises(UsageError, match="already exists"):
        pack.write_pack(tmp_path / "pack", target, ("torch",), LIMIT)


def test_a_list_of_what_is_there_is_read(tmp_path: Path) -> None:
    path = tmp_path / "there.txt"
    path.write_text("# pip list\nTorch==2.11.0+cu130\nruamel.yaml\n\nlocal @ file:///x\n")
    assert pack.read_there(path) == {"torch": "2.11.0+cu130", "ruamel-yaml": None, "local": None}
    for text in ("torch 2.11.0\n", "torch>=2\n"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"line 1: .* is no NAME==VERSION"):
            pack.read_there(path)
    with pytest.raises(DataError, match="cannot be read"):
        pack.read_there(tmp_path / "nothing")
    assert pack.read_there(gpu_run.HERE / "gpu_steps" / "packages_there.txt")["torch"] == "2.11.0"


def test_pip_takes_an_empty_wheel_for_what_is_there(tmp_path: Path) -> None:
    """With the real pip, without an index: a version that is there satisfies, another one conflicts."""
    pack.write_empty_wheels({"torch": "2.11.0+cu130", "numpy": None}, tmp_path / "there")
    for number, (need, status) in enumerate((("torch>=2.11,<2.14", 0), ("torch>=2.12", 1))):
        wheel = make_wheel(tmp_path / str(number), "product", "1.0", "", (need,))
        command = unpacking.python_command(
            "pip", "--isolated", "download", "--quiet", "--no-index", "--find-links", str(tmp_path / "there"),
            "--constraint", str(tmp_path / "there" / "constraints.txt"), "--dest",
            str(tmp_path / f"out{number}"), str(wheel))
        assert subprocess.run(command, capture_output=True).returncode == status
    assert (tmp_path / "out0" / "torch-2.11.0+there-py3-none-any.whl").is_file()


@pytest.mark.parametrize(
    ("output", "found"),
    [("Looking…\nERROR: Could not find a version\nERROR: No matching distribution found for x",
      "No matching distribution found for x"),
     ("ERROR: Cannot install a\n\nThe conflict is caused by:\n    a 1.0 depends on b>2\n    b 1\nERROR: "
      "ResolutionImpossible: for help", "Cannot install a: a 1.0 depends on b>2"),
     ("no room", "no room"), ("", "pip said nothing")],
    ids=["nothing found", "a conflict", "another error", "silence"],
)
def test_pip_s_reason_is_found_in_what_it_prints(output: str, found: str) -> None:
    assert reason(output) == found


# Unpacking and running


class Machine:
    """In the place of `subprocess.run` in unpacking: pip is real, the benchmark runs in this process on commands that
    are made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.installs, self.benchmarks = list[tuple[str, ...]](), list[tuple[str, ...]]()
        self._run, self._monkeypatch = subprocess.run, monkeypatch
        monkeypatch.setattr(unpacking.subprocess, "run", self)
        monkeypatch.setattr(gpu_measuring, "asked_gpu", lambda: GpuFacts("NVIDIA H200", (9, 0), "580.159.03"))
        monkeypatch.setattr(gpu_measuring, "find_gpu", lambda: None)

    def __call__(self, command: tuple[str, ...], **more) -> subprocess.CompletedProcess:
        if "benchmarks.gpu_run" in command:
            self.benchmarks.append(command)
            Commands().takes_over(self._monkeypatch)
            arguments = command[command.index("benchmarks.gpu_run") + 1 :]
            return subprocess.CompletedProcess(command, gpu_run.main(arguments))
        if "install" in command:
            self.installs.append(command)
        return self._run(command, **more)

    def imported(self, environment: Path, code: str) -> str:
        """Run a program in an environment; returns what it prints."""
        done = self._run([environment / "bin" / "python", "-P", "-c", code], capture_output=True, text=True)
        return done.stdout.strip() or done.stderr


def unpacking_to(folder: Path, packed: Path) -> list[str]:
    return ["--unpack-and-run", str(packed), "--work", str(folder / "work"), "--results", str(folder / "results")]


class Commands(Runner):
    """Answers of the product's commands and of the peer."""

    def answer(self, command: tuple[str, ...]) -> tuple[int, str]:
        if "doctor" in command:
            return 0, json.dumps(DOCTOR)
        if "bench" in command:
            return 0, json.dumps(bench(2.0, 0.8, 10.0, 100.0, 12.0))
        return 0, json.dumps(RIGHT) if "verify" in command else ""


def test_from_a_pack_to_the_table(packed: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """With real environments and the real pip, without an index; click and numpy are those of this Python."""
    machine, work, results = Machine(monkeypatch), tmp_path / "work", tmp_path / "results"
    arguments = unpacking_to(tmp_path, packed)
    assert gpu_run.main(arguments) == 0
    out = capsys.readouterr().out
    assert row(out, "torch, fp16")["of the bandwidth"] == row(out, "ort-cuda, ort graphs, fp16")["of the bandwidth"]
    assert "backend, tensorrt: No matching distribution found for tensorrt<12" in out
    [file] = results.glob("*-nvidia-h200-gpu.jsonl")
    assert json.loads(file.read_text().splitlines()[0])["minutes"] <= 10.0
    [command] = machine.benchmarks
    assert command[0] == str(work / "venv" / "bin" / "python")
    assert command[command.index("--peer-python") + 1] == str(work / "peer" / "bin" / "python")
    # The packed wheels come before what is there, and what is there is seen.
    told = machine.imported(work / "venv", "import flamingo_rt, onnxruntime_gpu, click; print(flamingo_rt.packed)")
    assert told == "True"
    assert machine.imported(work / "peer", "import numpy, open_flamingo; print(numpy.pinned, open_flamingo.peer)") == \
        "True True"
    installs = len(machine.installs)
    assert gpu_run.main(arguments) == 0
    assert len(machine.installs) == installs, "what is installed from the same pack stays"


def installing(monkeypatch: pytest.MonkeyPatch, why: Callable[[tuple[str, ...]], str | None]) -> Machine:
    """A machine whose pip does nothing, and fails for the arguments that ``why`` has a reason for."""
    monkeypatch.setattr(unpacking, "_pip", lambda work, environment, *arguments: why(arguments))
    return Machine(monkeypatch)


def test_a_part_that_does_not_install_costs_its_backend_alone(
    packed: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    installing(monkeypatch, lambda given: "no room" if "gpu" in given[-1] else None)
    arguments = unpacking_to(tmp_path, packed)
    assert gpu_run.main(arguments) == 0
    out = capsys.readouterr().out
    assert row(out, "ort-cuda")[""] == "not here"
    assert "backend, ort-cuda: its part of the pack cannot be installed: no room" in out
    assert row(out, "torch, fp16")["of the bandwidth"] == "0.80 (goal 0.78)"


def test_packages_there_that_do_not_fit_are_named_and_the_packed_ones_installed(
    packed: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """A machine's own packages may contradict each other; pip would then refuse everything."""
    seen = []

    def refuse(given: tuple[str, ...]) -> str | None:
        seen.append(given)
        return "torch 2.11.0 requires setuptools<82" if given[-1] == "flamingo-rt[export,train]" else None

    installing(monkeypatch, refuse)
    arguments = unpacking_to(tmp_path, packed)
    assert gpu_run.main(arguments) == 0
    assert "pack: product: what is here does not fit (torch 2.11.0 requires setuptools<82)" in capsys.readouterr().out
    again = next(given for given in seen if given[0] == "--no-deps" and "--force-reinstall" not in given)
    assert {Path(path).name.split("-")[0] for path in again[1:]} == {"flamingo_rt", "gguf"}


def test_an_installation_that_fails_stops_with_the_remedy(packed: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    installing(monkeypatch, lambda given: "No space left on device")
    assert gpu_run.main(["--unpack-and-run", str(packed), "--work", str(tmp_path / "work")]) == 1
    error = capsys.readouterr().err
    assert "flamingo_rt-0.1.0-py3-none-any.whl cannot be installed from the pack: No space left on device" in error
    assert not (tmp_path / "work" / unpacking.INSTALLED).exists()


def test_a_pack_for_another_python_is_refused(packed: Path, capsys) -> None:
    content = json.loads((packed / MANIFEST).read_text())
    (packed / MANIFEST).write_text(json.dumps(content | {"python": "3.99"}))
    assert gpu_run.main(["--unpack-and-run", str(packed)]) == 1
    assert f"the pack is for Python 3.99 on {platform.machine()}, this is Python {HERE}" in capsys.readouterr().err


def test_unpacking_needs_no_library() -> None:
    """On the GPU's machine nothing is installed when it begins."""
    code = ("import sys; import benchmarks.gpu_run, benchmarks.gpu_steps.unpacking; "
            "print([name for name in ('numpy', 'click', 'flamingo_rt.engines') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=gpu_run.HERE.parent)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
