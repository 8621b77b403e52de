"""An encoder's graph, given as bytes, on ONNX Runtime's CPU kernels: external encoders of the PyTorch model run so."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamingo_rt.contract import FEATURES, PIXEL_VALUES
from flamingo_rt.engines.ort import import_onnxruntime
from flamingo_rt.errors import DataError
from flamingo_rt.graph_files import check_graph


class EncoderSession:
    """A graph with its weights inside, with the input ``pixel_values`` and the output ``features`` of the contract."""

    def __init__(self, graph: bytes, where: str, threads: int | None = None) -> None:
        """``where`` names the graph in messages; ``threads`` as in `OrtBackend`. Raises `DataError` for a graph that is
        refused (`check_graph`) or cannot be loaded, `DependencyError` without onnxruntime."""
        check_graph(graph, where)
        self._where, runtime = where, import_onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what it would log is raised
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session: Any = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise DataError(f"ONNX Runtime {runtime.__version__} cannot load {where}: {error}") from error

    def run(self, pixel_values: np.ndarray) -> np.ndarray:
        """pixel_values float32 [N, 3, H, W] -> features float32 [N, S, Dv]. Raises `DataError` where it fails."""
        try:
            made = self._session.run([FEATURES], {PIXEL_VALUES: np.ascontiguousarray(pixel_values)})[0]
        except Exception as error:
            raise DataError(f"{self._where} does not run on {list(pixel_values.shape)}: {error}") from error
        if not isinstance(made, np.ndarray):  # sequences, maps and options are values of ONNX too
            raise DataError(f"{self._where} gives a {type(made).__name__}, not features: take another output")
        return made
