"""A float32 matrix product on this machine's CPU, computed by the backend that runs the model, to measure its rate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SIZE = 1024


def matrix_product(backend: str, threads: int | None) -> tuple[Callable[[], object], str]:
    """A call that multiplies two `SIZE` x `SIZE` matrices, and its name; numpy's for a backend that is not known."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((SIZE, SIZE), dtype=np.float32) for _ in range(2))
    if backend == "ort":
        from flamingo_rt.engines.matmul_graph import matmul_graph
        from flamingo_rt.engines.ort import import_onnxruntime

        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        graph = matmul_graph(SIZE, weight=right)
        session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"x": left}), f"MatMul of ONNX Runtime {runtime.__version__}, {SIZE}³, float32"
    if backend == "torch":
        import torch

        first, second = torch.from_numpy(left), torch.from_numpy(right)
        return lambda: first @ second, f"matmul of PyTorch {torch.__version__}, {SIZE}³, float32"
    out = np.empty_like(left)
    return lambda: np.matmul(left, right, out=out), f"matmul of numpy {np.__version__}, {SIZE}³, float32"
