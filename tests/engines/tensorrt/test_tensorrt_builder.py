"""Building engines: what each version of TensorRT is asked for, and what becomes of its refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx
import pytest
from made_up_tensorrt import ORIN, rtx, tensorrt

from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER, Limits
from flamingo_rt.engines.gpu.nvidia_driver import Gpu
from flamingo_rt.engines.tensorrt import builder
from flamingo_rt.engines.tensorrt.builder import Build, Destination
from flamingo_rt.engines.tensorrt.callbacks import SCALE
from flamingo_rt.engines.tensorrt.engine_files import BuildOptions, read_engines
from flamingo_rt.engines.tensorrt.local_builds import EngineTrust
from flamingo_rt.engines.tensorrt.versions import TENSORRT, TensorRT
from flamingo_rt.errors import DataError, DependencyError, UsageError

LAYERS = 3


def build_of(bundle, runtime: TensorRT, numbers=(), options: BuildOptions | None = None, **limits) -> Build:
    destination = Destination.of(runtime, None if numbers else ORIN, numbers)
    return Build(bundle, runtime, destination, Limits.of(bundle.config, **limits), options or BuildOptions())


# What is asked for


@pytest.mark.parametrize(("version", "lowering", "flags", "fp16"), [
    ("8.6.2", "tensorrt-classic", 1 << 0, True), ("10.3.0", "tensorrt-classic", 1 << 1, False),
    ("10.16.0", "tensorrt", 1 << 1, False), ("11.3.0", "tensorrt", 0, False),
])
def test_each_version_is_asked_for_the_types_of_the_graph(bundle_of, version, lowering, flags, fp16) -> None:
    runtime = tensorrt(version)
    build_of(bundle_of(lowering), runtime).run()
    assert runtime.module.asked("network") == [(flags,)] * 3
    assert runtime.module.asked("set_flag") == ([("FP16",)] * 3 if fp16 else [])


def test_graphs_are_compiled_one_after_the_other(bundle_of) -> None:
    runtime = rtx()
    build_of(bundle_of(), runtime, ("86",)).run()
    order = [call[:2] for call in runtime.module.calls if call[0] in ("parse", "build")]
    assert order == [(step, graph) for graph in GRAPHS for step in ("parse", "build")]


def test_a_float32_graph_is_not_rounded_to_tf32(bundle_of) -> None:
    runtime = tensorrt("10.3.0")
    build_of(bundle_of("tensorrt-classic", "fp32"), runtime).run()
    assert runtime.module.asked("clear_flag") == [("TF32",)] * 3
    assert runtime.module.asked("set_flag") == []


def test_the_language_model_has_two_cases_in_one_engine(bundle_of) -> None:
    runtime = tensorrt("10.3.0")
    limits = {"batch": 3, "tokens": 80, "visuals": 4, "capacity": 90}
    build_of(bundle_of("tensorrt-classic"), runtime, **limits).run()
    built = dict(runtime.module.asked("build"))
    prefill, decode = built[LANGUAGE_MODEL]
    assert prefill["input_ids"] == ((1, 1), (1, 64), (3, 80))
    assert decode["input_ids"] == ((1, 1), (1, 1), (3, 1))
    assert prefill["media_key_values.0.key"] == ((1, 2, 5, 16), (1, 2, 5, 16), (3, 2, 20, 16))
    assert decode["media_key_values.0.key"] == ((1, 2, 5, 16), (1, 2, 5, 16), (3, 2, 5, 16))
    assert prefill["past_key_values.0.key"] == ((1, 1, 2, 8), (45, 1, 2, 8), (90, 3, 2, 8))
    assert decode["logits_index"] == ((1, 1), (1, 1), (3, 1))
    assert [len(built[name]) for name in (VISION_ENCODER, RESAMPLER)] == [1, 1]
    assert built[VISION_ENCODER][0]["pixel_values"][2] == (4, 3, 32, 32)
    assert built[RESAMPLER][0]["features"][2][:2] == (4, 4)


def test_a_cache_in_place_has_its_capacity_in_the_graph_already(bundle_of) -> None:
    runtime = rtx()
    build_of(bundle_of(), runtime, ("86",), capacity=70).run()
    graph = onnx.load_from_string(runtime.module.models[-1]).graph
    shapes = {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
              for value in (*graph.input, *graph.output)}
    assert shapes["past_key_values.2.value"] == shapes["present.0.key"] == ["B", 2, 70, 8]
    assert shapes["input_ids"] == ["B", "T"]
    assert runtime.module.asked("build")[-1][1][0]["past_key_values.0.key"] == ((1, 2, 70, 8),) * 2 + ((4, 2, 70, 8),)


def test_a_cache_that_is_appended_to_stays_free(bundle_of) -> None:
    runtime = tensorrt("10.3.0")
    bundle = bundle_of("tensorrt-classic")
    build_of(bundle, runtime).run()
    assert runtime.module.models[-1] == bundle.graph_path(LANGUAGE_MODEL).read_bytes()


def test_ahead_of_time_every_capability_is_in_one_engine(bundle_of) -> None:
    runtime = rtx()
    engines = build_of(bundle_of(), runtime, ("86", "89", "86", "120")).run()
    assert runtime.module.asked("capability")[:3] == [(0, "SM86"), (1, "SM89"), (2, "SM120")]
    assert (engines.path.name, engines.device) == ("tensorrt-rtx-sm86-sm89-sm120", None)
    assert engines.capabilities == ("8.6", "8.9", "12.0")


def test_a_gpu_that_is_here_is_compiled_for_without_being_named(bundle_of) -> None:
    bundle, runtime = bundle_of(), rtx()
    here = Destination.of(runtime, Gpu("L4", "8.9", 24 << 30, integrated=False))
    engines = Build(bundle, runtime, here, Limits.of(bundle.config)).run()
    assert runtime.module.asked("capability") == []
    assert (engines.path.name, engines.device) == ("tensorrt-rtx-sm89", "L4")


def test_options_become_flags(bundle_of) -> None:
    runtime = tensorrt("10.16.0")
    build_of(bundle_of(), runtime, options=BuildOptions(version_compatible=True, weight_stripped=True)).run()
    assert runtime.module.asked("set_flag")[:3] == [("VERSION_COMPATIBLE",), ("STRIP_PLAN",), ("REFIT_IDENTICAL",)]


def test_a_version_that_builds_no_stripped_engines_says_so(bundle_of) -> None:
    with pytest.raises(UsageError, match=r"TensorRT 8.6.2 builds no engines without weights"):
        build_of(bundle_of("tensorrt-classic"), tensorrt("8.6.2"), options=BuildOptions(weight_stripped=True))


def test_rtx_strips_no_weights_ahead_of_time(bundle_of) -> None:
    with pytest.raises(UsageError, match="--weight-stripped needs the GPU that the engines are for"):
        build_of(bundle_of(), rtx(), ("86",), BuildOptions(weight_stripped=True))


# Timings


def test_timings_go_from_graph_to_graph_and_to_the_next_build(bundle_of) -> None:
    bundle, first, second = bundle_of("tensorrt-classic"), tensorrt("10.3.0"), tensorrt("10.3.0")
    engines = build_of(bundle, first).run()
    assert first.module.asked("timings") == [(b"",), (b"+",), (b"++",)]
    assert (engines.path / "timing.cache").read_bytes() == b"+++"
    build_of(bundle, second).run()
    assert second.module.asked("timings")[0] == (b"+++",)


def test_timings_of_another_version_are_left_out(bundle_of) -> None:
    bundle, runtime = bundle_of("tensorrt-classic"), tensorrt("10.3.0")
    older = tensorrt("10.3.0")
    older.module.timings = b"of another version"
    engines = build_of(bundle, older).run()
    build_of(bundle, runtime).run()
    assert runtime.module.asked("timings")[:2] == [(b"of another version",), (b"",)]
    assert (engines.path / "timing.cache").read_bytes() == b"+++"


def test_timings_that_were_changed_or_are_of_another_user_are_left_out(bundle_of, tmp_path, monkeypatch) -> None:
    bundle = bundle_of("tensorrt-classic")
    engines, again, others = build_of(bundle, tensorrt("10.3.0")).run(), tensorrt("10.3.0"), tensorrt("10.3.0")
    (engines.path / "timing.cache").write_bytes(b"a stranger's")
    build_of(bundle, again).run()
    assert again.module.asked("timings")[0] == (b"",)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another-user"))
    build_of(bundle, others).run()
    assert others.module.asked("timings")[0] == (b"",)


def test_a_build_that_cannot_be_remembered_is_there_all_the_same(bundle_of, tmp_path, monkeypatch, caplog) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    bundle = bundle_of("tensorrt-classic")
    engines = build_of(bundle, tensorrt("10.3.0")).run()
    assert (engines.path / "engine.json").exists()
    (warning,) = caplog.messages
    assert "cannot be remembered" in warning
    assert "--trust-engines" in warning
    with pytest.raises(DataError, match="--trust-engines"):
        read_engines(bundle, TENSORRT, "10.3.0", ORIN)
    assert read_engines(bundle, TENSORRT, "10.3.0", ORIN, EngineTrust(engines=True)) == engines


def test_rtx_has_no_timings(bundle_of) -> None:
    runtime = rtx()
    engines = build_of(bundle_of(), runtime, ("86",)).run()
    assert runtime.module.asked("timings") == []
    assert sorted(file.name for file in engines.path.iterdir()) == [
        "engine.json", "language_model.engine", "resampler.engine", "vision_encoder.engine",
    ]


# Refusals


@pytest.mark.parametrize("version", ["8.6.2", "10.3.0", "10.14.1"])
def test_a_version_without_the_layers_asks_for_the_classic_lowering(bundle_of, version) -> None:
    with pytest.raises(DataError, match=rf"TensorRT {version} does not compile .* tensorrt, it needs tensorrt-classic: "
                                        "flamingo-rt export .* --lowering tensorrt-classic --compute fp16"):
        build_of(bundle_of(), tensorrt(version))


def test_graphs_for_onnx_runtime_are_refused_with_the_export_that_is_needed(bundle_of) -> None:
    with pytest.raises(DataError, match=r"lowering ort, it needs tensorrt: .*--lowering tensorrt --compute fp16"):
        build_of(bundle_of("ort", "fp32"), rtx(), ("86",))


def test_8_6_has_no_bfloat16(bundle_of) -> None:
    bundle = bundle_of("tensorrt-classic", "fp16")
    graphs = {name: replace(entry, compute="bfloat16") for name, entry in bundle.graphs.items()}
    with pytest.raises(DataError, match=r"TensorRT 8.6.2 does not compute in bf16: .* --compute fp16"):
        build_of(replace(bundle, graphs=graphs), tensorrt("8.6.2"))


class ParserError:
    """The form of versions since 10."""

    def __init__(self, node: int, name: str, operator: str, text: str) -> None:
        self.node, self.node_name, self.node_operator, self.desc = (
            lambda value=value: value for value in (node, name, operator, text)
        )


class OldParserError:
    """The form of 8.6, without the node's name."""

    def __init__(self, node: int, text: str) -> None:
        self.node, self.desc = lambda: node, lambda: text


