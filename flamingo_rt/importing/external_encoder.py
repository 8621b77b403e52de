"""Any frozen vision encoder: from an ONNX file, or a torch module, to a folder that stage 3 takes as ``vision``.

The graph is kept whole, with its weights inside, and gets the contract's names: ``pixel_values`` [N, 3, H, W] in,
``features`` [N, S, Dv] out. A grid [N, C, h, w] becomes its cells row by row, one vector [N, D] a single feature. What
it gives is not taken from what it says of itself: it is run on a few pictures.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flamingo_rt.checkpoints import EXTERNAL_GRAPH, write_folder
from flamingo_rt.config import ExternalVisionConfig, PreprocessingConfig
from flamingo_rt.contract import FEATURES, PIXEL_VALUES
from flamingo_rt.engines.encoder_session import EncoderSession
from flamingo_rt.errors import DataError, DependencyError
from flamingo_rt.files import check_output
from flamingo_rt.graph_files import check_graph
from flamingo_rt.weights.lazy import in_memory

MOST_BYTES = 2_000_000_000  # a message of Protocol Buffers has at most 2 GiB
OPSET = 18  # of what is exported from torch
ALONE = 1e-4  # a picture's features alone and among others: the largest difference, of the largest feature
DIGESTED = 4096  # elements of the smallest weight that counts for the digest: kernels and matrices


def import_encoder(
    source: Path | nn.Module, out: Path, image_size: int, preprocessing: PreprocessingConfig, *,
    features: tuple[int, int] | None = None, output: str | None = None, overwrite: bool = False,
) -> ExternalVisionConfig:
    """Write the folder of a vision encoder, which appears whole or not at all.

    ``source``: an ONNX file, whose weights may be in files beside it, or a module pixel_values float32 [N, 3, H, W] ->
    features. ``features`` (S, Dv) is what it is expected to give. ``output`` names the output to take where the graph
    has several. Raises `DataError` that names what is wrong with the graph, `UsageError` where ``out`` exists and may
    not be replaced.
    """
    check_output(out, overwrite, [source] if isinstance(source, Path) else [])
    where = str(source) if isinstance(source, Path) else "the module's graph"
    model = _read(source) if isinstance(source, Path) else _exported(source, image_size)
    graph = _with_the_contracts_names(model, where, image_size, output)
    config = _measured(graph, where, image_size)
    if features is not None and features != (config.features, config.width):
        raise DataError(
            f"{where} gives {config.features} features of width {config.width} for a picture of {image_size} pixels, "
            f"not {features[0]} of {features[1]}: another encoder, or another output than its spec says"
        )
    content = torch.frombuffer(bytearray(graph), dtype=torch.uint8)
    described = {"kind": "vision", "vision": asdict(config), "preprocessing": asdict(preprocessing)}
    write_folder(out, described, None, in_memory({EXTERNAL_GRAPH: content}, out), overwrite)
    return config


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise DependencyError(f"onnx cannot be imported ({error}): pip install 'flamingo-rt[export]'") from error
    return onnx


def _read(path: Path) -> Any:
    """The model of an ONNX file as an onnx message, with the weights that lie beside it."""
    onnx = _onnx()
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(f"{path} has {size:,} bytes, more than {MOST_BYTES:,}: put its weights beside it")
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except DataError:
        raise
    except Exception as error:  # of the decoder, whose exceptions differ between versions
        raise DataError(f"{path} is not an ONNX model: {_first_line(error)}") from error
    if not model.graph.node:
        raise DataError(f"{path} is not an ONNX model: it has no operators")
    more = size
    for name in {entry.value for tensor in model.graph.initializer for entry in tensor.external_data
                 if entry.key == "location"}:
        beside = path.parent / name
        if not name or Path(name).name != name or not beside.is_file():
            raise DataError(f"{path} takes weights from {name!r}, and there is no such file beside it: put it there")
        more += beside.stat().st_size
    if more > MOST_BYTES:
        raise DataError(f"{path} has {more:,} bytes with its weights, more than {MOST_BYTES:,} that a graph can hold")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise DataError(f"the weights of {path} cannot be read: {_first_line(error)}") from error
    return model


def _exported(module: nn.Module, image_size: int) -> Any:
    """A module's graph by PyTorch's exporter. Weights are not folded into others, which would change their last bits
    from machine to machine."""
    onnx = _onnx()
    file = io.BytesIO()
    pixels = torch.zeros(2, 3, image_size, image_size)
    program = torch.onnx.export(
        module.eval(), (pixels,), input_names=[PIXEL_VALUES], output_names=[FEATURES], opset_version=OPSET,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), dynamo=True, verbose=False, optimize=False,
    )
    assert program is not None  # it is, with dynamo
    program.save(file)
    return onnx.load_model_from_string(file.getvalue())


def _with_the_contracts_names(model: Any, where: str, image_size: int, output: str | None) -> bytes:
    """The graph between the picture and one output, under the contract's names, as bytes."""
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    check_graph(model.SerializeToString(), where)
    try:
        parsed = onnx_ir.from_proto(model)
    except Exception as error:
        raise DataError(f"{where} is not a valid ONNX model: {_first_line(error)}") from error
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
    graph.inputs.clear()
    graph.inputs.append(picture)
    graph.outputs.clear()
    for value in _values(graph):
        if value.name in (PIXEL_VALUES, FEATURES):
            value.name = f"{value.name}.theirs"
    picture.name, picture.shape = PIXEL_VALUES, onnx_ir.Shape(["N", 3, image_size, image_size])
    result.name = FEATURES
    graph.outputs.append(result)
    shape = EncoderSession(onnx_ir.to_proto(parsed).SerializeToString(), where).run(_pictures(2, image_size)).shape
    if len(shape) not in (2, 3, 4) or shape[0] != 2 or 0 in shape:
        raise DataError(f"{where} gives {called} {list(shape)} for 2 pictures; an encoder's is [N, S, D], a grid "
                        "[N, C, h, w], or one vector [N, D]")
    if len(shape) != 3:
        graph.outputs.clear()
        result.name = f"{FEATURES}.theirs.{len(shape)}"
        last = _as_features(graph, result, len(shape))
        last.name, last.type = FEATURES, onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        graph.outputs.append(last)
    RemoveUnusedNodesPass()(parsed)
    _strip(parsed)
    return onnx_ir.to_proto(parsed).SerializeToString(deterministic=True)


