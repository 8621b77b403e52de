"""The torch backend's form for GPUs, on the CPU: steps over tensors that stay where they are give the tokens of the
oracle, computed or replayed, and are kept from one answer to the next.

`recorded_device.py` says what the stand-in checks, and what it cannot show.
"""

from __future__ import annotations

import copy
import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from recorded_device import RecordedDevice
from small_model import small_flamingo
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flamingo_rt.backend import present_buffers
from flamingo_rt.contract import LANGUAGE_MODEL, LOGITS, RESAMPLER, VISION_ENCODER
from flamingo_rt.errors import DataError
from flamingo_rt.model.device_backend import DeviceBackend, _language_model
from flamingo_rt.model.flamingo import Flamingo, on_meta_device
from flamingo_rt.model.tensor_cache import MOST_STEPS, STEP
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.model.torch_device import Device
from flamingo_rt.model.torch_probe import TorchProbe
from flamingo_rt.runtime.model import Model

FLOAT32 = 2e-5  # log-probabilities, sums in another order
FAMILIES = {
    "alibi": {"positions": "alibi", "norm": "layernorm", "query_key_norm": True},
    "relative": {"positions": "relative"},
    "learnt": {"positions": "learnt", "position_offset": 2},
    "narrow heads": {"head_width": 12, "width": 48},  # wider in the cache
}


@pytest.fixture
def device() -> RecordedDevice:
    return RecordedDevice()


@pytest.fixture
def model(flamingo, config, tokenizer, device) -> Model:
    return Model(DeviceBackend(copy.deepcopy(flamingo), device), config, tokenizer)


@pytest.fixture
def plain(flamingo, config, tokenizer) -> Model:
    """The same computation, which is never captured."""
    device = RecordedDevice()
    device.refuse = True
    return Model(DeviceBackend(copy.deepcopy(flamingo), device), config, tokenizer)


def assert_same(found, expected) -> None:
    assert max(len(result.tokens) for result in expected) > 3
    assert [result.tokens for result in found] == [result.tokens for result in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=FLOAT32)


WAYS = (  # each is another loop: greedy, guessing ahead, from logits, beams
    {}, {"speculation": 4}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.2}, {"beams": 3},
)


