"""Configurations: what is stored comes back equal, and what cannot work is refused with the key's name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from flamingo_rt.config import (
    CrossAttentionConfig,
    ExternalVisionConfig,
    FlamingoConfig,
    LanguageConfig,
    NFNetConfig,
    PromptsConfig,
    ResamplerConfig,
    TokensConfig,
    ViTConfig,
)
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.presets import PRESETS, preset


def with_value(path: str, value: object) -> dict:
    """A valid configuration's dictionary with one dotted key replaced."""
    data = json.loads(json.dumps(preset("tiny").to_dict()))
    *parents, last = path.split(".")
    target = data
    for key in parents:
        target = target[key]
    target[last] = value
    return data


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name):
    config = preset(name)
    assert FlamingoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.name == name


def test_a_vision_transformer_survives_json():
    config = replace(preset("tiny"), vision=ViTConfig(image_size=28, post_norm=True))
    assert FlamingoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_external_encoder_survives_json():
    encoder = ExternalVisionConfig(
        image_size=260, features=81, width=1280, parameters=8_100_000, graph_bytes=33_000_000,
        multiply_adds=1_400_000_000, digest="0123456789abcdef",
    )
    config = replace(preset("tiny"), vision=encoder)
    assert config.vision.feature_count == 81
    assert FlamingoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_prompts_of_another_form_survive_json():
    prompts = PromptsConfig(question="Question:{} Short answer:", answer_separator="")  # OpenFlamingo's
    config = replace(preset("tiny"), prompts=prompts)
    assert FlamingoConfig.from_dict(json.loads(json.dumps(config.to_dict()))).prompts == prompts


def test_a_configuration_from_before_there_were_prompts_has_the_usual_ones():
    data = json.loads(json.dumps(preset("openflamingo-3b").to_dict()))
    del data["prompts"]
    kept = dict(data)
    assert FlamingoConfig.from_dict(data) == replace(preset("openflamingo-3b"), prompts=PromptsConfig())
    assert data == kept


@pytest.mark.parametrize("question", ["what?", "{}", "{0} {x", ""])
def test_a_question_is_put_into_its_place_as_it_is(question):
    assert PromptsConfig().ask(question) == "Question: " + question + " Answer:"
    assert PromptsConfig(question="{x} {}?").ask(question) == "{x} " + question + "?"


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(UsageError) as error:
        preset("flamingo-4b")
    assert "flamingo-4b" in str(error.value)
    assert all(name in str(error.value) for name in PRESETS)


@pytest.mark.parametrize(
    "part", ["vision", "resampler", "cross_attention", "language", "preprocessing", "tokens", "prompts"]
)
def test_an_unknown_key_is_named(part):
    data = preset("tiny").to_dict()
    data[part]["surprise"] = 1
    with pytest.raises(DataError, match=rf"config\.{part} has unknown keys surprise"):
        FlamingoConfig.from_dict(data)


@pytest.mark.parametrize(
    ("part", "key"),
    [("vision", "widths"), ("resampler", "latents"), ("cross_attention", "interval"), ("language", "vocab_size"),
     ("preprocessing", "mean"), ("tokens", "image"), ("prompts", "answer_separator")],
)
def test_a_missing_key_is_named(part, key):
    data = preset("tiny").to_dict()
    del data[part][key]
    with pytest.raises(DataError, match=rf"config\.{part} lacks {key}"):
        FlamingoConfig.from_dict(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", 3),
        ("language.width", "128"),
        ("language.width", 128.0),
        ("language.layers", True),
        ("language.tied_head", 1),
        ("language.norm", "batchnorm"),
        ("language.norm_eps", "small"),
        ("resampler", None),
        ("resampler.final_norm", None),
        ("cross_attention.offset", "middle"),
        ("cross_attention.media_width", "wide"),
        ("vision.widths", 64),
        ("preprocessing.mean", [0.5, 0.5]),
        ("tokens", []),
        ("prompts", "Output:"),
        ("prompts.question", None),
        ("prompts.answer_separator", 0),
    ],
)
def test_a_mistyped_value_names_its_key(path, value):
    with pytest.raises(DataError, match=rf"config\.{path}\b"):
        FlamingoConfig.from_dict(with_value(path, value))


def test_a_mistyped_list_entry_is_named():
    with pytest.raises(DataError, match=r"config\.vision\.depths\[1\]"):
        FlamingoConfig.from_dict(with_value("vision.depths", [1, "2", 2]))


@pytest.mark.parametrize("kind", ["resnet", None, 4, []])
def test_an_unknown_vision_encoder_lists_the_known_ones(kind):
    with pytest.raises(DataError, match=r"config\.vision\.kind is .*; known: nfnet, vit"):
        FlamingoConfig.from_dict(with_value("vision.kind", kind))


def test_an_integer_is_accepted_where_a_float_is_wanted():
    config = FlamingoConfig.from_dict(with_value("language.rotary_base", 500))
    assert isinstance(config.language.rotary_base, float)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\xff"])
