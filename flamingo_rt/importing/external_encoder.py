"""Any frozen vision encoder: from an ONNX file, or a torch module, to a folder that stage 3 takes as ``vision``.

The graph is kept whole, with its weights inside, and gets the contract's names: ``pixel_values`` [N, 3, H, W] in,
``features`` [N, S, Dv] out. A grid [N, C, h, w] becomes its cells row by row, one vector [N, D] a single feature. What
it gives is not taken from what it says of itself: it is run on a few pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flamingo_rt.checkpoints import EXTERNAL_GRAPH, write_folder
from flamingo_rt.config import LARGEST, ExternalVisionConfig, PreprocessingConfig
from flamingo_rt.contract import FEATURES, PIXEL_VALUES
from flamingo_rt.engines.encoder_session import EncoderSession
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.exporter_noise import without_exporter_noise
from flamingo_rt.files import check_output
from flamingo_rt.graph_files import check_graph
from flamingo_rt.importing.encoder_facts import lift_weights, measured, sample_pictures
from flamingo_rt.importing.onnx_file import first_line, import_onnx, read_onnx_file
from flamingo_rt.weights.lazy import in_memory

OPSET = 18  # of what is exported from torch


def import_encoder(
    source: Path | str | nn.Module, out: Path | str, image_size: int, preprocessing: PreprocessingConfig, *,
    features: tuple[int, int] | None = None, output: str | None = None, overwrite: bool = False,
) -> ExternalVisionConfig:
    """Write the folder of a vision encoder, which appears whole or not at all.

    ``source``: an ONNX file, whose weights may be in files beside it, or a module pixel_values float32 [N, 3, H, W] ->
    features. ``features`` (S, Dv) is what it is expected to give. ``output`` names the output to take where the graph
    has several. Raises `DataError` that names what is wrong with the graph, `UsageError` where ``out`` exists and may
    not be replaced, and for a picture of a size that no model has.
    """
    out = Path(out)
    if not 1 <= image_size <= LARGEST["image_size"]:
        raise UsageError(f"image_size is {image_size}; it must be from 1 to {LARGEST['image_size']}")
    given = None if isinstance(source, nn.Module) else Path(source)
    check_output(out, overwrite, [] if given is None else [given])
    where = "the module's graph" if given is None else str(given)
    model = _exported(source, image_size) if isinstance(source, nn.Module) else read_onnx_file(Path(source))
    graph = _with_the_contracts_names(model, where, image_size, output)
    config = measured(graph, where, image_size)
    if features is not None and features != (config.features, config.width):
        raise DataError(
            f"{where} gives {config.features} features of width {config.width} for a picture of {image_size} pixels, "
            f"not {features[0]} of {features[1]}: another encoder, or another output of it"
        )
    content = torch.frombuffer(bytearray(graph), dtype=torch.uint8)
    described = {"kind": "vision", "vision": asdict(config), "preprocessing": asdict(preprocessing)}
    write_folder(out, described, None, in_memory({EXTERNAL_GRAPH: content}, out), overwrite)
    return config


def _exported(module: nn.Module, image_size: int) -> Any:
    """A module's graph by PyTorch's exporter, as it computes in inference. Weights are not folded into others, which
    would change their last bits from machine to machine. Raises `DataError` where it cannot be exported."""
    import_onnx()
    pixels = torch.zeros(2, 3, image_size, image_size)
    trained = [part for part in module.modules() if part.training]
    try:
        with torch.no_grad(), without_exporter_noise():
            program = torch.onnx.export(
                module.eval(), (pixels,), input_names=[PIXEL_VALUES], output_names=[FEATURES], opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), dynamo=True, verbose=False, optimize=False,
            )
            assert program is not None  # it is, with dynamo
            return program.model_proto
    except Exception as error:  # of the module itself too: any
        raise DataError(f"the module cannot be exported for pictures of {image_size} pixels ({type(error).__name__}: "
                        f"{first_line(error)}): export it to ONNX yourself, and give the file") from error
    finally:
        for part in trained:
            part.training = True


def _with_the_contracts_names(model: Any, where: str, image_size: int, output: str | None) -> bytes:
    """The graph between the picture and one output, under the contract's names, as bytes."""
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    try:
        check_graph(model.SerializeToString(), where)
        parsed = onnx_ir.from_proto(model)
        lift_weights(parsed)
    except DataError:
        raise
    except Exception as error:  # of two libraries, for a message that is too large or makes no sense
        raise DataError(f"{where} is not a valid ONNX model: {first_line(error)}") from error
    graph = parsed.graph
    weights = {value.name for value in graph.initializers.values()}
    inputs = [value for value in graph.inputs if value.name not in weights]
    if len(inputs) != 1:
        raise DataError(f"{where} has the inputs {_listed(inputs)}: an encoder has one, [N, 3, H, W]")
    picture = inputs[0]
    _check_input(picture, where, image_size)
    chosen = [value for value in graph.outputs if output in (None, value.name)]
    if len(chosen) != 1:
        wanted = "say which one is taken" if output is None else f"there is no {output!r} among them"
        raise DataError(f"{where} has the outputs {_listed(graph.outputs)}: {wanted}")
    result, called = chosen[0], chosen[0].name
    if result is picture:
        raise DataError(f"{where} gives its input {called} back: give an encoder, or another output of it")
    graph.inputs.clear()
    graph.inputs.append(picture)
    graph.outputs.clear()
    for value in _values(graph):
        if value.name in (PIXEL_VALUES, FEATURES):
            value.name = _free_name(graph, f"{value.name}.theirs")
    picture.name, picture.shape = PIXEL_VALUES, onnx_ir.Shape(["N", 3, image_size, image_size])
    result.name = FEATURES
    graph.outputs.append(result)
    session = EncoderSession(_serialized(parsed, where), where)
    made = session.run(sample_pictures(2, image_size))
    shape = made.shape
    del session  # it holds the weights once more
    _check_features(made, where, called)
    if len(shape) != 3:
        graph.outputs.clear()
        result.name = _free_name(graph, f"{FEATURES}.theirs.{len(shape)}")
        last = _as_features(graph, result, len(shape))
        last.name, last.type = FEATURES, onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        graph.outputs.append(last)
    RemoveUnusedNodesPass()(parsed)
    _strip(parsed)
    return _serialized(parsed, where)


