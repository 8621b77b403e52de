"""The record of engines: what fits is found, and whatever does not is refused with the command that builds it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from made_up_tensorrt import MadeUpTensorRT

from flamingo_rt.bundle import Bundle, read_bundle
from flamingo_rt.contract import LANGUAGE_MODEL, Limits
from flamingo_rt.engines.gpu.nvidia_driver import Gpu
from flamingo_rt.engines.tensorrt.builder import Build, Destination
from flamingo_rt.engines.tensorrt.engine_files import (
    RECORD,
    BuildOptions,
    EngineFolder,
    engine_folder_name,
    read_engines,
)
from flamingo_rt.engines.tensorrt.local_builds import EngineTrust
from flamingo_rt.engines.tensorrt.versions import TENSORRT, TENSORRT_RTX, TensorRT
from flamingo_rt.errors import DataError

ORIN = Gpu("Orin", "8.7", 8 << 30, integrated=True)
A10, L4 = (Gpu(name, capability, 24 << 30, integrated=False) for name, capability in (("A10", "8.6"), ("L4", "8.9")))
RTX_VERSION = "1.7.1.116"


def built(bundle: Bundle, gpu: Gpu = ORIN, version: str = "10.3.0", **options: bool) -> EngineFolder:
    runtime = TensorRT(TENSORRT, MadeUpTensorRT(version), version)
    limits = Limits.of(bundle.config, batch=2, capacity=50)
    return Build(bundle, runtime, Destination.of(runtime, gpu), limits, BuildOptions(**options)).run()


def built_ahead(bundle: Bundle, *numbers: str) -> EngineFolder:
    runtime = TensorRT(TENSORRT_RTX, MadeUpTensorRT(RTX_VERSION, rtx=True), RTX_VERSION)
    return Build(bundle, runtime, Destination.of(runtime, None, numbers), Limits.of(bundle.config)).run()


@pytest.fixture
def bundle(bundle_of) -> Bundle:
    return bundle_of("tensorrt-classic")


def test_what_was_built_is_read_back(bundle) -> None:
    engines = built(bundle)
    assert read_engines(bundle, TENSORRT, "10.3.0", ORIN) == engines
    assert (engines.path.name, engines.device, engines.capabilities) == ("tensorrt-orin", "Orin", ("8.7",))
    assert (engines.lowering, engines.compute, engines.limits.capacity) == ("tensorrt-classic", "float16", 50)
    assert engines.engine_path(LANGUAGE_MODEL).read_bytes() == b"engine of language_model by 10.3.0"


def test_engines_for_several_gpus_lie_side_by_side(bundle) -> None:
    folders = {gpu: built(bundle, gpu) for gpu in (ORIN, A10)}
    ahead = built_ahead(bundle, "86", "89")
    for gpu, engines in folders.items():
        assert read_engines(bundle, TENSORRT, "10.3.0", gpu) == engines
    for gpu in (A10, L4):
        assert read_engines(bundle, TENSORRT_RTX, RTX_VERSION, gpu) == ahead


@pytest.mark.parametrize("target", [TENSORRT, TENSORRT_RTX])
def test_a_bundle_without_engines_says_how_to_build_them(bundle, target) -> None:
    with pytest.raises(DataError, match=rf"has no engines for .*: flamingo-rt build --model .* --target {target}$"):
        read_engines(bundle, target, "10.3.0", ORIN)


def test_engines_of_the_other_module_do_not_count(bundle) -> None:
    built_ahead(bundle, "86")
    with pytest.raises(DataError, match="has no engines for TensorRT:"):
        read_engines(bundle, TENSORRT, "10.3.0", A10)


def test_engines_for_another_gpu_are_named(bundle) -> None:
    built(bundle)
    with pytest.raises(DataError, match=r"no engines for A10 \(compute capability 8.6\), tensorrt-orin is for Orin: "):
        read_engines(bundle, TENSORRT, "10.3.0", A10)


def test_engines_ahead_of_time_serve_their_capabilities_alone(bundle) -> None:
    built_ahead(bundle, "86")
    with pytest.raises(DataError, match=r"for L4 .*8.9.*tensorrt-rtx-sm86 is for compute capability 8.6"):
        read_engines(bundle, TENSORRT_RTX, RTX_VERSION, L4)


def test_another_version_is_refused_with_the_whole_command(bundle) -> None:
    built(bundle)
    command = (
        f"flamingo-rt build --model {bundle.path} --target tensorrt --max-batch 2 --max-tokens 50 --max-visuals 6 "
        "--max-frames 4 --capacity 50"
    )
    with pytest.raises(DataError, match=r"built with TensorRT 10.3.0, here is 10.4.0") as caught:
        read_engines(bundle, TENSORRT, "10.4.0", ORIN)
    assert str(caught.value).endswith(f": {command}")


@pytest.mark.parametrize(("version", "runs"), [
    ("10.3.0", True), ("10.4.0", True), ("10.2.0", False), ("11.0.0", False), ("8.6.2", False),
])
def test_version_compatible_engines_run_with_later_versions_of_the_same_major_one(bundle, version, runs) -> None:
    engines = built(bundle, version_compatible=True)
    if runs:
        assert read_engines(bundle, TENSORRT, version, ORIN) == engines
    else:
        with pytest.raises(DataError, match=f"here is {version}: .*--version-compatible"):
            read_engines(bundle, TENSORRT, version, ORIN)


def test_the_command_for_engines_ahead_of_time_names_their_capabilities(bundle) -> None:
    built_ahead(bundle, "86", "120")
    with pytest.raises(DataError, match="--compute-capability 86,120"):
        read_engines(bundle, TENSORRT_RTX, "1.8.0", A10)


def test_a_bundle_exported_anew_has_stale_engines(bundle) -> None:
    built(bundle)
    manifest = bundle.path / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(DataError, match="built from another bundle, or from this one before a new export: flamingo-rt"):
        read_engines(read_bundle(bundle.path), TENSORRT, "10.3.0", ORIN)


@pytest.mark.parametrize("damage", [
    lambda file: file.write_bytes(file.read_bytes()[:-1]), lambda file: file.write_bytes(b"x" * file.stat().st_size),
])
def test_a_damaged_engine_is_refused(bundle, damage) -> None:
    damage(built(bundle).engine_path(LANGUAGE_MODEL))
    with pytest.raises(DataError, match=r"language_model.engine is damaged: .*flamingo-rt build"):
        read_engines(bundle, TENSORRT, "10.3.0", ORIN)


def test_a_missing_engine_is_refused(bundle) -> None:
    built(bundle).engine_path(LANGUAGE_MODEL).unlink()
    with pytest.raises(DataError, match=r"cannot read .*language_model.engine .*flamingo-rt build"):
        read_engines(bundle, TENSORRT, "10.3.0", ORIN)


@pytest.mark.parametrize("change", [
    lambda record: record.update(format_version=9), lambda record: record.pop("limits"),
    lambda record: record["limits"].update(batch="2"), lambda record: record["limits"].update(more=1),
    lambda record: record.update(options=[]), lambda record: record.update(capabilities=8),
    lambda record: record["engines"].clear(), lambda record: record.update(target="tensorrt-rtx"),
    lambda record: record["options"].update(weight_stripped="no"),
    lambda record: record.update(capabilities=["8.7 $(touch x)"]), lambda record: record.update(version="10\x1b]52;c;"),
    lambda record: record.update(lowering="unknown"), lambda record: record.update(compute=["float16"]),
    lambda record: record["engines"]["resampler.engine"].update(bytes=float("inf")),
])
def test_a_damaged_record_is_refused(bundle, change) -> None:
    file = built(bundle).path / "engine.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"engine.json (cannot be used|is not valid JSON) .*: flamingo-rt build"):
        read_engines(bundle, TENSORRT, "10.3.0", ORIN)


@pytest.mark.parametrize("text", ["", "[1", "[]", "null", "3", "[" * 100_000, " " * 2_000_000],
                         ids=["empty", "cut", "list", "null", "number", "deep", "large"])
def test_a_record_that_is_none_is_refused(bundle, text) -> None:
    (built(bundle).path / "engine.json").write_text(text)
    with pytest.raises(DataError, match=r"engine.json .*: flamingo-rt build"):
        read_engines(bundle, TENSORRT, "10.3.0", ORIN)


def test_what_a_killed_build_left_is_not_read(bundle) -> None:
    engines = built(bundle)
    left = engines.path.with_name(".flamingo-rt-0a1b2c3d.partial")
    left.mkdir()
    engines.path.rename(left / engines.path.name)
    with pytest.raises(DataError, match="has no engines for TensorRT:"):
        read_engines(bundle, TENSORRT, "10.3.0", ORIN)


def test_a_folder_is_named_for_the_device() -> None:
    assert engine_folder_name(TENSORRT, "NVIDIA GeForce RTX 4090", ("8.9",)) == "tensorrt-nvidia-geforce-rtx-4090"
    assert engine_folder_name(TENSORRT_RTX, "NVIDIA GeForce RTX 4090", ("8.9",)) == "tensorrt-rtx-sm89"


def test_a_gpu_of_the_same_name_and_another_capability_is_another(bundle) -> None:
    built(bundle)
    with pytest.raises(DataError, match="no engines for Orin"):
        read_engines(bundle, TENSORRT, "10.3.0", replace(ORIN, capability="8.9"))


def test_a_folder_that_cannot_be_used_hides_none_behind_it(bundle) -> None:
    own = built(bundle)
    strange = own.path.with_name("tensorrt-a-stranger")  # sorted before it
    shutil.copytree(own.path, strange)
    for text in ("{}", (own.path / RECORD).read_text().replace('"Orin"', '"Orin"  ')):  # damaged; built by nobody here
        (strange / RECORD).write_text(text)
        assert read_engines(bundle, TENSORRT, "10.3.0", ORIN).path == own.path


def test_the_users_own_engines_come_before_those_that_are_trusted(bundle) -> None:
    own = built(bundle)
    strange = own.path.with_name("tensorrt-a-stranger")  # sorted before it
    shutil.copytree(own.path, strange)
    (strange / RECORD).write_text((own.path / RECORD).read_text().replace('"Orin"', '"Orin"  '))
    trust = EngineTrust(engines=True, host_code=False)
    assert read_engines(bundle, TENSORRT, "10.3.0", ORIN, trust).path == own.path


@pytest.mark.parametrize("batch", [-5, 0, 2**40])
def test_limits_that_no_build_has_are_refused(bundle, batch) -> None:
    file = built(bundle).path / RECORD
    record = json.loads(file.read_text())
    record["limits"]["batch"] = batch
    file.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"cannot be used .*batch is not from 1"):
        read_engines(bundle, TENSORRT, "10.3.0", ORIN, EngineTrust(engines=True, host_code=True))