def test_every_error_of_the_parser_is_shown_with_its_node(bundle_of) -> None:
    runtime = rtx()
    runtime.module.parser_errors[RESAMPLER] = [
        ParserError(3, "layers.0.attend", "Attention", "no kernel"), ParserError(9, "", "", "bad axis"),
        OldParserError(12, "unknown operator"),
    ]
    with pytest.raises(DataError) as caught:
        build_of(bundle_of(), runtime, ("86",)).run()
    assert "TensorRT-RTX 1.7.1.116 cannot compile" in str(caught.value)
    assert "resampler.onnx: node layers.0.attend (Attention): no kernel; node 9: bad axis; node 12: unknown operator" \
        in str(caught.value)


def test_a_parser_that_succeeds_with_errors_has_not_succeeded(bundle_of, monkeypatch) -> None:
    runtime = rtx()
    runtime.module.parser_errors[VISION_ENCODER] = [OldParserError(1, "ignored attribute")]
    parse = runtime.module.OnnxParser.parse
    monkeypatch.setattr(runtime.module.OnnxParser, "parse", lambda *arguments: parse(*arguments) or True)
    with pytest.raises(DataError, match="ignored attribute"):
        build_of(bundle_of(), runtime, ("86",)).run()


def test_what_the_builder_says_is_shown_once_and_without_warnings(bundle_of) -> None:
    runtime = rtx()
    runtime.module.fails[LANGUAGE_MODEL] = ["node_MatMul_3:\n no tactic", "node_MatMul_3:\n no tactic", "Error 10"]
    with pytest.raises(DataError, match=r"language_model.onnx: node_MatMul_3: no tactic; Error 10$"):
        build_of(bundle_of(), runtime, ("86",)).run()


