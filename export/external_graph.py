"""An external encoder's graph in a bundle: the one that came with it, not traced, neither quantized nor rounded."""

from __future__ import annotations

from typing import Any

from flamingo_rt.checkpoints import EXTERNAL_GRAPH, StoredModel
from flamingo_rt.config import ExternalVisionConfig, FlamingoConfig
from flamingo_rt.contract import VISION_ENCODER, graph_specs
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.export.lowerings.ort_lowering import NAME as ORT
from flamingo_rt.graph_files import check_graph


def is_external(config: FlamingoConfig) -> bool:
    """Whether the vision encoder of a model is another project's graph."""
    return isinstance(config.vision, ExternalVisionConfig)


def check_external(config: FlamingoConfig, lowering: str, half: bool) -> None:
    """Raise `UsageError` where a model has an external encoder, and its bundle would need another form of the graph."""
    if is_external(config) and (lowering != ORT or half):
        raise UsageError(
            f"the vision encoder of {config.name} is an external graph in float32, which is exported as it is: leave "
            f"lowering at {ORT} and compute at fp32"
        )


def external_graph(model: StoredModel) -> Any:
    """The encoder's graph as an onnx_ir model with its weights. Raises `DataError` for one that is damaged."""
    import onnx
    import onnx_ir

    tensor = model.tensors[EXTERNAL_GRAPH]
    content = tensor.read().numpy().tobytes()
    check_graph(content, str(tensor))
    try:
        graph = onnx_ir.from_proto(onnx.load_model_from_string(content))
        spec = graph_specs(model.config)[VISION_ENCODER]
        for value, wanted in ((graph.graph.inputs[0], spec.inputs[0]), (graph.graph.outputs[0], spec.outputs[0])):
            value.shape = onnx_ir.Shape(wanted.shape)  # an exporter has names of its own for free dimensions
    except Exception as error:  # of the decoder, whose exceptions differ between versions
        raise DataError(f"{tensor} is not an ONNX model: import the encoder again") from error
    return graph
