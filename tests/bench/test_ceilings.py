"""FLOPs and bytes: against numbers computed by hand, and against what PyTorch counts while it runs the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_model import small_config
from torch.utils.flop_counter import FlopCounterMode

from flamingo_rt.bench import ceilings
from flamingo_rt.bench.model_facts import counted_weights
from flamingo_rt.bench.theory import Theory
from flamingo_rt.bundle import WeightBytes, read_description
from flamingo_rt.config import ExternalVisionConfig, FlamingoConfig
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL
from flamingo_rt.loading import PACKAGED_BUNDLE
from flamingo_rt.model.flamingo import Flamingo, on_meta_device
from flamingo_rt.model.parameters import count_parameters
from flamingo_rt.parameter_count import reckon_parameters
from flamingo_rt.presets import preset

NAMES = ["tiny", "flamingo-3b", "openflamingo-3b", "openflamingo-4b", "openflamingo-9b"]


def counted(config: FlamingoConfig, run) -> int:
    with on_meta_device():
        model = Flamingo(config).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(model)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", NAMES)
def test_a_pictures_flops_are_what_pytorch_counts(name: str) -> None:
    config = preset(name)
    side = config.vision.image_size
    assert ceilings.vision_flops(config) == counted(config, lambda model: model.vision(torch.zeros(1, 3, side, side)))


def test_an_external_encoders_work_is_what_was_measured_when_it_was_imported() -> None:
    encoder = ExternalVisionConfig(features=81, width=1280, parameters=8_000_000, multiply_adds=1_500_000_000)
    config = replace(preset("tiny"), vision=encoder)
    assert ceilings.vision_flops(config) == 3_000_000_000
    assert ceilings.parameter_bytes(ceilings.vision_products(config)) == 32_000_000
    assert reckon_parameters(config)["vision"] == 8_000_000


@pytest.mark.parametrize("name", NAMES)
def test_the_resamplers_flops_are_what_pytorch_counts(name: str) -> None:
    config = preset(name)

    def run(model: Flamingo) -> None:
        features = torch.zeros(1, 1, config.vision.feature_count, config.vision.width)
        model.cross_attention.keys_values(model.resampler(features))

    time = 2 * config.resampler.max_frames * config.resampler.width  # the time embedding of the one frame: a lookup
    assert ceilings.resampler_flops(config) == counted(config, run) - time


@pytest.mark.parametrize("name", [name for name in NAMES if name != "flamingo-3b"])  # relative positions: see below
def test_a_first_tokens_flops_are_what_pytorch_counts(name: str) -> None:
    config = preset(name)
    cross = config.cross_attention

    def run(model: Flamingo) -> None:
        ids = torch.zeros(1, 1, dtype=torch.long)
        media = [torch.zeros(1, cross.heads, config.resampler.latents, cross.head_width)] * len(config.cross_layers)
        model.decode(ids, ids, ids + 1, media, media)

    assert ceilings.language_flops(config, 1) == counted(config, run)


def test_attention_counts_the_tokens_that_each_may_look_at() -> None:
    config = small_config()  # 3 layers, 4 heads of 8, products of scores and of values: 2 * 2 * 32 FLOPs a pair
    one_by_one = sum(ceilings.language_flops(config, 1, cached=cached) for cached in range(5, 9))
    heads = 3 * 2 * config.language.width * config.language.vocab_size  # logits of the last alone
    assert ceilings.language_flops(config, 4, cached=5) == one_by_one - heads
    assert ceilings.language_flops(config, 1, 11) - ceilings.language_flops(config, 1, 10) == 3 * 2 * 2 * 32


def test_relative_positions_are_one_more_product_for_each_pair() -> None:
    config = small_config()
    relative = replace(config, language=replace(config.language, positions="relative"))
    more = ceilings.language_flops(relative, 1, cached=9) - ceilings.language_flops(config, 1, cached=9)
    assert more == 3 * 10 * 2 * 32


def test_bytes_of_the_small_model_computed_by_hand() -> None:
    config = small_config()
    assert ceilings.cache_bytes(config, 7) == 7 * 3 * 2 * (2 * 8) * 4  # layers, keys and values, 2 heads of 8
    assert ceilings.media_bytes(config) == 2 * 2 * (2 * 5 * 16) * 4  # layers 0 and 2; 2 heads, 5 latents of 16
    assert ceilings.pixel_bytes(config) == 3 * 32 * 32 * 4
    assert ceilings.feature_bytes(config) == 4 * 4 * 24 * 4  # 32 pixels, halved three times


def test_in_half_precision_all_but_pixel_values_is_half_as_large() -> None:
    config, none = small_config(), dict.fromkeys(GRAPHS, WeightBytes(0, 0, 0))
    single, half = Theory(config, none), Theory(config, none, number=2)
    assert half.decode(2, 64, 3)[1] == single.decode(2, 64, 3)[1] / 2
    assert half.prefill(7)[1] == single.prefill(7)[1] / 2
    assert half.resampler()[1] == single.resampler()[1] / 2
    assert single.vision()[1] - half.vision()[1] == ceilings.feature_bytes(config) / 2
    assert half.decode(2, 64, 3)[0] == single.decode(2, 64, 3)[0]


def test_the_matrices_are_nearly_all_of_a_models_parameters() -> None:
    config = preset("openflamingo-3b")
    weights = counted_weights(config)
    parameters = sum(entry.each_run for entry in weights.values()) / 4
    assert parameters == pytest.approx(count_parameters(config)["total"], rel=2e-3)  # norms, biases, positions


def test_an_untied_embedding_is_stored_but_not_read() -> None:
    tied, untied = (
        counted_weights(replace(small_config(), language=replace(small_config().language, tied_head=tie)))
        for tie in (True, False)
    )
    table = 300 * 32 * 4
    assert untied[LANGUAGE_MODEL].stored - tied[LANGUAGE_MODEL].stored == table
    assert untied[LANGUAGE_MODEL].each_run == tied[LANGUAGE_MODEL].each_run
    assert untied[LANGUAGE_MODEL].each_token == 32 * 4


def test_a_step_of_the_packaged_model_reads_weights_cache_and_one_picture() -> None:
    weights = {name: entry.weight_bytes for name, entry in read_description(PACKAGED_BUNDLE).graphs.items()}
    theory = Theory(preset("tiny"), weights)
    row = 6 * 2 * (2 * 32) * 4  # 6 layers, keys and values, 2 heads of 32
    picture = 6 * 2 * (4 * 24 * 32) * 4  # 6 layers, keys and values, 4 heads, 24 latents of 32
    stored = weights[LANGUAGE_MODEL].stored
    assert theory.decode(1, 64, 1)[1] == stored + 65 * row + picture
    assert theory.decode(3, 64, 1)[1] == stored + 3 * (65 * row + picture)
    assert theory.decode(1, 64, 3)[1] == stored + 66 * row + picture  # 65, 66, 67 tokens
    assert theory.decode(2, 64, 3)[0] == 2 * ceilings.language_flops(preset("tiny"), 1, cached=65)
    assert theory.prefill(5) == (ceilings.language_flops(preset("tiny"), 5), stored + 5 * row + picture)


def test_distances_are_read_once_for_all_rows_and_as_many_as_are_seen() -> None:
    none = WeightBytes(0, 0, 0)
    with_distances, without = (
        Theory(small_config(), dict.fromkeys(GRAPHS, none) | {LANGUAGE_MODEL: weights})
        for weights in (WeightBytes(1000, 0, 0, each_distance=10), none)
    )
    for batch, context, steps, seen in ((1, 64, 1, 65), (4, 64, 1, 65), (2, 64, 3, 66), (1, 64, 2, 65.5)):
        more = with_distances.decode(batch, context, steps)[1] - without.decode(batch, context, steps)[1]
        assert more == 10 * seen
    assert with_distances.prefill(7)[1] - without.prefill(7)[1] == 70


def test_counted_and_real_weights_of_the_packaged_model_agree() -> None:
    found, packaged = counted_weights(preset("tiny")), read_description(PACKAGED_BUNDLE).graphs
    for name in GRAPHS:
        assert found[name].each_run == pytest.approx(packaged[name].weight_bytes.each_run, rel=0.04)