def test_a_builder_that_says_nothing_is_refused_too(bundle_of) -> None:
    runtime = rtx()
    runtime.module.fails[LANGUAGE_MODEL] = []
    with pytest.raises(DataError, match="it does not say why"):
        build_of(bundle_of(), runtime, ("86",)).run()


def test_a_builder_without_a_gpu_is_an_error_that_says_so(bundle_of) -> None:
    runtime = tensorrt("10.3.0")
    runtime.module.no_gpu = True
    with pytest.raises(DataError, match="CUDA initialization failure"):
        build_of(bundle_of("tensorrt-classic"), runtime).run()


def test_sizes_that_are_refused_are_named(bundle_of) -> None:
    runtime = rtx()
    runtime.module.refuses_sizes = True
    with pytest.raises(DataError, match="the sizes of prefill are refused"):
        build_of(bundle_of(), runtime, ("86",)).run()


def test_a_graph_with_other_tensors_than_the_contracts_is_refused(bundle_of, monkeypatch) -> None:
    bundle, runtime = bundle_of(), rtx()
    parse = runtime.module.OnnxParser.parse

    def renaming(parser, model, path):
        done = parse(parser, model, path)
        parser.network.names[0][0] = "pixels"
        return done

    monkeypatch.setattr(runtime.module.OnnxParser, "parse", renaming)
    with pytest.raises(DataError, match="its inputs differ in pixel_values, pixels"):
        build_of(bundle, runtime, ("86",)).run()


