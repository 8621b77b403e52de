"""Parameters reckoned from the configuration are those of the model that torch makes of it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_rt import model_memory
from flamingo_rt.config import (
    CrossAttentionConfig,
    FlamingoConfig,
    LanguageConfig,
    NFNetConfig,
    ResamplerConfig,
    ViTConfig,
)
from flamingo_rt.errors import DataError
from flamingo_rt.model.parameters import count_parameters
from flamingo_rt.model_memory import WEIGHTS, require_memory
from flamingo_rt.parameter_count import reckon_parameters
from flamingo_rt.presets import PRESETS, preset
from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.options import DataOptions, FlamingoOptions
from flamingo_rt.training.sharding import World


def made(config: FlamingoConfig) -> dict[str, int]:
    return {part: count for part, count in count_parameters(config).items() if part != "trainable"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_reckoned_as_they_are_made(name):
    assert reckon_parameters(preset(name)) == made(preset(name))


flags, few = st.booleans(), st.integers(1, 3)
widths = st.integers(1, 5).map(lambda count: 8 * count)
nfnets = st.builds(
    NFNetConfig, image_size=st.just(32), stem_widths=st.just((4, 8)), stem_strides=st.just((2, 1)),
    widths=st.just((16, 32)), depths=st.tuples(few, few), strides=st.just((1, 2)),
    group_width=st.sampled_from((4, 8)), squeeze_excite=st.sampled_from((0.25, 0.5)), output_width=widths,
)
vits = st.builds(
    ViTConfig, image_size=st.just(28), patch_size=st.sampled_from((7, 14)), width=widths, layers=few,
    heads=st.sampled_from((1, 2, 4)), ff_width=widths, keep_class_token=flags, post_norm=flags,
)
resamplers = st.builds(
    ResamplerConfig, width=widths, layers=few, heads=few, head_width=widths, latents=few, ff_multiplier=few,
    max_frames=st.integers(0, 3), input_norms=flags, final_norm=flags, spatial_positions=flags,
)
crosses = st.builds(
    CrossAttentionConfig, interval=few, heads=few, head_width=widths, ff_multiplier=few,
    norm=st.sampled_from(("layernorm", "rmsnorm")), norm_bias=flags, media_width=st.none() | widths,
)
languages = st.builds(
    LanguageConfig, vocab_size=st.integers(5, 50), width=widths, layers=st.integers(3, 4), heads=st.just(4),
    kv_heads=st.sampled_from((1, 2, 4)), head_width=widths, ff_width=widths, context=st.integers(1, 9),
    norm=st.sampled_from(("layernorm", "rmsnorm")), norm_bias=flags, position_offset=st.integers(0, 2),
    positions=st.sampled_from(("learnt", "alibi", "rotary")), activation=st.sampled_from(("gelu", "swiglu")),
    attention_bias=flags, attention_output_bias=flags, ff_bias=flags, query_key_norm=flags, tied_head=flags,
    head_bias=flags,
)
configs = st.builds(FlamingoConfig, vision=nfnets | vits, resampler=resamplers, cross_attention=crosses,
                    language=languages)


@settings(max_examples=60, deadline=None)
@given(config=configs)
def test_small_models_of_any_form_are_reckoned_as_they_are_made(config):
    assert reckon_parameters(config) == made(config)


def test_cross_attention_that_begins_higher_is_reckoned():
    config = preset("tiny")
    config = replace(config, cross_attention=replace(config.cross_attention, first=4))
    assert reckon_parameters(config) == made(config)
    assert 3 * reckon_parameters(config)["cross_attention"] == reckon_parameters(preset("tiny"))["cross_attention"]


def test_relative_positions_are_reckoned():
    config = preset("tiny")
    language = replace(config.language, positions="relative", kv_heads=config.language.heads)
    assert reckon_parameters(replace(config, language=language)) == made(replace(config, language=language))


def test_a_model_is_refused_when_its_weights_do_not_fit(monkeypatch):
    config = preset("tiny")
    needed = reckon_parameters(config)["total"] * WEIGHTS
    for available in (needed, None):
        monkeypatch.setattr(model_memory, "available_bytes", lambda available=available: available)
        require_memory(config, WEIGHTS, "the model")
    monkeypatch.setattr(model_memory, "available_bytes", lambda: needed - 1)
    with pytest.raises(DataError, match=r"the model needs at least 12\.\d MB of memory .*, 12\.\d MB are available"):
        require_memory(config, WEIGHTS, "the model")


WHOLE = FlamingoOptions(data=(DataOptions("scenes"),), preset="flamingo-3b", unfreeze=("vision", "language"))


def test_training_is_refused_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(model_memory, "available_bytes", lambda: 24 * 10**9)
    with pytest.raises(DataError, match=r"training flamingo-3b needs at least 51.. GB .*4 bytes each; .*12 bytes more"):
        open_flamingo_stage(WHOLE, World())
