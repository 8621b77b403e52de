"""The memory planner: its parts are what the runtime holds, it grows with what is asked for, and it says what fits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flamingo_rt.bundle import Bundle, read_description
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, RESAMPLER, graph_specs
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.loading import PACKAGED_BUNDLE, load
from flamingo_rt.memory_plan import (
    CACHE,
    CPU,
    GPU,
    JETSON,
    LOGITS_PART,
    MEDIA,
    PREFILL,
    PYTHON,
    RESAMPLING,
    RUNTIME,
    VISION,
    Workload,
    check_workload,
    cpu_weights,
    largest_that_fit,
    plan_memory,
    require_plan,
    stored_weights,
)
from flamingo_rt.runtime.batch_memory import needed_bytes

ASKED = Workload(rows=2, pictures=3, tokens=200, answer=20)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return read_description(PACKAGED_BUNDLE)


def changed(bundle: Bundle, **entry: object) -> Bundle:
    """The bundle with other entries of its graphs in the manifest; the files stay."""
    return replace(bundle, graphs={name: replace(graph, **entry) for name, graph in bundle.graphs.items()})


# Parts


def test_cache_media_and_logits_are_those_that_a_batch_binds(bundle) -> None:
    parts = plan_memory(bundle, ASKED).parts
    bound = needed_bytes(graph_specs(bundle.config), ASKED.rows, ASKED.tokens, ASKED.pictures)
    ids = ASKED.rows * 8 * (2 * ASKED.tokens + 2)  # input_ids, media_index, cache_length, logits_index
    assert parts[CACHE] + parts[MEDIA] // 2 + parts[LOGITS_PART] // 3 == bound - ids


def test_media_are_counted_as_they_are_held(bundle) -> None:
    """Once as the resampler gave them, once stacked for the language model."""
    model = load(backend="ort", threads=1)
    latents = model.backend.specs[RESAMPLER].outputs[0].resolve({"M": 1})[2]
    media = 4 * len(bundle.config.cross_layers) * 2 * bundle.config.cross_attention.heads * latents
    media *= bundle.config.cross_attention.head_width
    assert plan_memory(bundle, Workload(pictures=5)).parts[MEDIA] == 2 * 5 * media
    assert plan_memory(bundle, Workload(pictures=0)).parts[MEDIA] == media, "a graph takes no empty input"


def test_later_answers_take_no_more_than_the_first(bundle) -> None:
    """With memory patterns ONNX Runtime would plan the memory of each length of prompt anew, beside what it has."""
    model = load(backend="ort", threads=1)
    assert {session.get_session_options().enable_mem_pattern for session in model.backend._sessions.values()} == {False}


@pytest.mark.parametrize(("more", "grows"), [
    ({"rows": 3}, {VISION, PREFILL, CACHE, MEDIA, LOGITS_PART}),  # four pictures are resampled at once already
    ({"pictures": 4}, {VISION, PREFILL, MEDIA}),
    ({"tokens": 201}, {PREFILL, CACHE}),
    ({"answer": 19}, {PREFILL}),
    ({"frames": 2}, {VISION, RESAMPLING}),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else None)
def test_each_quantity_grows_the_parts_that_hold_it(bundle, more, grows) -> None:
    before, after = (plan_memory(bundle, workload).parts for workload in (ASKED, replace(ASKED, **more)))
    assert {name for name in before if before[name] != after[name]} == grows
    assert all(after[name] > before[name] for name in grows)


def test_without_pictures_no_encoder_runs(bundle) -> None:
    parts = plan_memory(bundle, Workload(pictures=0)).parts
    assert parts[VISION] == parts[RESAMPLING] == 0


def test_no_more_pictures_are_encoded_at_once_than_the_runtime_does(bundle) -> None:
    """Beyond those, a picture adds the features that are kept until all are resampled."""
    features = 4 * bundle.config.vision.feature_count * bundle.config.vision.width
    some, many = (plan_memory(bundle, Workload(pictures=count)).parts for count in (4, 24))
    assert many[VISION] - some[VISION] == 20 * features
    assert many[RESAMPLING] == some[RESAMPLING]


def test_the_plan_is_the_larger_of_loading_and_answering(bundle) -> None:
    plan = plan_memory(bundle, ASKED)
    assert plan.total == max(plan.loading, sum(plan.parts.values()))
    language = replace(bundle.config.language, vocab_size=4_000_000)
    large = replace(bundle, config=replace(bundle.config, language=language))
    smallest = plan_memory(large, Workload(pictures=0))
    assert smallest.total == smallest.loading > sum(smallest.parts.values()) - smallest.parts[LOGITS_PART], (
        "the tied embedding is transposed while the graph is loaded")


# Weights


def test_weights_are_the_files_where_nothing_is_packed_again(bundle) -> None:
    stored = {name: (PACKAGED_BUNDLE / f"{name}.onnx.data").stat().st_size for name in GRAPHS}
    assert stored_weights(bundle) == stored
    assert cpu_weights(bundle, 100) == {
        name: min(size, bundle.graphs[name].weight_bytes.each_run) for name, size in stored.items()}


def test_half_precision_becomes_float32_on_a_cpu_alone(bundle) -> None:
    once = cpu_weights(bundle, 100)
    assert cpu_weights(changed(bundle, dtype="bfloat16"), 100) == {name: 2 * size for name, size in once.items()}
    assert cpu_weights(changed(bundle, dtype="float16", compute="float16"), 100) == once
    assert plan_memory(changed(bundle, dtype="float16", compute="float16"), ASKED, GPU).weights == sum(
        stored_weights(bundle).values())


def test_tables_by_distance_count_as_far_as_the_context_reaches(bundle) -> None:
    weights = bundle.graphs[LANGUAGE_MODEL].weight_bytes
    relative = changed(bundle, weight_bytes=replace(weights, each_run=1000, each_distance=7))
    assert cpu_weights(relative, 200)[LANGUAGE_MODEL] == 1000 + 200 * 7


def test_a_manifest_cannot_claim_more_weights_than_its_files_have(bundle) -> None:
    weights = bundle.graphs[LANGUAGE_MODEL].weight_bytes
    assert cpu_weights(changed(bundle, weight_bytes=replace(weights, each_run=1 << 60)), 2) == stored_weights(bundle)


def test_blocks_are_packed_with_their_scales_again_and_a_tied_table_stays_mapped(bundle) -> None:
    language = bundle.config.language
    quantized = replace(
        changed(bundle, quantization="int8"),
        quantization={"blocks": {"attention": {"bits": 8, "block": 256, "fitted": [64, 128]}, "head": {"bits": 8}}},
    )
    more = cpu_weights(quantized, 2)[LANGUAGE_MODEL] - cpu_weights(bundle, 2)[LANGUAGE_MODEL]
    table = language.vocab_size * language.width * (1 + 4 / 64)
    assert table < more < table + 8 * 3.1e6 / 64
    untied = replace(quantized, config=replace(bundle.config, language=replace(language, tied_head=False)))
    assert cpu_weights(untied, 2)[LANGUAGE_MODEL] < cpu_weights(quantized, 2)[LANGUAGE_MODEL] - 0.8 * table


@pytest.mark.parametrize("record", [
    None, {"blocks": [1]}, {"blocks": {"head": 7}}, {"blocks": {"head": {"fitted": [0, "a", -5]}}}, {"blocks": None},
], ids=repr)
def test_a_damaged_record_of_blocks_is_reckoned_with_the_smallest(bundle, record) -> None:
    quantized, sound = changed(bundle, quantization="int4"), {"blocks": {"head": {"fitted": [16]}}}
    found = cpu_weights(replace(quantized, quantization=record), 2)
    assert found == cpu_weights(replace(quantized, quantization=sound), 2)


# Devices


def test_a_gpu_holds_buffers_in_the_type_that_is_computed_in(bundle) -> None:
    half = changed(bundle, dtype="float16", compute="float16")
    on_cpu, on_gpu = plan_memory(bundle, ASKED).parts, plan_memory(half, ASKED, GPU).parts
    for part in (CACHE, MEDIA, PREFILL):
        assert on_gpu[part] == on_cpu[part] // 2
    assert on_gpu[LOGITS_PART] == on_cpu[LOGITS_PART]
    assert on_gpu[PYTHON] == on_gpu[RUNTIME] == 0


def test_on_a_jetson_the_largest_engine_s_file_is_in_memory_beside_it_while_it_is_read(bundle) -> None:
    engines = dict(zip(GRAPHS, (50_000_000, 20_000_000, 700_000_000), strict=True))
    discrete, shared = (plan_memory(bundle, Workload(), device, engines) for device in (GPU, JETSON))
    assert discrete.weights == shared.weights == 770_000_000
    assert discrete.loading == 770_000_000
    assert shared.loading == 2 * 700_000_000 + 70_000_000 + shared.parts[PYTHON] + shared.parts[RUNTIME]


# What fits


def plan_of(bundle: Bundle):
    return lambda workload: plan_memory(bundle, workload)


def test_the_largest_numbers_fit_and_one_more_does_not(bundle) -> None:
    memory = plan_memory(bundle, replace(ASKED, rows=5)).total
    found = largest_that_fit(bundle, ASKED, 10, memory, plan_of(bundle))
    assert (found["rows"].most, found["rows"].limit) == (5, False)
    for name in ("pictures", "tokens"):
        for count, fits in ((found[name].most, True), (found[name].most + 1, False)):
            if count <= {"pictures": bundle.config.max_visuals, "tokens": bundle.config.language.context}[name]:
                assert (plan_memory(bundle, replace(ASKED, **{name: count})).total <= memory) == fits, (name, count)
    shots = found["shots"].most
    assert plan_memory(bundle, replace(ASKED, pictures=shots + 1, tokens=180 + shots * 10)).total <= memory


def test_what_the_model_allows_is_the_limit_where_memory_is_not(bundle) -> None:
    found = largest_that_fit(bundle, ASKED, 10, 10**13, plan_of(bundle))
    assert (found["pictures"].most, found["pictures"].limit) == (bundle.config.max_visuals, True)
    assert (found["tokens"].most, found["tokens"].limit) == (bundle.config.language.context, True)
    assert (found["shots"].most, found["shots"].limit) == (bundle.config.max_visuals - 1, True)
    long_shots = largest_that_fit(bundle, ASKED, 100, 10**13, plan_of(bundle))["shots"]
    assert long_shots.most == (bundle.config.language.context - ASKED.answer - 1) // 100, "tokens end before pictures"


def test_nothing_fits_where_not_even_the_least_does(bundle) -> None:
    found = largest_that_fit(bundle, ASKED, 10, 1000, plan_of(bundle))
    assert {fitting.most for fitting in found.values()} == {None}
    text_alone = plan_memory(bundle, replace(ASKED, pictures=0)).total
    assert largest_that_fit(bundle, ASKED, 10, text_alone, plan_of(bundle))["pictures"].most == 0


@pytest.mark.parametrize(("workload", "said"), [
    (Workload(pictures=41), "41 pictures a row: this model allows 40"),
    (Workload(tokens=1025), "1,025 tokens a row: the model's context is 1,024"),
], ids=["pictures", "tokens"])
def test_a_workload_beyond_the_model_is_refused(bundle, workload, said) -> None:
    with pytest.raises(UsageError, match=said):
        check_workload(bundle, workload)


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"pictures": -1}, {"tokens": 1}, {"frames": 0}, {"answer": -1}])
def test_a_workload_that_cannot_be_is_refused(wrong) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Workload(**wrong)


# Refusals


def test_what_fits_is_not_refused_and_what_is_unknown_neither(bundle) -> None:
    sure = plan_memory(bundle, ASKED).sure
    require_plan(bundle, ASKED, sure)
    require_plan(bundle, ASKED, None)
    with pytest.raises(DataError, match=r"on the CPU needs at least .* weights 12\.\d MB; for 2 rows of 200 tokens"):
        require_plan(bundle, ASKED, sure - 1)


@pytest.mark.parametrize(("smaller", "said"), [
    ({"rows": 1}, r": 1 rows or beams would fit; flamingo-rt describe --model"),
    ({"rows": 1, "pictures": 0, "tokens": 40}, r": less would fit: use fewer rows, shots and tokens"),
], ids=["fewer rows", "less of everything"])
def test_a_refusal_says_what_would_fit(bundle, smaller, said) -> None:
    asked = replace(ASKED, rows=4, pictures=20, tokens=900)
    with pytest.raises(DataError, match=said):
        require_plan(bundle, asked, plan_memory(bundle, replace(asked, **smaller)).sure)


@pytest.mark.parametrize(("quantization", "said"), [(None, "export it with --quantize int8 or int4"), ("int4", "take")])
def test_where_not_even_a_token_fits_it_is_the_model_that_is_too_large(bundle, quantization, said) -> None:
    with pytest.raises(DataError, match=f"are available: {said}"):
        require_plan(changed(bundle, quantization=quantization), ASKED, 1000)


def test_a_gpu_is_asked_for_weights_and_buffers_alone(bundle) -> None:
    """Its runtime decides what activations take."""
    plan = plan_memory(bundle, ASKED, GPU)
    assert plan.sure == plan.weights + plan.parts[CACHE] + plan.parts[MEDIA] + plan.parts[LOGITS_PART]
    assert plan_memory(bundle, ASKED, CPU).sure > plan.sure
    with pytest.raises(DataError, match=r"on the GPU needs at least"):
        require_plan(bundle, ASKED, plan.sure - 1, GPU)


def test_a_bundle_without_files_of_weights_has_none(bundle, tmp_path: Path) -> None:
    for name in ("manifest.json", "tokenizer.json"):
        shutil.copy(PACKAGED_BUNDLE / name, tmp_path / name)
    assert set(stored_weights(read_description(tmp_path)).values()) == {0}
