"""A checkpoint: a folder with ``model.safetensors``, ``config.json`` and ``tokenizer.json``."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError
from flamingo_rt.files import new_directory
from flamingo_rt.model.flamingo import Flamingo, on_meta_device

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


@dataclass(frozen=True)
class Checkpoint:
    """A model in evaluation mode and the file of its tokenizer."""

    model: Flamingo
    tokenizer: Path


def is_checkpoint(path: Path) -> bool:
    """Whether the folder looks like a checkpoint."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def save_checkpoint(path: Path, model: Flamingo, tokenizer_json: str, overwrite: bool = False) -> None:
    """Write a checkpoint folder; ``path`` appears whole or not at all. Raises `UsageError` when it exists."""
    with new_directory(path, overwrite) as folder:
        write_tensors(model.state_dict(), folder / WEIGHTS, path / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(model.config.to_dict(), indent=1) + "\n", encoding="utf-8")
        (folder / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")


def write_tensors(tensors: dict[str, Tensor], file: Path, target: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that will be renamed to ``target``. Raises `DataError`, on a full disk for instance."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    except SafetensorError as error:  # what safetensors makes of an operating system's error
        raise DataError(f"cannot write {target}: {error}; free some space and run again") from error
    file.chmod(0o644)  # safetensors leaves it to its owner alone


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder. Raises `DataError` that names what is missing or has another shape."""
    if not path.is_dir():
        raise DataError(f"{path} is not a checkpoint folder: it needs {WEIGHTS}, {CONFIG} and {TOKENIZER}")
    missing = [name for name in (WEIGHTS, CONFIG, TOKENIZER) if not (path / name).is_file()]
    if missing:
        raise DataError(f"checkpoint {path} lacks {', '.join(missing)}")
    config = FlamingoConfig.read(path / CONFIG)
    try:
        tensors = load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise DataError(f"cannot read {path / WEIGHTS}: {error}; damaged: copy or train it again") from error
    with on_meta_device():
        model = Flamingo(config)
    _check_tensors(path / WEIGHTS, model.state_dict(), tensors)
    # Half-precision files are read too; the model itself computes in float32.
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return Checkpoint(model.eval(), path / TOKENIZER)


def copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Put the checkpoint's tokenizer into ``folder``."""
    shutil.copyfile(checkpoint.tokenizer, folder / TOKENIZER)


def _check_tensors(file: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    def listed(names: list[str]) -> str:
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    missing = sorted(set(expected) - set(found))
    if missing:
        raise DataError(f"{file} lacks {len(missing)} tensors that its config.json asks for: {listed(missing)}")
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise DataError(f"{file} has {len(unknown)} tensors that its config.json does not know: {listed(unknown)}")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise DataError(
                f"{file}: tensor {name} has shape {list(found[name].shape)}, "
                f"config.json asks for {list(tensor.shape)}"
            )
        if not found[name].is_floating_point():
            raise DataError(f"{file}: tensor {name} is {found[name].dtype}, not floating point")