def _check_features(made: np.ndarray, where: str, called: str) -> None:
    """Raise `DataError` unless this, of 2 pictures, is of a form that features can be made of."""
    shape = made.shape
    if len(shape) not in (2, 3, 4) or shape[0] != 2 or 0 in shape or made.dtype != np.float32:
        raise DataError(f"{where} gives {called} {made.dtype} {list(shape)} for 2 pictures; an encoder's is float32 "
                        "[N, S, D], a grid [N, C, h, w], or one vector [N, D]")
    if len(shape) == 4 and shape[2] != shape[3]:
        _, first, second, third = shape
        raise DataError(f"{where} gives {called} {list(shape)} for 2 square pictures: as [N, C, h, w] {second} x "
                        f"{third} cells of width {first}, as [N, h, w, C] {first} x {second} cells of width {third}. A "
                        "grid [N, C, h, w] with h = w, or [N, S, D], is taken: export it in one of these forms")


def _serialized(model: Any, where: str) -> bytes:
    import onnx_ir

    try:
        return onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    except Exception as error:  # as above: tensors that are not what they say are noticed here
        raise DataError(f"{where} is not a valid ONNX model: {first_line(error)}") from error


def _check_input(value: Any, where: str, image_size: int) -> None:
    """Raise `DataError` unless an input takes any number of pictures of this size, in float32."""
    import onnx_ir

    shape = None if value.shape is None else list(value.shape)
    fits = shape is None or (len(shape) == 4 and all(
        not isinstance(there, int) or there == wanted for there, wanted in zip(shape[1:], (3, image_size, image_size),
                                                                               strict=True)))
    kind = "of unknown type" if value.dtype is None else _type_name(value.dtype)
    shown = "of unknown shape" if shape is None else "[" + ", ".join(map(_dimension, shape)) + "]"
    if not fits or value.dtype not in (None, onnx_ir.DataType.FLOAT):
        raise DataError(f"the input {value.name} of {where} is {kind} {shown}; an encoder takes float32 "
                        f"[N, 3, {image_size}, {image_size}]: give its image size, or export it in that form")
    if shape is not None and isinstance(shape[0], int):
        raise DataError(f"the input {value.name} of {where} is {shown}, {shape[0]} pictures at a time: export it with "
                        "a dynamic first dimension, since all pictures of a prompt are encoded together")


def _type_name(dtype: Any) -> str:
    """The name of an element type as numpy has it, float32, or onnx's own."""
    try:
        return str(dtype.numpy())
    except TypeError:  # it has none
        return str(dtype)


def _dimension(size: Any) -> str:
    return str(size) if isinstance(size, int) else str(getattr(size, "value", None) or "N")


def _values(graph: Any) -> Iterator[Any]:
    """Each value of a graph and of those inside it that can have a name of the contract."""
    yield from graph.inputs
    yield from list(graph.initializers.values())
    for node in graph.all_nodes():
        yield from node.outputs


def _free_name(graph: Any, name: str) -> str:
    """``name``, with a number behind it where a value of the graph has it already."""
    taken = {value.name for value in _values(graph)}
    numbered = (f"{name}.{number}" for number in count())
    return next(other for other in chain([name], numbered) if other not in taken)


def _as_features(graph: Any, result: Any, rank: int) -> Any:
    """Append what makes [N, S, Dv] of a vector or a grid, by operators that all versions of ONNX write alike."""
    import onnx_ir

    shape = [0, 1, -1] if rank == 2 else [0, 0, -1]  # 0 keeps a size
    kept = _constant(graph, _free_name(graph, f"{FEATURES}.shape"), shape)
    flat = _appended(graph, onnx_ir.node("Reshape", [result, kept]))
    return flat if rank == 2 else _appended(graph, onnx_ir.node("Transpose", [flat], {"perm": [0, 2, 1]}))


def _appended(graph: Any, node: Any) -> Any:
    graph.append(node)
    return node.outputs[0]


def _constant(graph: Any, name: str, numbers: list[int]) -> Any:
    import onnx_ir

    tensor = onnx_ir.tensor(np.array(numbers, np.int64), name=name)
    value = onnx_ir.Value(name=name, shape=onnx_ir.Shape([len(numbers)]), const_value=tensor,
                          type=onnx_ir.TensorType(onnx_ir.DataType.INT64))
    graph.initializers.add(value)
    return value


def _strip(model: Any) -> None:
    """Leave out the exporters' stack traces and notes, which name local files."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None


def _listed(values: Any) -> str:
    return ", ".join(_names(values)) or "none"


def _names(values: Any) -> Iterator[str]:
    for value in values:
        yield f"{value.name} [{', '.join(map(_dimension, value.shape or ()))}]"
