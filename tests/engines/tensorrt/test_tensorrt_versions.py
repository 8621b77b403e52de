"""Finding TensorRT's module: which version is there, and which lowering suits it."""

from __future__ import annotations

import sys

import pytest
from made_up_tensorrt import MadeUpTensorRT, tensorrt

from flamingo_rt.engines.tensorrt.versions import TENSORRT, TENSORRT_RTX, import_tensorrt
from flamingo_rt.errors import DependencyError


@pytest.mark.parametrize(("target", "module"), [(TENSORRT, "tensorrt"), (TENSORRT_RTX, "tensorrt_rtx")])
def test_a_missing_module_is_named_with_its_extra(monkeypatch, target, module) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=rf"{module} cannot be imported.*pip install 'flamingo-rt\[{target}\]'"):
        import_tensorrt(target)


@pytest.mark.parametrize(("target", "version", "oldest"), [(TENSORRT, "8.5.3", "8.6"), (TENSORRT_RTX, "1.2.0", "1.7")])
def test_a_module_that_is_too_old_is_refused(monkeypatch, target, version, oldest) -> None:
    monkeypatch.setitem(sys.modules, target.replace("-", "_"), MadeUpTensorRT(version, rtx=target == TENSORRT_RTX))
    with pytest.raises(DependencyError, match=rf"{version} is too old: {oldest} or newer"):
        import_tensorrt(target)


@pytest.mark.parametrize(("version", "first"), [
    ("8.6.2", "tensorrt-classic"), ("10.14.1.48", "tensorrt-classic"), ("10.15.0", "tensorrt"), ("11.3", "tensorrt"),
])
def test_the_lowering_that_suits_a_version(version, first) -> None:
    assert tensorrt(version).lowerings[0] == first
    assert "tensorrt-classic" in tensorrt(version).lowerings