def test_a_damaged_file_is_refused(tmp_path, text):
    file = tmp_path / "config.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError):
        FlamingoConfig.read(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent.json"):
        FlamingoConfig.read(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NFNetConfig(widths=(256, 512)), "stages differ"),
        (lambda: NFNetConfig(stem_strides=(2, 1)), "stem"),
        (lambda: NFNetConfig(widths=(250, 512, 1536, 1536)), "width 250"),
        (lambda: NFNetConfig(group_width=0), "group_width"),
        (lambda: NFNetConfig(depths=(1, 0, 1, 1)), "depths"),
        (lambda: ViTConfig(image_size=225), "225"),
        (lambda: ViTConfig(patch_size=0), "patch_size"),
        (lambda: ViTConfig(width=1000), "1000"),
        (lambda: ResamplerConfig(latents=0), "latents"),
        (lambda: ResamplerConfig(max_frames=-1), "max_frames"),
        (lambda: CrossAttentionConfig(interval=0), "interval"),
        (lambda: LanguageConfig(heads=16, kv_heads=3), "3 kv_heads"),
        (lambda: LanguageConfig(kv_heads=0), "kv_heads"),
        (lambda: LanguageConfig(layers=0), "layers"),
        (lambda: LanguageConfig(head_width=10, rotary_fraction=0.5), "5, is odd"),
        (lambda: FlamingoConfig(resampler=ResamplerConfig(input_projection=False)), "projection"),
        (lambda: FlamingoConfig(cross_attention=CrossAttentionConfig(interval=25, offset="last")), "interval"),
        (lambda: FlamingoConfig(cross_attention=CrossAttentionConfig(first=24)), "or first leaves none"),
        (lambda: CrossAttentionConfig(first=-1), "first"),
        (lambda: CrossAttentionConfig(first=1025), "first is above 1024"),
        (lambda: FlamingoConfig(max_visuals=0), "max_visuals"),
        (lambda: PromptsConfig(caption=""), "prompts.caption is ''"),
        (lambda: PromptsConfig(question=" "), "prompts.question is ' '"),
        (lambda: PromptsConfig(question="Question: Answer:"), "prompts.question 'Question: Answer:' holds {} 0 times"),
        (lambda: PromptsConfig(question="{} {}"), "prompts.question '{} {}' holds {} 2 times"),
        (lambda: FlamingoConfig(prompts=PromptsConfig(caption="<image>Output:")), "prompts.caption .* holds <image>"),
        (lambda: FlamingoConfig(prompts=PromptsConfig(answer_separator="<|endofchunk|>")), "prompts.answer_separator"),
        (lambda: FlamingoConfig(tokens=TokensConfig(image="Qu")), "prompts.question .* holds Qu"),
    ],
)
def test_configurations_that_cannot_work_are_refused(build, message):
    with pytest.raises(DataError, match=message):
        build()


@pytest.mark.parametrize(
    ("offset", "interval", "layers", "expected"),
    [
        ("first", 1, 4, (0, 1, 2, 3)),
        ("last", 1, 4, (0, 1, 2, 3)),
        ("first", 3, 7, (0, 3, 6)),
        ("last", 3, 7, (2, 5)),
        ("first", 4, 32, (0, 4, 8, 12, 16, 20, 24, 28)),
        ("last", 4, 32, (3, 7, 11, 15, 19, 23, 27, 31)),
    ],
)
def test_cross_attention_precedes_the_layers_of_its_rule(offset, interval, layers, expected):
    assert CrossAttentionConfig(interval=interval, offset=offset).layers(layers) == expected


@pytest.mark.parametrize(
    ("offset", "interval", "first", "expected"),
    [("first", 3, 12, (12, 15, 18, 21, 24, 27)), ("first", 3, 13, (15, 18, 21, 24, 27)), ("last", 4, 20, (23, 27)),
     ("first", 1, 29, (29,)), ("first", 1, 30, ())],
)
def test_cross_attention_begins_at_its_first_layer(offset, interval, first, expected):
    assert CrossAttentionConfig(interval=interval, offset=offset, first=first).layers(30) == expected


def test_a_text_with_half_a_character_is_refused():
    data = preset("tiny").to_dict()
    data["tokens"]["end_of_chunk"] = "<|end\ud800|>"
    with pytest.raises(DataError, match=r"tokens.end_of_chunk.*half a character"):
        FlamingoConfig.from_dict(data)


def test_a_model_from_before_further_ends_of_answers_is_read():
    data = FlamingoConfig().to_dict()
    del data["tokens"]["stop"]
    assert FlamingoConfig.from_dict(data) == FlamingoConfig()


def test_a_model_from_before_cross_attention_had_a_first_layer_is_read():
    data = FlamingoConfig().to_dict()
    del data["cross_attention"]["first"]
    assert FlamingoConfig.from_dict(data) == FlamingoConfig()
