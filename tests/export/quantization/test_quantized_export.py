"""Quantized bundles: verified, measured and recorded, or not written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import PIL.Image
import pytest

import flamingo_rt.export.pipeline as pipeline
import flamingo_rt.export.quantization.quantized_export as quantized_export
from flamingo_rt.bundle import read_bundle
from flamingo_rt.checkpoints import StoredModel
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL
from flamingo_rt.errors import DataError, ParityError, UsageError
from flamingo_rt.evaluation.scene_accuracy import SceneAccuracy
from flamingo_rt.export.checks.parity_cases import CASES
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.export.quantization.calibration import Calibration, read_prompts
from flamingo_rt.export.quantization.packed_matrices import QuantizedMatrix
from flamingo_rt.export.quantization.quantization_options import (
    LIMITS,
    RANDOM_PROMPTS,
    SCHEMES,
    SCHEMES_OF,
    Blocks,
    Limits,
    Quantize,
)
from flamingo_rt.export.quantization.quantized_export import error_aware_rounding
from flamingo_rt.loading import load
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.processing.visuals import Image
from flamingo_rt.progress import silent

# A small random model has no outliers and no margins: tokens change easily.
LOOSE = {"min_cosine": 0.9, "max_changed": 0.4}
# Blocks that divide the widths of the small model's matrices; those of 256 do not.
FITTED = {"attention": [32], "feed_forward": [16, 32, 128], "head": [32]}
WORDS = ["Output: a red circle", "Question: how many stars are there? Answer: two", "Output: a blue square", "Output:"]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Twelve prompts, three of them to measure on."""
    folder, rng = tmp_path_factory.mktemp("calibration"), np.random.default_rng(0)
    lines = []
    for number in range(12):
        colours = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        PIL.Image.fromarray(np.repeat(np.repeat(colours, 8, axis=0), 8, axis=1)).save(folder / f"{number}.png")
        shown = [{"image": f"{number}.png"}] if number % 5 != 1 else []
        lines.append(json.dumps([*shown, WORDS[number % 4]]))
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return read_prompts(folder / "prompts.jsonl")


@pytest.fixture(scope="module")
def stages() -> dict[str, dict[str, tuple[int, list[int]]]]:
    """Progress of each export, by scheme."""
    return {}


@pytest.fixture(scope="module")
def exported(stored: StoredModel, traced, calibration: Calibration, stages, tmp_path_factory) -> Callable[[str], Path]:
    """The small model as a bundle of a scheme, exported once for each."""
    folder = tmp_path_factory.mktemp("quantized")

    def again(config, lowering, bind, fold_factors, dtype) -> Iterator:
        for name, (_, graph) in traced.items():
            yield name, graph.clone()

    def bundle(scheme: str) -> Path:
        out = folder / scheme
        if not out.exists():
            seen = stages.setdefault(scheme, {})

            @contextmanager
            def progress(stage: str, total: int) -> Iterator[Callable[[int], None]]:
                assert stage not in seen
                seen[stage] = (total, [])
                yield seen[stage][1].append

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pipeline, "trace_graphs", again)
                export_model(
                    stored, out, quantize=Quantize(scheme, calibration=calibration, **LOOSE), progress=progress
                )
        return out

    return bundle


def manifest(bundle: Path) -> dict:
    return json.loads((bundle / "manifest.json").read_text())


# The bundle


@pytest.mark.parametrize("scheme", SCHEMES_OF["ort"])
def test_a_quantized_bundle_is_verified_and_answers(exported, scheme: str) -> None:
    read = read_bundle(exported(scheme))
    assert {entry.quantization for entry in read.graphs.values()} == {scheme}
    assert {entry.dtype for entry in read.graphs.values()} == {"float32"}
    colours = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    model = load(exported(scheme), threads=1)
    results = model.generate_batch([[Image(colours), "Output:"], "Question: how"], max_new_tokens=12)
    assert max(len(set(row.tokens)) for row in results) > 3, "tokens that do not vary show nothing"
    again = load(exported(scheme), threads=1).generate_batch([[Image(colours), "Output:"]], max_new_tokens=12)
    assert list(again[0].tokens) == list(results[0].tokens)


def test_fewer_bits_are_fewer_bytes(exported, bundle: Path) -> None:
    sizes = [sum((folder / f"{name}.onnx.data").stat().st_size for name in GRAPHS)
             for folder in (bundle, *map(exported, ("int8", "mixed", "int4")))]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


