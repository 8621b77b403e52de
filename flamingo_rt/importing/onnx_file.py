"""An ONNX file of another project, with the weights that lie in files beside it, as one message.

The file may come from a stranger: weights are taken from files in its own folder alone, and no more of them than a
message can hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flamingo_rt.errors import DataError, DependencyError

MOST_BYTES = 2_000_000_000  # a message of Protocol Buffers has at most 2 GiB


def import_onnx() -> Any:
    """The onnx package. Raises `DependencyError` without it."""
    try:
        import onnx
        import onnx_ir  # noqa: F401  # it comes with the same extra
    except ImportError as error:
        raise DependencyError(f"onnx cannot be imported ({error}): pip install 'flamingo-rt[export]'") from error
    return onnx


def read_onnx_file(path: Path) -> Any:
    """The model of an ONNX file as an onnx message, with all weights inside. Raises `DataError` for a file that is no
    ONNX model, and for weights that are not beside it."""
    onnx = import_onnx()
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(f"{path} has {size:,} bytes, more than {MOST_BYTES:,}: put its weights beside it")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of the decoder, whose exceptions differ between versions
        raise DataError(f"{path} is not an ONNX model: {first_line(error)}") from error
    if not model.graph.node:
        raise DataError(f"{path} is not an ONNX model: it has no operators")
    _take_in(model, path, size)
    return model


def first_line(error: Exception) -> str:
    """The beginning of another library's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _take_in(model: Any, path: Path, size: int) -> None:
    """Put the weights that lie beside the file into the model, which has ``size`` bytes without them.

    Not by onnx's own function, which refuses the links of which the Hugging Face cache is made.
    """
    kept = [tensor for tensor in _tensors(model.graph) if tensor.data_location == tensor.EXTERNAL]
    places = [_place(tensor, path) for tensor in kept]
    whole = size + sum(length for _, _, length in places)
    if whole > MOST_BYTES:
        raise DataError(f"{path} has {whole:,} bytes with its weights, more than {MOST_BYTES:,} that a graph can hold")
    for tensor, (file, offset, length) in zip(kept, places, strict=True):
        try:
            with file.open("rb") as opened:
                opened.seek(offset)
                values = opened.read(length)
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from error
        tensor.raw_data = values
        tensor.data_location = tensor.DEFAULT
        del tensor.external_data[:]


def _place(tensor: Any, path: Path) -> tuple[Path, int, int]:
    """The file of a tensor's values, where they begin in it, and how many bytes they have."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    name = said.get("location", "")
    file = path.parent / name
    try:
        # Not "sub/name", "../name" or "": a graph may not say which other files of the user are read.
        beside = "\0" not in name and Path(name).name == name and "\\" not in name and file.is_file()
        there = file.stat().st_size if beside else 0
    except OSError:  # a name that is too long, for one
        beside = False
    if not beside:
        raise DataError(f"{path} takes weights from {name[:300]!r}, and there is no such file beside it: put it there")
    try:
        offset = int(said.get("offset") or 0)
        length = int(said.get("length") or there - offset)
    except ValueError:
        offset = length = -1
    if offset < 0 or length < 0 or offset + length > there:
        raise DataError(f"{path} takes {said.get('length')!r} bytes at {said.get('offset')!r} of {file}, which has "
                        f"{there:,}: it is cut short, or another graph's")
    return file, offset, length


def _tensors(graph: Any) -> Iterator[Any]:
    """Each tensor of a graph and of the graphs in its operators."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
