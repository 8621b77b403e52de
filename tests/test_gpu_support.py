"""GPUs, drivers and libraries: what rules a backend out, and what is said then."""

from __future__ import annotations

import pytest

from benchmarks.gpu_steps import gpu_measuring
from benchmarks.gpu_steps.gpu_support import BACKENDS, GpuFacts, cannot_run, mixed_cudas, old_driver, read_facts
from benchmarks.processes import Finished

NEW = "580.159.03"


def test_nvidia_smi_s_line_is_read() -> None:
    assert read_facts("NVIDIA H200, 9.0, 580.159.03") == GpuFacts("NVIDIA H200", (9, 0), NEW)
    assert read_facts("A GPU, for servers, 12.0, 580.65") == GpuFacts("A GPU, for servers", (12, 0), "580.65")
    for text in ("", "No devices were found", "NVIDIA H200, [N/A], 580.159.03", "H200, 9.0,"):
        assert read_facts(text) is None


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((6, 1), ()), ((7, 0), ()), ((7, 5), ("torch", "tensorrt", "tensorrt-rtx", "ort-cuda")), ((8, 6), BACKENDS),
     ((9, 0), ("torch", "tensorrt", "ort-cuda")), ((10, 0), ("torch", "tensorrt", "ort-cuda")), ((12, 0), BACKENDS)],
    ids=["Pascal", "Volta", "Turing", "Ampere", "Hopper", "Blackwell in data centres", "Blackwell"],
)
def test_a_generation_runs_the_backends_that_have_kernels_for_it(
    capability: tuple[int, int], runs: tuple[str, ...]
) -> None:
    gpu = GpuFacts("A GPU", capability, NEW)
    refused = {name: why for name in BACKENDS if (why := cannot_run(name, gpu))}
    assert set(refused) == set(BACKENDS) - set(runs)
    for why in refused.values():
        assert gpu.title in why
        assert (f"{', '.join(runs)} run on it" if runs else "TensorRT 8.6") in why


def test_a_driver_that_is_too_old_is_named_with_what_it_has() -> None:
    assert old_driver(GpuFacts("A GPU", (8, 6), NEW)) is None
    assert "the driver 535.54.03 has CUDA 12, libraries for CUDA 13 need 580" in (
        old_driver(GpuFacts("A GPU", (8, 6), "535.54.03")) or "")
    assert "470.82 is older than CUDA 12" in (old_driver(GpuFacts("A GPU", (8, 6), "470.82")) or "")
    refused = {name for name in BACKENDS if cannot_run(name, GpuFacts("A GPU", (8, 6), "535.54.03"))}
    assert refused == set(BACKENDS) - {"torch"}, "PyTorch may be one for CUDA 12"


def test_libraries_for_two_cudas_side_by_side_are_named() -> None:
    one = [("nvidia-cublas", "13.1.0.3"), ("nvidia-cudnn-cu13", "9.19.0.56"), ("nvidia-ml-py", "12.575.51"),
           ("numpy", "2.5.2"), ("cupy-cuda13x", "14.2.0")]
    assert mixed_cudas(one) is None
    told = mixed_cudas([*one, ("nvidia_cublas_cu12", "12.8.4.1"), ("tensorrt-cu12-libs", "10.9")])
    assert told is not None
    assert "CUDA 12: nvidia-cublas-cu12 12.8.4.1, tensorrt-cu12-libs 10.9" in told
    assert "CUDA 13: nvidia-cublas 13.1.0.3, nvidia-cudnn-cu13 9.19.0.56" in told
    assert isinstance(mixed_cudas(), (str, type(None))), "of what is installed here"


@pytest.mark.parametrize(
    ("status", "output", "found"),
    [(0, "NVIDIA H200, 9.0, 580.159.03", GpuFacts("NVIDIA H200", (9, 0), NEW)), (9, "NVIDIA-SMI has failed", None)],
    ids=["a GPU", "a driver that does not answer"],
)
def test_the_gpu_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, status: int, output: str, found: GpuFacts | None
) -> None:
    monkeypatch.setattr(gpu_measuring.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(gpu_measuring, "run", lambda command, **more: Finished(command, status, 0.1, 0, output, None))
    assert gpu_measuring.asked_gpu() == found
    monkeypatch.setattr(gpu_measuring.shutil, "which", lambda name: None)
    assert gpu_measuring.asked_gpu() is None
