"""A checkpoint: a folder with ``config.json``, ``tokenizer.json`` and ``model.safetensors``, or shards of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flamingo_rt.bounded_files import read_text
from flamingo_rt.config import FlamingoConfig, LanguageConfig, VisionConfig
from flamingo_rt.errors import DataError
from flamingo_rt.files import check_space, new_directory
from flamingo_rt.json_files import read_json
from flamingo_rt.model.flamingo import Flamingo, make_vision_encoder, on_meta_device
from flamingo_rt.model.language_model import LanguageModel
from flamingo_rt.model_memory import require_memory
from flamingo_rt.tokenizer_file import MOST_BYTES
from flamingo_rt.weights.lazy import LazyTensor, in_memory
from flamingo_rt.weights.weight_files import open_weights
from flamingo_rt.weights.writing import write_shards

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS = "model.safetensors"  # or model-00001-of-0000N.safetensors with an index
INDEX = f"{WEIGHTS}.index.json"
EXTERNAL_GRAPH = "vision.graph"  # the one tensor of an external encoder
BRIDGE = "bridge"  # the kind of a folder with what was trained between frozen parts
BUNDLE = "manifest.json"  # tells a bundle, which is no checkpoint
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class StoredModel:
    """A model whose weights are still in their files.

    ``tensors`` has every tensor of `Flamingo` by name, in its stored dtype. ``tokenizer`` is the text of a
    tokenizer.json.
    """

    config: FlamingoConfig
    tokenizer: str
    tensors: Mapping[str, LazyTensor]

    def stored_as(self, dtype: torch.dtype) -> StoredModel:
        """Convert the matrices to ``dtype`` when they are read, and the vectors (norms, biases, gates) to float32: they
        are few, and half precision would cost more accuracy than it saves memory. An external encoder's graph stays as
        it is."""
        return StoredModel(self.config, self.tokenizer, {
            name: tensor if is_graph(tensor) else tensor.to(dtype if len(tensor.shape) > 1 else torch.float32)
            for name, tensor in self.tensors.items()
        })

    def load(
        self, dtype: torch.dtype = torch.float32, device: torch.device | None = None, available: int | None = None
    ) -> Flamingo:
        """Read the weights: the model in evaluation mode, its numbers in ``dtype``, on a ``device``, by default the
        CPU, where ``available`` bytes are free. An external encoder's graph stays in host memory.

        Raises `DataError` when memory is too small.
        """
        require_memory(self.config, dtype.itemsize, f"the model in {str(dtype).removeprefix('torch.')}", available)

        def read(tensor: LazyTensor) -> torch.Tensor:
            found = read_for(tensor, dtype)
            return found if device is None or is_graph(tensor) else found.to(device)

        with on_meta_device():
            model = Flamingo(self.config)
        model.load_state_dict({name: read(tensor) for name, tensor in self.tensors.items()}, assign=True)
        return model.eval()


def is_graph(tensor: LazyTensor) -> bool:
    """Whether a tensor of a model holds bytes, the graph of an external encoder, and not numbers to compute with."""
    return tensor.dtype == torch.uint8


def read_for(tensor: LazyTensor, dtype: torch.dtype) -> torch.Tensor:
    """The values of a model's tensor as a module that computes in ``dtype`` takes them."""
    return (tensor if is_graph(tensor) else tensor.to(dtype)).read()


