"""How fast this machine multiplies float32 matrices, through the backend that runs the model."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from flamingo_rt.protobuf import field

SIZE = 1024
FLOAT = 1  # TensorProto.DataType


def matrix_product(backend: str, threads: int | None) -> tuple[Callable[[], None], str]:
    """A call that multiplies two `SIZE` x `SIZE` matrices, and what it is. numpy's for a backend that is not known."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((SIZE, SIZE), dtype=np.float32) for _ in range(2))
    if backend == "ort":
        from flamingo_rt.engines.ort import import_onnxruntime

        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        session = runtime.InferenceSession(matmul_model(right), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"x": left}), f"MatMul of ONNX Runtime {runtime.__version__}, {SIZE}³, float32"
    if backend == "torch":
        import torch

        first, second = torch.from_numpy(left), torch.from_numpy(right)
        return lambda: first @ second, f"matmul of PyTorch {torch.__version__}, {SIZE}³, float32"
    out = np.empty_like(left)
    return lambda: np.matmul(left, right, out=out), f"matmul of numpy {np.__version__}, {SIZE}³, float32"


def product_rate(
    product: Callable[[], object], repeats: int = 10, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOPs per second of the fastest of ``repeats`` products."""
    fastest = float("inf")
    for _ in range(repeats):
        start = clock()
        product()
        fastest = min(fastest, clock() - start)
    return 2 * SIZE**3 / fastest


def matmul_model(weight: np.ndarray) -> bytes:
    """An ONNX file: y = x @ ``weight``, float32 [n, n] each."""
    shape = b"".join(field(1, field(1, size)) for size in weight.shape)
    kind = field(2, field(1, field(1, FLOAT) + field(2, shape)))
    tensor = b"".join(field(1, size) for size in weight.shape) + field(2, FLOAT) + field(8, "w")
    graph = [
        field(1, field(1, "x") + field(1, "w") + field(2, "y") + field(4, "MatMul")),
        field(2, "product"),
        field(5, tensor + field(9, weight.tobytes())),
        field(11, field(1, "x") + kind),
        field(12, field(1, "y") + kind),
    ]
    return field(1, 8) + field(7, b"".join(graph)) + field(8, field(1, "") + field(2, 17))