class TestSameTokensAsTheOracle:
    @pytest.mark.parametrize("options", WAYS, ids=str)
    def test_of_one_row_with_pictures(self, model, torch_model, device, pictures, clip, options) -> None:
        parts = [pictures[0], "Output: a red", clip, "Output: a red"]
        results = [each.generate(parts, max_new_tokens=14, **options).result() for each in (model, torch_model)]
        assert_same(results[:1], results[1:])
        assert device.captures
        assert device.replays > device.captures

    def test_of_rows_of_several_lengths_behind_a_prefix(self, model, torch_model, device, pictures) -> None:
        queries = [[pictures[1], "Output:"], "Question: how many? Answer:", [pictures[2], pictures[3], "Output: a"]]
        found, expected = (
            each.generate_batch(queries, prefix=each.prompt([pictures[0], "Output: two"]), max_new_tokens=10)
            for each in (model, torch_model)
        )
        assert_same(found, expected)
        assert (device.captures, device.replays > 3) == (1, True)

    def test_of_choices(self, model, torch_model, pictures) -> None:
        scores = [
            {score.text: score.logprob for score in each.score([pictures[0], "Output:"], ["red", "a blue square"])}
            for each in (model, torch_model)
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_of_every_scheme_of_positions(self, config, tokenizer, pictures, family) -> None:
        config = replace(config, language=replace(config.language, kv_heads=4, **FAMILIES[family]))
        flamingo, device = small_flamingo(config), RecordedDevice()
        models = [Model(DeviceBackend(copy.deepcopy(flamingo), device), config, tokenizer),
                  Model(TorchBackend(flamingo), config, tokenizer)]
        queries = [[pictures[0], "Output:"], "a red circle"]
        found, expected = (each.generate_batch(queries, max_new_tokens=8) for each in models)
        assert_same(found, expected)
        assert device.replays

    def test_in_numpy_arrays_of_the_contract(self, model, torch_model, config) -> None:
        """Arrays as the comparison of an export with PyTorch binds them."""
        results = []
        for each in (model, torch_model):
            spec = each.backend.specs[LANGUAGE_MODEL]
            sizes, rng = {"B": 2, "T": 3, "K": 3, "S": config.resampler.latents, "C": 20}, np.random.default_rng(1)
            inputs = {
                tensor.name: rng.standard_normal(tensor.resolve(sizes)).astype(tensor.array_dtype)
                if tensor.dtype != "int64" else np.ones(tensor.resolve(sizes), np.int64) for tensor in spec.inputs
            }
            past = {name: array for name, array in inputs.items() if name.startswith("past")}
            logits = np.empty(spec.output(LOGITS).resolve(sizes), np.float32)
            each.backend.bind(LANGUAGE_MODEL, inputs, {LOGITS: logits, **present_buffers(past)})()
            results.append((logits, *past.values()))
        for found, expected in zip(*results, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_replayed_answer_is_bit_for_bit_the_computed_one(model, plain, pictures) -> None:
    """The first step is computed and later ones are replayed, so warm and cold answers must be equal in every digit."""
    parts = [pictures[0], "Output: a", pictures[1], "Output:"]
    answers = [each.generate(parts, max_new_tokens=12).result() for each in (plain, model, model)]
    assert answers[0].tokens == answers[1].tokens == answers[2].tokens
    assert answers[0].logprobs == answers[1].logprobs == answers[2].logprobs


def test_a_step_is_computed_once_captured_once_and_then_replayed(model, device, pictures) -> None:
    found = model.generate([pictures[0], "Output:"], max_new_tokens=9).result()
    assert (device.captures, device.replays) == (1, found.steps - 1)


def test_prompts_and_pictures_are_never_captured(model, device, pictures) -> None:
    for _ in range(3):
        model.prompt([pictures[0], "Output: a red circle", pictures[1], "Output:"])
    assert device.captures == 0


class TestStepsAreKept:
    def test_for_answers_of_about_the_same_length(self, model, device, pictures) -> None:
        for text in ("Output:", "Output: a", "Output: a red circle"):
            model.generate([pictures[0], text], max_new_tokens=9).result()
        assert device.captures == 1

    def test_for_each_number_of_rows_and_each_shape_of_the_media(self, flamingo, config, tokenizer, pictures) -> None:
        """Rows change the cache; visuals that are still looked at change the media alone."""
        config = replace(config, cross_attention=replace(config.cross_attention, attend="all"))
        flamingo_all, device = Flamingo(config), RecordedDevice()
        flamingo_all.load_state_dict(flamingo.state_dict())
        model = Model(DeviceBackend(flamingo_all, device), config, tokenizer)
        prompts = [[picture, "a"] for picture in pictures]
        for expected, parts in ((1, prompts[0]), (2, prompts[0] + prompts[1]), (2, prompts[1]), (2, prompts[1] * 2)):
            model.generate(parts, max_new_tokens=6).result()
            assert device.captures == expected
        model.generate_batch([prompts[0], prompts[1]], max_new_tokens=6)
        assert device.captures == 3

    def test_with_the_content_of_their_own_answer(self, model, torch_model, pictures) -> None:
        for picture in pictures[:3]:
            results = [each.generate([picture, "Output:"], max_new_tokens=7).result() for each in (model, torch_model)]
            assert_same(results[:1], results[1:])

    def test_up_to_a_number(self, model, config) -> None:
        backend = model.backend
        cache = backend.cache(1, 8)
        inputs = {spec.name: spec for spec in backend.specs[LANGUAGE_MODEL].inputs if "C" not in spec.shape}
        for visuals in range(1, MOST_STEPS + 4):
            sizes = {"B": 1, "T": 1, "K": 1, "S": visuals * config.resampler.latents}
            arrays = {name: np.zeros(spec.resolve(sizes), spec.array_dtype) for name, spec in inputs.items()}
            backend.bind(LANGUAGE_MODEL, {**arrays, **cache.buffers()}, {}, constant=["media_index"])()
        owner = next(iter(cache.buffers().values())).owner
        assert len(owner.steps) == MOST_STEPS

    def test_and_dropped_with_a_cache_of_another_size(self, model, device) -> None:
        model.generate("Output:", max_new_tokens=5).result()
        model.generate_batch(["Output:", "a"], max_new_tokens=5)
        model.generate("Output:", max_new_tokens=5).result()
        assert device.captures == 3


def test_a_step_that_cannot_be_captured_is_computed(plain, torch_model, pictures) -> None:
    parts = [pictures[0], "Output: a", pictures[1], "Output:"]
    results = [each.generate(parts, max_new_tokens=12).result() for each in (plain, torch_model)]
    assert_same(results[:1], results[1:])


def test_a_number_that_comes_to_the_host_cannot_be_captured() -> None:
    """The stand-in itself: were steps written like the oracle's, it would refuse them."""
    length = torch.zeros(1, dtype=torch.int64)
    for run in (lambda: int(length.max()), lambda: torch.tensor([1]), lambda: length[length > 0]):
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            RecordedDevice().capture(run)


class OnTheDevice(TorchDispatchMode):
    """Lets only tensors of the device "meta" into an operation, and single numbers of the host, which are arguments of
    kernels and not copied."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, torch.Tensor)]
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        for tensor in tensors:
            assert tensor.device.type == "meta" or (tensor.ndim == 0 and not copies), f"{func} reads the host"
        return made


@pytest.mark.parametrize("family", ["rotary", *FAMILIES])
def test_a_step_on_a_gpu_copies_nothing_from_the_host(config, family) -> None:
    """On PyTorch's device without content, so that a look at a number is an error, too."""
    config = replace(config, language=replace(config.language, kv_heads=4, **FAMILIES.get(family, {})))
    with on_meta_device():
        model = Flamingo(config).to(torch.bfloat16)
        spec = DeviceBackend(model, Device(torch.device("meta"))).specs[LANGUAGE_MODEL]
        sizes = {"B": 2, "T": 1, "K": 1, "S": config.resampler.latents, "C": STEP}
        inputs, outputs = (
            {each.name: torch.zeros(each.resolve(sizes), dtype=getattr(torch, each.dtype)) for each in tensors}
            for tensors in (spec.inputs, spec.outputs)
        )
    with OnTheDevice(), torch.no_grad():
        _language_model(model, inputs, outputs, None)


# Half precision


def test_bfloat16_is_computed_and_kept_in_that_type(flamingo, config, tokenizer, device, pictures) -> None:
    model = Model(DeviceBackend(copy.deepcopy(flamingo).to(torch.bfloat16), device), config, tokenizer)
    prefix = model.prompt([pictures[0], "Output: a"])
    assert {array.dtype for array in prefix._prefix.cache.values()} == {np.dtype(np.uint16)}
    assert model.backend.specs[RESAMPLER].outputs[0].dtype == "bfloat16"
    for options in ({}, {"beams": 2}):
        found = model.generate("Output:", prefix=prefix, max_new_tokens=8, **options).result()
        assert len(found.tokens) > 3
        assert all(np.isfinite(found.logprobs))
    assert device.replays


def test_half_precision_is_near_float32(flamingo, config, torch_model) -> None:
    half = DeviceBackend(copy.deepcopy(flamingo).to(torch.bfloat16), RecordedDevice())
    size, features = config.vision.image_size, []
    pixels = np.random.default_rng(0).uniform(-2, 2, (1, 3, size, size)).astype(np.float32)
    for backend in (half, torch_model.backend):
        spec = backend.specs[VISION_ENCODER].outputs[0]
        out = np.empty(spec.resolve({"N": 1}), spec.array_dtype)
        backend.bind(VISION_ENCODER, {"pixel_values": pixels}, {spec.name: out})()
        features.append(out if out.dtype == np.float32 else (out.astype(np.uint32) << 16).view(np.float32))
    np.testing.assert_allclose(*features, rtol=0, atol=0.1)  # of numbers up to 4, 8 bits each
    assert np.abs(features[1]).max() > 1


# Memory


def test_memory_is_given_back_with_the_model(flamingo, config, tokenizer, pictures) -> None:
    """Turn Python's cycle collector off: a GPU's memory must not wait for it."""
    device = RecordedDevice(memory=1 << 30)
    model = Model(DeviceBackend(copy.deepcopy(flamingo), device), config, tokenizer)
    gc.disable()
    try:
        for options in ({"beams": 2}, {}):
            model.generate([pictures[0], "Output:"], max_new_tokens=6, **options).result()
        assert device.used(), "the cache is kept"
        del model
        assert device.used() == 0
    finally:
        gc.enable()


def test_a_cache_of_another_size_takes_the_place_of_the_one_that_is_kept(model, device) -> None:
    device.memory = 1 << 30
    model.backend.cache(1, 64).close()
    one = device.used()
    model.backend.cache(2, 64).close()
    assert device.used() == 2 * one == model.backend._pool.unused_bytes
    assert model.backend.available_bytes() == device.memory


def test_a_cache_that_does_not_fit_says_what_would(model, config, device) -> None:
    token = 4 * 2 * config.language.layers * config.language.kv_heads * config.language.head_width
    device.memory = 3 * STEP * token
    with pytest.raises(DataError, match=r"cache of 5 rows of 64 tokens takes .*; 3 of these rows would fit"):
        model.backend.cache(5, 60)
    device.memory = 40 * token
    with pytest.raises(DataError, match=r"40 tokens would fit: use fewer shots or a smaller max_new_tokens"):
        model.backend.cache(1, 60)
    assert device.freed
    device.memory = STEP * token
    model.backend.cache(1, 60)


def test_a_batch_is_checked_against_the_memory_of_the_device(model, device) -> None:
    device.memory = 100_000
    with pytest.raises(DataError, match=r"\d+ rows of .* in memory on the GPU: .* 0\.1 MB are available; \d+ of these"):
        model.generate_batch(["Output:"] * 64, max_new_tokens=8)


def test_a_closed_cache_takes_no_step(model) -> None:
    cache = model.backend.cache(1, 8)
    cache.close()
    cache.close()
    with pytest.raises(ValueError, match="the cache is closed"):
        cache.buffers()


def test_a_cache_that_is_opened_again_holds_zeros(model) -> None:
    backend = model.backend
    cache = backend.cache(1, 8)
    for buffer in cache.buffers().values():
        buffer.tensor.fill_(float("nan"))
    cache.close()
    again = backend.cache(1, 8)
    assert all(not buffer.tensor.any() for buffer in again.buffers().values())


def test_its_device_is_measured_by_pytorch_alone() -> None:
    with TorchProbe(Device(), torch.float32, copy_bytes=1 << 16, size=32) as probe:
        rates = [probe.bandwidth(), probe.products()]
    assert all(rate > 0 for rate, _ in rates)
    assert "the CPU" in rates[0][1]
    assert "32³, float32" in rates[1][1]
