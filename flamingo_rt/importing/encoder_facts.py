"""Facts about an encoder's graph: its features, measured on a few pictures, its size, and a digest of its weights."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from flamingo_rt.config import LARGEST, ExternalVisionConfig
from flamingo_rt.engines.encoder_session import EncoderSession
from flamingo_rt.errors import DataError, DependencyError
from flamingo_rt.graph_files import MOST_BYTES
from flamingo_rt.importing.onnx_file import first_line, import_onnx

# The largest differences of features, as shares of the largest feature: of a picture alone and among others, and of two
# runs on the same pictures.
ALONE, AGAIN = 1e-4, 1e-6
DIGESTED = 4096  # elements of the smallest weight that counts for the digest: kernels and matrices


def measured(graph: bytes, where: str, image_size: int) -> ExternalVisionConfig:
    """Run a graph with the contract's names on a few pictures, and describe it.

    Raises `DataError` where the features of a picture depend on the others, are not finite, or differ from run to run,
    and for a graph that has no weights, or is too large without them.
    """
    model = import_onnx().load_model_from_string(graph)
    weights = _weights(model)
    if not weights:
        raise DataError(f"{where} has no weights, neither initializers nor constants of its graph: give a trained "
                        "encoder")
    rest = len(graph) - sum(tensor.ByteSize() for tensor in model.graph.initializer)
    if rest > MOST_BYTES:
        raise DataError(f"{where} has {rest:,} bytes without its weights, more than the {MOST_BYTES:,} that a bundle's "
                        "graph may have: export it with its constants as initializers")
    session, pictures = EncoderSession(graph, where), sample_pictures(3, image_size)
    together, again = session.run(pictures), session.run(pictures)
    alone = np.concatenate([session.run(pictures[number : number + 1]) for number in range(len(pictures))])
    if together.dtype != np.float32 or together.ndim != 3 or together.shape[0] != len(pictures) or (
        alone.shape != together.shape
    ):
        raise DataError(f"{where} gives features {together.dtype} {list(together.shape)} for 3 pictures, and "
                        f"{list(alone.shape)} for each alone; float32 [N, S, D] was expected")
    if not (np.isfinite(together).all() and np.isfinite(alone).all()):
        raise DataError(f"{where} gives features that are not finite, for pixel values from -2 to 2")
    largest = float(np.abs(together).max())
    for others, share, said in (
        (again, AGAIN, "other features each time that it runs"),
        (alone, ALONE, "a picture other features alone than among others"),
    ):
        difference = float(np.abs(together - others).max())
        if difference > share * max(largest, 1e-6):
            raise DataError(f"{where} gives {said} (they differ by {difference:.2g}, the largest is {largest:.2g}): "
                            "export it as it computes in inference, without dropout or batch norms of training")
    return ExternalVisionConfig(
        image_size=image_size, features=together.shape[1], width=together.shape[2],
        parameters=max(1, sum(math.prod(tensor.dims) for tensor in weights)), graph_bytes=len(graph),
        multiply_adds=max(1, _multiply_adds(model)), digest=_digest(weights),
    )


def graph_digest(graph: bytes) -> str:
    """The digest of the weights of a graph that `measured` has taken. Raises `DataError` where it is damaged."""
    try:
        return _digest(_weights(import_onnx().load_model_from_string(graph)))
    except DependencyError:
        raise
    except Exception as error:  # of two libraries, for what is no graph or a tensor that is not what it says
        raise DataError(f"the external encoder's graph is damaged: {first_line(error)}") from error


def lift_weights(model: Any) -> None:
    """Make initializers of an onnx_ir model's large `Constant` operators, of all where it has no other weights: some
    exporters keep weights there."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    there = any(value.dtype in _weight_types() for value in model.graph.initializers.values())
    LiftConstantsToInitializersPass(size_limit=DIGESTED if there else 1)(model)


def sample_pictures(count: int, size: int) -> np.ndarray:
    """Pixel values float32 [count, 3, size, size] from -2 to 2, the same on each machine."""
    numbers = np.random.default_rng(0).random((count, 3, size, size), dtype=np.float32)
    return 4 * numbers - 2


def _weight_types() -> set[int]:
    """Types of numbers that weights have; shapes and axes have 64 bits."""
    kinds = import_onnx().TensorProto
    return {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE, kinds.INT8, kinds.UINT8}


def _weights(model: Any) -> list[Any]:
    return [tensor for tensor in model.graph.initializer if tensor.data_type in _weight_types()]


def _digest(weights: list[Any]) -> str:
    """A hash of the large weights in any order: 16 hex digits. The same weights have it under other names, and where
    another release of an exporter arranges the operators otherwise. All count where none is large."""
    large = [tensor for tensor in weights if math.prod(tensor.dims) >= DIGESTED] or weights
    found = sorted(hashlib.sha256(import_onnx().numpy_helper.to_array(tensor).tobytes()).hexdigest()
                   for tensor in large)
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:16]


def _multiply_adds(model: Any) -> int:
    """Multiplications of the matrix products and convolutions for one picture, by the shapes that can be inferred."""
    onnx = import_onnx()
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
    return min(sum(_products(node, shapes) for node in graph.node), LARGEST["multiply_adds"])


def _products(node: Any, shapes: dict[str, list[int]]) -> int:
    given, made = [shapes.get(name, []) for name in node.input], shapes.get(node.output[0], [])
    if node.op_type == "Conv":
        return math.prod(made) * math.prod(given[1][1:])
    if node.op_type in ("MatMul", "Gemm") and given[0]:
        transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
        return math.prod(made) * given[0][-2 if transposed else -1]
    return 0
