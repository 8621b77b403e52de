"""Imports run one way, and what runs on a device needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from imported_names import imported

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "flamingo_rt": ROOT / "flamingo_rt",
    "flamingo_rt.export": ROOT / "export",
    "flamingo_rt.engines": ROOT / "engines",
}

# The parts of the project that each part may import, besides itself.
BASE = {
    "errors", "config", "cores", "files", "contract", "backend", "device_arrays", "graph_files",
    "json_files", "model_memory", "parameter_count", "presets", "printable", "progress", "protobuf", "system_memory",
    "bounded_files", "step_costs", "product_rate", "toml_files",
}
RUNTIME = BASE | {"bundle", "processing", "engines"}
ALLOWED = {
    "errors": set(),
    "child_process": set(),
    "cores": {"errors"},
    "json_files": {"errors", "bounded_files", "printable"},
    "parameter_count": {"config"},
    "model_memory": {"errors", "config", "parameter_count", "system_memory"},
    "config": {"errors", "json_files", "parameter_count"},
    "device_arrays": set(),
    "files": {"errors", "printable", "unfinished"},
    "graph_files": {"errors", "protobuf"},
    "printable": set(),
    "regex_cost": set(),
    "tokenizer_steps": set(),
    "tokenizer_file": {"errors", "bounded_files", "printable", "regex_cost", "tokenizer_steps"},
    "progress": set(),
    "exporter_noise": set(),
    "protobuf": set(),
    "system_memory": set(),
    "bounded_files": {"errors"},
    "toml_files": {"errors", "bounded_files"},
    "unfinished": set(),
    "presets": {"errors", "config"},
    "product_rate": set(),
    "step_costs": set(),
    "contract": {"errors", "config"},
    "backend": {"contract"},
    "bundle": {"errors", "config", "contract", "step_costs"},
    "processing": {"errors", "config", "device_arrays", "tokenizer_file"},
    "engines": BASE | {"bundle"},
    "runtime": BASE | {"processing"},
    # engines: an external encoder is a graph, and runs on one
    "model": {"errors", "config", "contract", "backend", "engines"},
    "weights": {"errors", "json_files", "printable"},
    "checkpoints": {
        "errors", "config", "files", "json_files", "model", "model_memory", "bounded_files", "tokenizer_file",
        "weights",
    },
    "importing": {
        "errors", "config", "contract", "presets", "checkpoints", "bounded_files", "engines", "exporter_noise",
        "files", "graph_files", "json_files", "printable", "tokenizer_file", "weights",
    },
    "training": BASE | {"processing", "model", "checkpoints", "importing", "tokenizer_file", "weights"},
    "evaluation": RUNTIME | {"runtime", "training"},
    "export": RUNTIME | {
        "runtime", "model", "checkpoints", "evaluation", "exporter_noise", "training", "weights",
    },
    "memory_plan": {"errors", "bundle", "contract", "parameter_count", "runtime", "system_memory"},
    "loading": RUNTIME | {"runtime", "model", "checkpoints", "memory_plan"},
    # Bundles with random weights are made by export, from checkpoints.
    "bench": RUNTIME | {"runtime", "export", "checkpoints", "child_process", "__init__"},
    "cli": RUNTIME | {
        "runtime", "model", "checkpoints", "importing", "training", "evaluation", "export", "loading", "bench",
        "memory_plan", "__init__",
    },
    "__main__": {"cli"},
    "__init__": {"errors", "loading", "processing", "runtime"},
}
# Third-party libraries, each with the parts that wrap it: no other part may import it.
OWNERS = {
    # cli: doctor checks whether it is installed; bench: the rate of its matrix products
    "torch": {"model", "weights", "checkpoints", "importing", "training", "export", "cli", "bench"},
    "onnxruntime": {"engines", "export"},  # export: its quantizers
    "onnx": {"export", "importing"},
    "onnx_ir": {"export", "importing"},
    "safetensors": {"weights", "training", "cli"},
    "gguf": {"weights"},
    "cv2": {"processing", "training"},
    "av": {"processing"},
    "sklearn": {"training"},
    "tokenizers": {"tokenizer_file", "tokenizer_steps", "processing", "importing", "training", "export"},
    "PIL": {"processing", "training", "bench"},
    "click": {"cli"},
    "rich": {"cli", "bench"},
    "matplotlib": {"bench"},
    "pynvml": {"bench"},
    "jtop": {"bench"},
}


def modules() -> list[tuple[str, Path]]:
    found = []
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            relative = file.relative_to(folder).with_suffix("")
            part = package.split(".")[1] if "." in package else relative.parts[0]
            found.append((part, file))
    return found


@pytest.mark.parametrize(("part", "file"), modules(), ids=lambda value: str(value).split("/")[-1])
def test_a_module_imports_only_what_its_place_allows(part: str, file: Path) -> None:
    for name in imported(file):
        assert not name.startswith("."), f"{file}: relative import of {name}"
        head, *rest = name.split(".")
        assert head not in {"export", "engines"}, f"{file} imports {name}: say flamingo_rt.{name}"
        if head == "flamingo_rt":
            target = rest[0] if rest and rest[0] in ALLOWED else "__init__"
            assert target == part or target in ALLOWED[part], f"{file} may not import {name}"
        elif head in OWNERS:
            assert part in OWNERS[head], f"{file} may not import {name}"


HEAVY = ("torch", "onnx", "onnxruntime", "cv2", "av", "sklearn", "rich", "PIL", "tokenizers", "numpy", "matplotlib")


def loaded_after(code: str) -> set[str]:
    listing = f"import sys\n{code}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    return set(ast.literal_eval(done.stdout.strip().splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import flamingo_rt") == set()


def test_help_loads_nothing_heavy() -> None:
    code = "sys.argv = ['flamingo-rt', '--help']\nfrom flamingo_rt.cli import main\n" \
           "try:\n    main()\nexcept SystemExit:\n    pass"
    assert loaded_after(code) == set()


def test_answering_with_the_packaged_model_loads_no_torch_and_no_opencv() -> None:
    picture = ROOT / "examples" / "scene.png"
    code = f"sys.argv = ['flamingo-rt', 'infer', '--image', {str(picture)!r}]\nfrom flamingo_rt.cli import main\nmain()"
    loaded = loaded_after(code)
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "onnx", "cv2", "av", "sklearn", "rich"}


def test_every_public_name_resolves() -> None:
    import flamingo_rt

    for name in flamingo_rt.__all__:
        assert getattr(flamingo_rt, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        flamingo_rt.nonsense  # noqa: B018
