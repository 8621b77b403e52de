"""The table of the graphs' inputs and outputs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flamingo_rt.config import CrossAttentionConfig
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER, graph_specs, layer_parts
from flamingo_rt.presets import preset

SIZES = {"N": 2, "M": 3, "F": 4, "B": 5, "S": 6 * 24, "T": 7, "K": 8, "C": 9}


@pytest.fixture
def config():
    """Four language layers, cross-attention before the second and the fourth."""
    cross_attention = CrossAttentionConfig(interval=2, offset="last", heads=4, head_width=8)
    tiny = preset("tiny")
    return replace(tiny, cross_attention=cross_attention, language=replace(tiny.language, layers=4, vocab_size=512))


def test_there_are_three_graphs_in_the_order_of_the_data(config):
    assert tuple(graph_specs(config)) == GRAPHS == ("vision_encoder", "resampler", "language_model")


def test_the_vision_encoder_maps_pictures_to_features(config):
    spec = graph_specs(config)[VISION_ENCODER]
    assert [(s.name, s.resolve(SIZES)) for s in spec.inputs] == [("pixel_values", (2, 3, 64, 64))]
    # 64 pixels over the strides 2 · 2 · 2 leave 8 x 8 cells.
    assert [(s.name, s.resolve(SIZES)) for s in spec.outputs] == [("features", (2, 64, 160))]


def test_the_resampler_maps_features_to_media_keys_and_values(config):
    spec = graph_specs(config)[RESAMPLER]
    assert [(s.name, s.resolve(SIZES)) for s in spec.inputs] == [("features", (3, 4, 64, 160))]
    assert [(s.name, s.resolve(SIZES)) for s in spec.outputs] == [
        (f"media_key_values.{layer}.{part}", (3, 4, 24, 8)) for layer in (0, 1) for part in ("key", "value")
    ]


def test_the_language_model_lists_tokens_then_media_then_past(config):
    spec = graph_specs(config)[LANGUAGE_MODEL]
    past = [f"past_key_values.{layer}.{part}" for layer in range(4) for part in ("key", "value")]
    assert [s.name for s in spec.inputs] == [
        "input_ids", "cache_length", "media_index", "logits_index",
        "media_key_values.0.key", "media_key_values.0.value", "media_key_values.1.key", "media_key_values.1.value",
        *past,
    ]
    present = [name.replace("past_key_values", "present") for name in past]
    assert [s.name for s in spec.outputs] == ["logits", "next_token", "next_logprob", *present]


def test_the_language_models_shapes_resolve(config):
    spec = graph_specs(config)[LANGUAGE_MODEL]
    shapes = {s.name: s.resolve(SIZES) for s in (*spec.inputs, *spec.outputs)}
    assert shapes["input_ids"] == shapes["media_index"] == (5, 7)
    assert shapes["cache_length"] == (5,)
    assert shapes["logits_index"] == (5, 8)
    assert shapes["media_key_values.1.value"] == (5, 4, 144, 8)
    assert shapes["past_key_values.3.key"] == shapes["present.3.key"] == (5, 2, 9, 32)
    assert shapes["logits"] == (5, 8, 512)
    assert shapes["next_token"] == shapes["next_logprob"] == (5, 8)


def test_only_ids_lengths_and_indices_are_integers(config):
    integers = {s.name for spec in graph_specs(config).values() for s in (*spec.inputs, *spec.outputs)
                if s.dtype == "int64"}
    assert integers == {"input_ids", "cache_length", "media_index", "logits_index", "next_token"}


@pytest.mark.parametrize("name", ["tiny", "flamingo-9b"])
def test_every_name_is_unique_within_its_graph(name):
    for spec in graph_specs(preset(name)).values():
        names = [s.name for s in (*spec.inputs, *spec.outputs)]
        assert len(set(names)) == len(names)


def test_a_tensor_is_found_by_its_name(config):
    spec = graph_specs(config)[LANGUAGE_MODEL]
    assert spec.input("media_index").name == "media_index"
    assert spec.output("present.2.key").name == "present.2.key"


def test_a_missing_size_is_an_error(config):
    with pytest.raises(KeyError, match="N"):
        graph_specs(config)[VISION_ENCODER].inputs[0].resolve({"M": 1})


def test_keys_come_before_values_layer_by_layer():
    assert layer_parts(2) == [(0, "key"), (0, "value"), (1, "key"), (1, "value")]