# Memory


def test_memory_that_does_not_suffice_is_refused_before_the_work(bundle_of, monkeypatch) -> None:
    runtime = rtx()
    monkeypatch.setattr(builder, "available_bytes", lambda: 100_000_000)
    build = build_of(bundle_of("tensorrt", "fp32"), runtime, ("86",))
    with pytest.raises(DataError, match=r"about 0.2 GB of memory, 0.1 GB are available: .*--compute fp16.*--force"):
        build.run()
    assert runtime.module.calls == []
    assert build.run(force=True).path.is_dir()


def test_running_out_of_memory_says_how_much_is_needed_and_what_would_take_less(bundle_of) -> None:
    runtime = rtx()
    runtime.module.fails[LANGUAGE_MODEL] = ["Requested amount of GPU memory (12 bytes) could not be allocated: "
                                            "OutOfMemory"]
    with pytest.raises(DataError, match=r"ran out of memory on .*compiling takes about 0.2 GB.*--capacity"):
        build_of(bundle_of(), runtime, ("86",)).run()


def test_engines_that_the_gpu_cannot_hold_are_refused_with_the_capacity_that_would_fit(bundle_of) -> None:
    bundle, runtime = bundle_of(), rtx()
    needs = build_of(bundle, runtime, ("86",)).memory()

    def build(capacity: int, memory: int) -> Build:
        gpu = Gpu("A10", "8.6", memory, integrated=False)
        return Build(bundle, runtime, Destination.of(runtime, gpu), Limits.of(bundle.config, capacity=capacity))

    small = needs.running - needs.cache // 2
    with pytest.raises(DataError, match=r"--capacity (4[78]) would fit") as caught:
        build(96, small).run()
    assert "the GPU has" in str(caught.value)
    assert build(47, small).run().limits.capacity == 47
    with pytest.raises(DataError, match="lower precision or take a smaller model"):
        build(96, 1000).run()


def test_a_gpu_that_shares_the_memory_takes_a_copy_of_the_weights_more(bundle_of) -> None:
    bundle, runtime = bundle_of("tensorrt-classic"), tensorrt("10.3.0")
    limits = Limits.of(bundle.config)
    alone = Gpu("GeForce", "8.6", 8 << 30, integrated=False)
    shared, apart = (
        Build(bundle, runtime, Destination.of(runtime, gpu), limits).memory().building for gpu in (ORIN, alone)
    )
    assert shared - apart == bundle.graph_path(LANGUAGE_MODEL).with_name("language_model.onnx.data").stat().st_size


def test_the_cache_of_the_estimate_is_the_caches_bytes(bundle_of) -> None:
    needs = build_of(bundle_of(), rtx(), ("86",), batch=2, capacity=50).memory()
    assert needs.cache == LAYERS * 2 * 2 * 2 * 50 * 8 * 2  # layers, keys and values, rows, heads, tokens, width, fp16
    assert needs.running > needs.cache


# Whole or not at all


def test_a_build_that_ends_half_way_leaves_the_previous_engines(bundle_of) -> None:
    bundle, runtime = bundle_of("tensorrt-classic"), tensorrt("10.3.0")
    engines = build_of(bundle, runtime).run()
    before = {file.name: file.read_bytes() for file in engines.path.iterdir()}

    def interrupt(graph: str, monitor: object) -> None:
        if graph == LANGUAGE_MODEL:
            raise KeyboardInterrupt

    runtime.module.during = interrupt
    with pytest.raises(KeyboardInterrupt):
        build_of(bundle, runtime, capacity=20).run()
    assert {file.name: file.read_bytes() for file in engines.path.iterdir()} == before
    assert [folder.name for folder in engines.path.parent.iterdir()] == [engines.path.name]
    assert read_engines(bundle, TENSORRT, "10.3.0", ORIN) == engines