def expected_shapes(config: FlamingoConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a model, in the order of its state dict."""
    with on_meta_device():
        return {name: tuple(tensor.shape) for name, tensor in Flamingo(config).state_dict().items()}


def part_shapes(config: VisionConfig | LanguageConfig) -> dict[str, tuple[int, ...]]:
    """Names, as in `expected_shapes`, and shapes of the tensors of a vision encoder or a language model alone."""
    with on_meta_device():
        prefix, model = ("language", LanguageModel(config)) if isinstance(config, LanguageConfig) else (
            "vision", make_vision_encoder(config))
        return {f"{prefix}.{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def is_checkpoint(path: Path) -> bool:
    """Whether the folder looks like a checkpoint."""
    return (path / CONFIG).is_file() and ((path / WEIGHTS).is_file() or (path / INDEX).is_file())


def save_checkpoint(path: Path, model: Flamingo, tokenizer_json: str, overwrite: bool = False) -> None:
    """Write a model as a checkpoint folder, which appears whole or not at all. Raises `UsageError` when it exists."""
    write_checkpoint(path, StoredModel(model.config, tokenizer_json, in_memory(model.state_dict(), path)), overwrite)


def write_checkpoint(
    path: Path, model: StoredModel, overwrite: bool = False,
    on_tensor: Callable[[str, int], None] = lambda name, size: None,
) -> None:
    """Write a checkpoint folder shard by shard. ``on_tensor(name, bytes)`` is called after each tensor.

    Raises `UsageError` when ``path`` exists and may not be replaced, `DataError` for a damaged source or a full disk.
    """
    write_folder(path, model.config.to_dict(), model.tokenizer, model.tensors, overwrite, on_tensor)


def write_folder(
    path: Path, config: dict[str, Any], tokenizer: str | None, tensors: Mapping[str, LazyTensor], overwrite: bool,
    on_tensor: Callable[[str, int], None] = lambda name, size: None,
) -> None:
    """Write ``config.json``, ``tokenizer.json`` if there is one, and weights, as `write_checkpoint` does."""
    check_space(path, sum(tensor.nbytes for tensor in tensors.values()))
    with new_directory(path, overwrite) as folder:
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        if tokenizer is not None:
            (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        write_shards(tensors, folder, path, on_tensor=on_tensor)


def open_checkpoint(path: Path) -> StoredModel:
    """Find the tensors of a checkpoint folder without reading them. Raises `DataError` that names a missing file, or a
    tensor that is missing or has the wrong shape, and for a bundle or what stage 1 or 2 of training wrote."""
    _refuse_others(path)
    require_files(path, (CONFIG, TOKENIZER), "checkpoint")
    config = FlamingoConfig.read(path / CONFIG)
    file, tensors = open_folder(path)
    shapes = expected_shapes(config)
    check_tensors(file, shapes, tensors)
    tokenizer = read_text(path / TOKENIZER, MOST_BYTES)
    return StoredModel(config, tokenizer, {name: tensors[name] for name in shapes})


def _refuse_others(path: Path) -> None:
    """Raise `DataError` for a folder of this project that is no checkpoint, with what it is for."""
    if (path / BUNDLE).is_file():
        raise DataError(f"{path} is a bundle, which runs as it is: give the checkpoint that it was exported from")
    refuse_bridge(path)
    kind = _said_kind(path)
    if kind in ("vision", "language"):
        raise DataError(f"{path} is what train {kind} wrote, a part of a model: train flamingo takes it as --{kind}")


def refuse_bridge(path: Path) -> None:
    """Raise `DataError` for a folder that holds a bridge alone (`training/bridge_folder.py`)."""
    if _said_kind(path) == BRIDGE:
        raise DataError(f"{path} is a bridge without its frozen parts: flamingo-rt bridge join makes it whole")


def _said_kind(path: Path) -> Any:
    """The ``kind`` in a folder's config.json; None for anything else."""
    config = read_json(path / CONFIG) if (path / CONFIG).is_file() else None
    return config.get("kind") if isinstance(config, dict) else None


def require_files(path: Path, names: Iterable[str], what: str) -> None:
    """Raise `DataError` that names the files which a folder lacks, of its weights and those in ``names``; ``what``
    describes the folder."""
    if not path.exists():
        raise DataError(f"{path} does not exist: give a {what} folder")
    if not path.is_dir():
        raise DataError(f"{path} is not a {what} folder: it needs {', '.join((WEIGHTS, *names))}")
    missing = [name for name in names if not (path / name).is_file()]
    if not (path / WEIGHTS).is_file() and not (path / INDEX).is_file():
        missing.insert(0, WEIGHTS)
    if missing:
        raise DataError(f"{what} {path} lacks {', '.join(missing)}")


def open_folder(path: Path) -> tuple[Path, dict[str, LazyTensor]]:
    """The file of a folder's weights, or their index, and the tensors. Raises `DataError` when one is damaged."""
    weights = path / WEIGHTS
    return (weights, open_weights(weights)) if weights.is_file() else (path / INDEX, open_weights(path))


def check_tensors(file: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, LazyTensor]) -> None:
    """Raise `DataError` unless ``found`` has exactly the tensors ``expected``, each in its shape and floating point;
    the message names ``file`` or the tensor's own, and the tensor."""
    def listed(names: Iterable[str]) -> str:
        names = sorted(names)
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    missing, unknown = set(expected) - set(found), set(found) - set(expected)
    if missing:
        raise DataError(f"{file} lacks {len(missing)} tensors that its config.json asks for: {listed(missing)}")
    if unknown:
        raise DataError(f"{file} has {len(unknown)} tensors that its config.json does not know: {listed(unknown)}")
    for name, shape in expected.items():
        tensor = found[name]
        if tensor.shape != shape:
            raise DataError(
                f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, config.json asks for {list(shape)}"
            )
        if name == EXTERNAL_GRAPH:
            if not is_graph(tensor):
                raise DataError(f"{tensor.file}: tensor {name} is {tensor.dtype}, and a graph's bytes are torch.uint8")
        elif not tensor.dtype.is_floating_point:
            raise DataError(f"{tensor.file}: tensor {name} is {tensor.dtype}, not floating point")