@pytest.mark.parametrize("scheme", SCHEMES_OF["ort"])
def test_the_manifest_records_how_and_at_what_cost(exported, scheme: str) -> None:
    found = manifest(exported(scheme))
    assert found["parity"] == {}
    record = found["quantization"]
    assert set(record) == {"scheme", "blocks", "rounding", "calibration", "measured_on", "quality"}
    assert record["scheme"] == scheme
    assert record["blocks"] == SCHEMES[scheme].described(FITTED)
    aware = scheme != "int8"
    assert record["rounding"] == ("gptq" if aware else "nearest")
    assert record["calibration"] == ("9 prompts of prompts.jsonl" if aware else None)
    quality = record["quality"]
    assert set(quality["graphs"]) == set(GRAPHS)
    for graph, cost in quality["graphs"].items():
        assert 0.9 < cost["lowest_cosine"] <= cost["cosine"] < 1 - 1e-9, graph
        assert 0.9 < cost["norm_ratio"] < 1.1
    tokens = read_prompts_of(exported)
    assert quality["tokens"] == tokens
    assert 0 <= quality["changed"] < 0.4 * tokens
    assert read_bundle(exported(scheme)).quantization == record


def read_prompts_of(exported: Callable[[str], Path]) -> int:
    """Tokens of the prompts that are measured with: every token's next one is compared."""
    config = read_bundle(exported("int8")).config
    tokenizer = TextTokenizer(exported("int8") / "tokenizer.json", config.tokens, config.language.vocab_size)
    start = tokenizer.bos_id is not None
    return sum(len(tokenizer.encode(f"{config.tokens.image if number % 5 != 1 else ''}{WORDS[number % 4]}")) + start
               for number in (0, 4, 8))


def test_fewer_bits_cost_more(exported) -> None:
    costs = [manifest(exported(scheme))["quantization"]["quality"]["graphs"] for scheme in ("int8", "mixed", "int4")]
    cosines = [cost[LANGUAGE_MODEL]["cosine"] for cost in costs]
    assert cosines == sorted(cosines, reverse=True)
    assert len(set(cosines)) == 3
    for graph in GRAPHS[:2]:  # 8 bits in all
        assert costs[0][graph] == pytest.approx(costs[1][graph]) == costs[2][graph]


def test_every_stage_reports_its_progress_to_the_end(exported, stages) -> None:
    graphs = [f"{name} {part}" for name in GRAPHS for part in ("graph", "weights")]
    for scheme in ("int8", "int4"):
        exported(scheme)
        aware = ["calibration prompts", "error-aware rounding"] if scheme == "int4" else []
        expected = ["PyTorch's answers", *aware, *graphs, "comparison", "reference outputs", "checksums"]
        assert list(stages[scheme]) == expected
        for stage in ("PyTorch's answers", *aware, "comparison"):
            total, advances = stages[scheme][stage]
            assert sum(advances) == total > 0, stage


def test_no_dense_matrix_of_the_language_model_is_left(exported) -> None:
    graph = onnx.load(exported("int4") / "language_model.onnx", load_external_data=False).graph
    assert not any(node.op_type == "MatMul" for node in graph.node)
    large = [tensor.name for tensor in graph.initializer if math.prod(tensor.dims) >= 1024]
    assert large
    assert all(name.endswith((".packed", ".scales")) for name in large)


# Refusals


@pytest.fixture
def export(stored: StoredModel, calibration: Calibration, traced_before: None, tmp_path: Path):
    """Export to ``out`` with these options."""
    def call(scheme: str = "int8", dtype: str = "fp32", **options: object):
        wanted = Quantize(scheme, **({"calibration": calibration} | LOOSE | options))
        return export_model(stored, tmp_path / "out", quantize=wanted, dtype=dtype)

    return call


@pytest.mark.parametrize(("limits", "message"), [
    ({"min_cosine": 1.0}, r"graph vision_encoder, int8: the cosine .* below the limit of 1\.0; no bundle was written"),
    ({"min_cosine": -1.0, "max_changed": 0.0}, r"int8 changes .* above the limit of 0\.0%.*--max-changed"),
])
def test_a_cost_beyond_the_limits_leaves_nothing_behind(export, tmp_path: Path, limits, message, monkeypatch) -> None:
    if "max_changed" in limits:  # the small model may change none
        quality = one_changed(quantized_export.QualityMeter.quality)
        monkeypatch.setattr(quantized_export.QualityMeter, "quality", quality)
    with pytest.raises(ParityError, match=message):
        export(**limits)
    assert not list(tmp_path.iterdir())


