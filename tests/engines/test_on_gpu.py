"""What only a machine with an NVIDIA GPU can show. Skipped elsewhere, and not run so far."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from small_model import small_checkpoint

import flamingo_rt
from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.engines.cuda import Cuda, import_pycuda
from flamingo_rt.engines.device_probe import DeviceProbe
from flamingo_rt.engines.gpu import find_gpu
from flamingo_rt.engines.tensorrt_module import TENSORRT, TENSORRT_RTX, import_tensorrt
from flamingo_rt.errors import DependencyError
from flamingo_rt.export.pipeline import export_model


def _missing() -> str | None:
    if find_gpu() is None:
        return "there is no NVIDIA GPU with a driver here"
    try:
        import_pycuda()
    except DependencyError as error:
        return str(error)
    return None


MISSING = _missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]


def test_a_captured_copy_is_replayed_with_what_is_there_then() -> None:
    cuda = Cuda()
    with cuda.current():
        memory, sent, received = (
            cuda.allocate(256, "a test"), cuda.pinned((64,), np.float32), cuda.pinned((64,), np.float32)
        )

        def there_and_back() -> None:
            cuda.upload(memory.address, sent)
            cuda.download(received, memory.address)

        graph = cuda.capture(there_and_back)
        assert graph is not None, "cuda-bindings is not installed"
        for value in (1.0, 2.0):
            sent[:] = value
            graph.launch()
            cuda.synchronize()
            assert (received == value).all()


@pytest.mark.parametrize("target", [TENSORRT, TENSORRT_RTX])
def test_the_gpus_memory_and_products_are_measured(target) -> None:
    try:
        runtime = import_tensorrt(target)
    except DependencyError as error:
        pytest.skip(str(error))
    with DeviceProbe(Cuda(), runtime, "float16") as probe:
        assert probe.bandwidth()[0] > 10e9
        assert probe.products()[0] > 1e12


@pytest.mark.parametrize("target", [TENSORRT, TENSORRT_RTX])
@pytest.mark.parametrize("lowering", ["tensorrt", "tensorrt-classic"])
def test_engines_give_the_tokens_of_onnx_runtime(target, lowering, tmp_path) -> None:
    try:
        runtime = import_tensorrt(target)
    except DependencyError as error:
        pytest.skip(str(error))
    if lowering not in runtime.lowerings:
        pytest.skip(f"{runtime.title} does not compile {lowering}")
    checkpoint = open_checkpoint(small_checkpoint(tmp_path / "checkpoint"))
    bundles = {name: export_model(checkpoint, tmp_path / name, lowering=name) for name in ("ort", lowering)}
    subprocess.run(
        [sys.executable, "-m", "flamingo_rt", "build", "--model", bundles[lowering].path, "--target", target],
        check=True,
    )
    tokens = {}
    for backend, bundle in (("ort", bundles["ort"]), ("tensorrt", bundles[lowering])):
        model = flamingo_rt.load(bundle.path, backend)
        prefix = model.prompt("Output: a red circle")
        results = model.generate_batch(["Output:", "Question: how many? Answer:"], prefix=prefix, max_new_tokens=8)
        beams = model.generate("Output:", max_new_tokens=8, beams=3).result()
        tokens[backend] = [result.tokens for result in (*results, beams)]
    assert tokens["tensorrt"] == tokens["ort"]