def test_an_interrupt_in_a_callback_ends_the_compilation_and_comes_out_behind_it(bundle_of) -> None:
    runtime, answers = rtx(), []

    def advance(amount: int) -> None:
        raise KeyboardInterrupt

    def progress(stage: str, total: int):
        from contextlib import nullcontext

        return nullcontext(advance)

    def during(graph: str, monitor) -> None:
        monitor.phase_start("Building engine", None, 4)
        answers.append(monitor.step_complete("Building engine", 0))

    runtime.module.during = during
    with pytest.raises(KeyboardInterrupt):
        build_of(bundle_of(), runtime, ("86",)).run(progress)
    assert answers == [False]


def test_a_bundle_is_the_same_with_engines(bundle_of) -> None:
    from flamingo_rt.bundle import read_bundle

    bundle = bundle_of()
    identity = bundle.identity
    build_of(bundle, rtx(), ("86",)).run()
    assert read_bundle(bundle.path).identity == identity


def test_a_bundle_with_engines_can_be_exported_anew(bundle_of) -> None:
    from flamingo_rt.files import new_directory

    bundle = bundle_of()
    build_of(bundle, rtx(), ("86",)).run()
    (bundle.path / "engines" / ".flamingo-rt-0a1b2c3d.partial").mkdir()
    with new_directory(bundle.path, overwrite=True) as folder:
        (folder / "manifest.json").write_text("{}")
    assert not (bundle.path / "engines").exists()


def test_what_is_not_ours_among_the_engines_is_not_replaced(bundle_of) -> None:
    bundle, runtime = bundle_of(), rtx()
    engines = build_of(bundle, runtime, ("86",)).run()
    (engines.path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"tensorrt-rtx-sm86 holds other files too"):
        build_of(bundle, runtime, ("86",)).run()
    assert (engines.path / "notes.txt").read_text() == "mine"


def test_progress_adds_up_to_the_whole(bundle_of, counted: tuple[Callable, dict[str, int]]) -> None:
    progress, sums = counted
    runtime = rtx()

    def during(graph: str, monitor) -> None:
        monitor.phase_start("Building engine", None, 3)
        for step in range(3):
            assert monitor.step_complete("Building engine", step)
        monitor.phase_finish("Building engine")

    runtime.module.during = during
    build_of(bundle_of(), runtime, ("86",)).run(progress)
    assert sums == {**{f"{name} engine": SCALE for name in GRAPHS}, "checksums": 0}


# Which GPU


def test_tensorrt_does_not_compile_ahead_of_time() -> None:
    with pytest.raises(UsageError, match="leave out --compute-capability"):
        Destination.of(tensorrt("10.3.0"), ORIN, ("86",))


def test_a_capability_that_rtx_does_not_know_is_refused_with_those_it_does() -> None:
    with pytest.raises(UsageError, match="'90'; known: 86, 89, 120"):
        Destination.of(rtx(), None, ("86", "90"))


@pytest.mark.parametrize(("runtime", "remedy"), [
    (rtx(), "--compute-capability 86"), (tensorrt("10.3.0"), "build on the device"),
])
def test_without_a_gpu_it_must_be_said_for_which(runtime, remedy) -> None:
    with pytest.raises(DataError, match=f"no NVIDIA GPU.*{remedy}"):
        Destination.of(runtime, None)


def test_a_gpu_that_rtx_does_not_know_is_refused_with_the_other_target() -> None:
    assert Destination.of(rtx(), Gpu("L4", "8.9", 24 << 30, False)).capabilities == ("8.9",)
    with pytest.raises(DataError, match=r"compile for H100 \(compute capability 9.0; known: 86, .*--target tensorrt"):
        Destination.of(rtx(), Gpu("H100", "9.0", 80 << 30, False))


@pytest.mark.parametrize("runtime", [rtx(), tensorrt("10.3.0")])
def test_a_driver_that_shows_no_gpu_is_said_with_what_is_in_the_way(runtime, monkeypatch) -> None:
    monkeypatch.setattr(builder, "obstacle", lambda: "pip install 'flamingo-rt[cuda]'")
    with pytest.raises(DependencyError, match=r"the GPU of this machine, .* is not found: pip install 'flamingo"):
        Destination.of(runtime, None)
    assert Destination.of(rtx(), None, ("86",)).capabilities == ("8.6",)