def one_changed(quality: Callable) -> Callable:
    return lambda meter: replace(quality(meter), changed=1)


@pytest.mark.parametrize("spoiled", ["larger", "other", "swapped"])
def test_a_spoiled_rounding_is_refused(export, tmp_path: Path, monkeypatch, spoiled: str) -> None:
    """Give one kind of matrix wrong scales, as a bug in the packing would."""
    def rounding(model, tokenizer, scheme, prompts, progress) -> dict[str, QuantizedMatrix]:
        rounded = error_aware_rounding(model, tokenizer, scheme, prompts, progress)
        for name in rounded:
            if ".ff.down" in name:
                scales, packed = rounded[name].scales, rounded[name].packed
                if spoiled == "larger":
                    scales = scales * 3
                elif spoiled == "other":
                    scales = np.roll(scales, 1, axis=0)[:, ::-1] * np.where(np.arange(len(scales)) % 2, 1, -1)[:, None]
                else:
                    packed = packed >> 4 | packed << 4  # the halves of each byte
                rounded[name] = QuantizedMatrix(Blocks(4, rounded[name].blocks.block), packed,
                                                np.ascontiguousarray(scales, dtype=np.float32))
        return rounded

    monkeypatch.setattr(quantized_export, "error_aware_rounding", rounding)
    with pytest.raises(ParityError, match=r"graph language_model, int4: the cosine .*take --quantize mixed or int8"):
        export("int4", min_cosine=None, max_changed=1.0)
    assert not list(tmp_path.iterdir())