def _check_input(value: Any, where: str, image_size: int) -> None:
    """Raise `DataError` unless an input takes any number of pictures of this size, in float32."""
    import onnx_ir

    shape = None if value.shape is None else list(value.shape)
    fits = shape is None or (len(shape) == 4 and all(
        not isinstance(there, int) or there == wanted for there, wanted in zip(shape[1:], (3, image_size, image_size),
                                                                               strict=True)))
    shown = "of unknown shape" if shape is None else "[" + ", ".join(map(_dimension, shape)) + "]"
    if not fits or value.dtype not in (None, onnx_ir.DataType.FLOAT):
        raise DataError(f"the input {value.name} of {where} is {value.dtype} {shown}; an encoder takes float32 "
                        f"[N, 3, {image_size}, {image_size}]: give its image size, or export it in that form")
    if shape is not None and isinstance(shape[0], int):
        raise DataError(f"the input {value.name} of {where} is {shown}, {shape[0]} pictures at a time: export it with "
                        "a dynamic first dimension, since all pictures of a prompt are encoded together")


def _dimension(size: Any) -> str:
    return str(size) if isinstance(size, int) else str(getattr(size, "value", None) or "N")


def _values(graph: Any) -> Iterator[Any]:
    """Each value of a graph and of those inside it that can have a name of the contract."""
    yield from graph.inputs
    yield from list(graph.initializers.values())
    for node in graph.all_nodes():
        yield from node.outputs


def _as_features(graph: Any, result: Any, rank: int) -> Any:
    """Append what makes [N, S, Dv] of a vector or a grid."""
    import onnx_ir

    if rank == 2:
        axes = _constant(graph, "one_feature", [1])
        return _appended(graph, onnx_ir.node("Unsqueeze", [result, axes]))
    flat = _appended(graph, onnx_ir.node("Reshape", [result, _constant(graph, "cells_row_by_row", [0, 0, -1])]))
    return _appended(graph, onnx_ir.node("Transpose", [flat], {"perm": [0, 2, 1]}))