def test_a_type_of_weights_and_quantization_exclude_each_other(export, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bf16 and quantization int4 exclude each other"):
        export("int4", dtype="bf16")
    assert not list(tmp_path.iterdir())


def test_prompts_that_cannot_be_used_are_refused_before_any_work(export, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "_write_graphs", None)
    bad = tmp_path / "bad.jsonl"
    for content, message in (("[3]", "line 1: 3 is neither"), ('["a"]', "no calibration prompt has a picture"),
                             (json.dumps(["long " * 500]), "the context is 96: shorten it")):
        bad.write_text(f"{content}\n{content}")
        with pytest.raises(DataError, match=message):
            export(calibration=read_prompts(bad))
        assert [file.name for file in tmp_path.iterdir()] == ["bad.jsonl"]


@pytest.mark.parametrize(("wrong", "message"), [
    ({"scheme": "int3"}, "unknown quantization 'int3'; known: int8, fp8, mixed, int4"),
    ({"rounding": "up"}, "unknown rounding 'up'; known: gptq, nearest"),
    ({"min_cosine": 1.1}, "min_cosine is 1.1; it must be from -1 to 1"),
    ({"min_cosine": math.nan}, "min_cosine is nan"),
    ({"max_changed": -0.1}, "max_changed is -0.1; it must be from 0 to 1"),
    ({"max_changed": math.inf}, "max_changed is inf"), ({"block": 48}, "block is 48; known: 32, 64, 128, 256"),
])
def test_impossible_options_are_refused_where_they_are_made(wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Quantize(**({"scheme": "int8"} | wrong))


@pytest.mark.parametrize("scheme", ["mixed", "int4"])
def test_4_bit_matrices_ask_for_calibration_prompts_and_name_the_ways_out(scheme: str) -> None:
    with pytest.raises(UsageError, match=rf"{scheme} rounds its 4-bit matrices on calibration prompts") as refused:
        Quantize(scheme)
    for way in ("--calibration FILE", "--calibration scenes", "--rounding nearest, which needs none and changes"):
        assert way in str(refused.value)
    assert not Quantize(scheme, rounding="nearest").error_aware


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_8_bit_matrices_need_no_calibration(scheme: str) -> None:
    assert not Quantize(scheme).error_aware


def test_limits_are_the_schemes_unless_given() -> None:
    assert Quantize("int8").limits == LIMITS["int8"]
    assert Quantize("int8", min_cosine=0.0).limits == Limits(0.0, LIMITS["int8"].changed)
    assert Quantize("int8", max_changed=0.0).limits == Limits(LIMITS["int8"].cosine, 0.0)


# Options


@pytest.mark.parametrize("block", [32, 256])
def test_blocks_of_4_bits_can_have_another_size(block: int) -> None:
    scheme = Quantize("mixed", rounding="nearest", block=block).scheme_for("ort")
    assert (scheme.attention, scheme.feed_forward, scheme.head) == (
        SCHEMES["mixed"].attention, Blocks(4, block), SCHEMES["mixed"].head
    )
    assert Quantize("mixed", rounding="nearest").scheme_for("ort") == SCHEMES["mixed"]


def test_rounding_to_the_nearest_takes_no_calibration(export, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(quantized_export, "error_aware_rounding", None)
    record = export("int4", rounding="nearest").quantization
    assert record is not None
    assert (record["rounding"], record["calibration"]) == ("nearest", None)
    assert record["measured_on"] == "3 prompts of prompts.jsonl"


def test_without_calibration_prompts_the_cost_is_measured_on_random_ones_and_says_so(export) -> None:
    record = export("int8", calibration=None).quantization
    assert record is not None
    assert record["measured_on"] == RANDOM_PROMPTS
    tokens = sum(length + sum(case.pieces) for case in CASES for length in case.lengths)
    assert record["quality"]["tokens"] == tokens
    assert 0.9 < record["quality"]["graphs"][LANGUAGE_MODEL]["lowest_cosine"] < 1 - 1e-9


def test_without_a_comparison_nothing_is_computed(
    stored: StoredModel, traced_before, tmp_path: Path, monkeypatch
) -> None:
    for name in ("error_aware_rounding", "prompts_reference", "random_reference", "compare"):
        monkeypatch.setattr(quantized_export, name, None)
    bundle = export_model(stored, tmp_path / "out", quantize=Quantize("int4", rounding="nearest"), compare=False)
    assert bundle.quantization == {
        "scheme": "int4", "blocks": SCHEMES["int4"].described(FITTED), "rounding": "nearest", "calibration": None,
    }
    assert read_bundle(tmp_path / "out").quantization == bundle.quantization


def test_error_aware_rounding_goes_without_a_comparison(
    stored: StoredModel, traced_before, calibration: Calibration, tmp_path: Path, monkeypatch
) -> None:
    for name in ("prompts_reference", "random_reference", "compare"):
        monkeypatch.setattr(quantized_export, name, None)
    options = Quantize("mixed", calibration=calibration)
    record = export_model(stored, tmp_path / "out", quantize=options, compare=False).quantization
    assert record is not None
    assert (record["rounding"], record["calibration"]) == ("gptq", "9 prompts of prompts.jsonl")
    assert "quality" not in record


def test_accuracy_is_measured_before_and_after_when_asked(export, monkeypatch) -> None:
    """Replace `scene_accuracy`, which has its own tests: check which models it gets, and what is recorded."""
    asked = []

    def accuracy(model, count, questions, on_batch) -> SceneAccuracy:
        asked.append((model.backend.name, count))
        on_batch(count * (1 + questions))
        return SceneAccuracy({"digit": [True, len(asked) == 1]}, {"count": [True], "color": [False, True, True]})

    monkeypatch.setattr(quantized_export, "scene_accuracy", accuracy)
    record = export("int8", evaluate=2).quantization
    assert asked == [("torch", 2), ("ort", 2)]
    assert record["accuracy"] == {
        "scenes": 2, "before": {"captions": 1.0, "questions": 0.75}, "after": {"captions": 0.5, "questions": 0.75},
    }


# Error-aware rounding of a stored model


@pytest.mark.parametrize(("scheme", "kinds"), [("mixed", [".ff."]), ("int4", [".ff.", "attention"]), ("int8", [])])
def test_the_matrices_of_4_bits_are_rounded_and_no_others(
    stored: StoredModel, exported, calibration: Calibration, scheme: str, kinds: list[str]
) -> None:
    """Expect those of the language model and of the part of cross-attention that it computes. The head has 8 bits,
    and so have the keys and values of the media."""
    read = read_bundle(exported("int8"))
    tokenizer = TextTokenizer(read.tokenizer_path, read.config.tokens, read.config.language.vocab_size)
    rounded = error_aware_rounding(stored, tokenizer, SCHEMES[scheme], calibration.calibrate, silent)
    expected = set()
    for name, tensor in stored.tensors.items():
        ours = name.startswith("language.layers.") or (
            name.startswith("cross_attention.layers.") and not name.endswith((".key.weight", ".value.weight"))
        )
        if ours and len(tensor.shape) == 2 and any(kind in name for kind in kinds):
            expected.add(name)
    assert set(rounded) == expected
    assert (len(expected) > 8 or not kinds)
    for name, matrix in rounded.items():
        assert matrix.blocks == Blocks(4, 128).fitting(stored.tensors[name].shape[1])
        assert matrix.dequantized().shape == stored.tensors[name].shape