def _appended(graph: Any, node: Any) -> Any:
    graph.append(node)
    return node.outputs[0]


def _constant(graph: Any, name: str, numbers: list[int]) -> Any:
    import onnx_ir

    tensor = onnx_ir.tensor(np.array(numbers, np.int64), name=name)
    value = onnx_ir.Value(name=name, shape=tensor.shape, type=onnx_ir.TensorType(onnx_ir.DataType.INT64),
                          const_value=tensor)
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


def _measured(graph: bytes, where: str, image_size: int) -> ExternalVisionConfig:
    """Run a graph on a few pictures, and describe it. Raises `DataError` where the features of a picture depend on the
    others, are not finite, or differ from run to run."""
    session, pictures = EncoderSession(graph, where), _pictures(3, image_size)
    together = session.run(pictures)
    alone = np.concatenate([session.run(pictures[number : number + 1]) for number in range(len(pictures))])
    if together.dtype != np.float32 or together.ndim != 3 or alone.shape != together.shape:
        raise DataError(f"{where} gives features {together.dtype} {list(together.shape)} for 3 pictures, and "
                        f"{list(alone.shape)} for each alone; float32 [N, S, D] was expected")
    if not np.isfinite(together).all():
        raise DataError(f"{where} gives features that are not finite, for pixel values from -2 to 2")
    largest, difference = float(np.abs(together).max()), float(np.abs(together - alone).max())
    if difference > ALONE * max(largest, 1e-6):
        raise DataError(f"{where} gives a picture other features alone than among others, by {difference:.2g} of "
                        f"{largest:.2g}: an encoder's batch norms and dropout must be those of inference")
    model = _onnx().load_model_from_string(graph)
    weights = [_array(tensor) for tensor in model.graph.initializer]
    return ExternalVisionConfig(
        image_size=image_size, features=together.shape[1], width=together.shape[2],
        parameters=max(1, sum(weight.size for weight in weights if weight.dtype.kind == "f")), graph_bytes=len(graph),
        multiply_adds=max(1, _multiply_adds(model)), digest=_digest(weights),
    )


def _array(tensor: Any) -> np.ndarray:
    return _onnx().numpy_helper.to_array(tensor)


def _digest(weights: list[np.ndarray]) -> str:
    """A hash of the large weights in any order: 16 hex digits. The same weights have it under other names, and where
    another release of an exporter arranges the operators otherwise."""
    large = sorted(hashlib.sha256(np.ascontiguousarray(weight)).hexdigest() for weight in weights
                   if weight.size >= DIGESTED)
    return hashlib.sha256(" ".join(large).encode()).hexdigest()[:16]


def _multiply_adds(model: Any) -> int:
    """Multiplications of the matrix products and convolutions for one picture, by the shapes that can be inferred."""
    onnx = _onnx()
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    alone.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del alone.graph.value_info[:]
    try:
        graph = onnx.shape_inference.infer_shapes(alone).graph
    except Exception:  # a graph that runs, and whose shapes are not known: nothing is counted
        return 0
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
              for value in (*graph.value_info, *graph.input, *graph.output)}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return sum(_products(node, shapes) for node in graph.node)


def _products(node: Any, shapes: dict[str, list[int]]) -> int:
    given, made = [shapes.get(name, []) for name in node.input], shapes.get(node.output[0], [])
    if node.op_type == "Conv":
        return math.prod(made) * math.prod(given[1][1:])
    if node.op_type in ("MatMul", "Gemm") and given[0]:
        transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
        return math.prod(made) * given[0][-2 if transposed else -1]
    return 0


def _pictures(count: int, size: int) -> np.ndarray:
    """Pixel values float32 [count, 3, size, size] from -2 to 2, the same on each machine."""
    numbers = np.random.default_rng(0).random((count, 3, size, size), dtype=np.float32)
    return 4 * numbers - 2


def _listed(values: Any) -> str:
    return ", ".join(_names(values)) or "none"


def _names(values: Any) -> Iterator[str]:
    for value in values:
        yield f"{value.name} [{', '.join(map(_dimension, value.shape or ()))}]"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
