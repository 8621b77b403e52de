"""The arithmetic of docs/scaling.md: bytes and FLOPs of small models that are trained, and the page's tables."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from small_model import TEXTS, small_config

from benchmarks.scaling_plan import (
    Corpus,
    copied_bytes,
    document_bytes,
    document_flops,
    picture_flops,
    state_bytes,
    tables,
    trained_parameters,
)
from flamingo_rt.config import CrossAttentionConfig, FlamingoConfig, LanguageConfig, ResamplerConfig, ViTConfig
from flamingo_rt.model.flamingo import Flamingo, make_vision_encoder
from flamingo_rt.presets import preset
from flamingo_rt.training.data.document_batches import FlamingoBatch
from flamingo_rt.training.flamingo_stage import FlamingoStage
from flamingo_rt.training.flops import CountedFlops
from flamingo_rt.training.options import FlamingoOptions, RunOptions
from flamingo_rt.training.sharding import World, autocast, recompute_activations
from flamingo_rt.training.tokenizer_training import train_tokenizer

PAPER = FlamingoConfig(
    vision=small_config().vision,
    resampler=ResamplerConfig(width=64, layers=2, heads=2, head_width=64, latents=16),
    cross_attention=CrossAttentionConfig(heads=4, head_width=32, media_width=128),
    language=LanguageConfig(
        vocab_size=500, width=128, layers=4, heads=4, kv_heads=4, head_width=32, ff_width=512, positions="relative",
    ),
)
# Grouped queries, a gated feed-forward, a head of its own, cross-attention before every second layer.
GROUPED = replace(
    PAPER, cross_attention=replace(PAPER.cross_attention, interval=2, media_width=None),
    language=replace(PAPER.language, positions="rotary", kv_heads=2, activation="swiglu", tied_head=False),
)
OPENFLAMINGO = replace(
    PAPER, vision=ViTConfig(image_size=32, patch_size=8, width=64, layers=2, heads=2, ff_width=256),
    resampler=replace(PAPER.resampler, max_frames=0, input_projection=False, input_norms=True, final_norm=True),
    cross_attention=replace(PAPER.cross_attention, media_width=None, offset="last"),
    language=replace(PAPER.language, positions="alibi", norm="layernorm", query_key_norm=True),
)
CONFIGS = {"paper": PAPER, "grouped": GROUPED, "openflamingo": OPENFLAMINGO}
PAGES, CLIPS = Corpus("pages", 0, 2, 48, visuals=3), Corpus("clips", 0, 3, 16, frames=4)


def stage_of(config: FlamingoConfig, precision: str = "bf16") -> FlamingoStage:
    """Stage 3 on a model with random weights, of which the vision encoder and the language model are frozen."""
    tokenizer = train_tokenizer(TEXTS, config.language.vocab_size, config.tokens)
    options = FlamingoOptions(run=RunOptions(precision=precision))
    return FlamingoStage(Flamingo(config), tokenizer, [], options, (3, 4), World())


def batch_of(config: FlamingoConfig, corpus: Corpus, cached: bool = False) -> FlamingoBatch:
    """The corpus' batch of documents of random pictures, or of features that were cached."""
    rows, visuals, side = corpus.batch, corpus.batch * corpus.visuals, config.vision.image_size
    ids = torch.arange(rows * corpus.tokens).reshape(rows, corpus.tokens) % 250
    pixels = torch.rand(0 if cached else visuals, corpus.frames, 3, side, side)
    features = torch.rand(visuals, corpus.frames, config.vision.feature_count, config.vision.width).half()
    return FlamingoBatch(
        ids, torch.full_like(ids, corpus.visuals), ids, torch.arange(visuals).reshape(rows, -1), pixels,
        features if cached else None, torch.arange(len(pixels)), ("",) * visuals,
    )


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("corpus", [PAGES, CLIPS], ids=lambda corpus: corpus.name)
@pytest.mark.parametrize("name", CONFIGS)
def test_flops_are_those_that_a_step_is_counted_to_take(name, corpus, cached) -> None:
    config = CONFIGS[name]
    stage = stage_of(config, "fp32")
    with CountedFlops() as counted:
        stage.loss("", batch_of(config, corpus, cached)).total.backward()
    assert document_flops(config, corpus, corpus.batch, cached).total == pytest.approx(counted.total, rel=0.005)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_encoder_is_counted_without_computing_as_it_is_with_pixels(name) -> None:
    vision = CONFIGS[name].vision
    with CountedFlops() as counted, torch.no_grad():
        make_vision_encoder(vision)(torch.rand(1, 3, vision.image_size, vision.image_size))
    assert picture_flops(vision) == counted.total > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_the_state_takes_the_bytes_of_a_run(name) -> None:
    config = CONFIGS[name]
    stage = stage_of(config)
    trained = [parameter for parameter in stage.model.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in stage.model.parameters() if not parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    with autocast(World(), "bf16"):
        loss = stage.loss("", batch_of(config, PAGES)).total
    loss.backward()
    optimizer.step()
    plan = state_bytes(config)
    assert trained_parameters(config) == pytest.approx(sum(each.numel() for each in trained), rel=0.05)
    assert plan.frozen == pytest.approx(sum(each.nbytes for each in frozen), rel=0.05)
    assert plan.weights == pytest.approx(sum(each.nbytes for each in trained), rel=0.05)
    assert plan.gradients == pytest.approx(sum(each.grad.nbytes for each in trained), rel=0.05)
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert plan.moments == pytest.approx(sum(each.nbytes for each in moments), rel=0.05)


def kept_bytes(config: FlamingoConfig, corpus: Corpus, recomputed: bool) -> int:
    """Bytes of all tensors, parameters apart, that a step keeps for its backward pass."""
    stage = stage_of(config)
    if recomputed:
        recompute_activations(stage.shards())
    own = {parameter.untyped_storage().data_ptr() for parameter in stage.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(World(), "bf16"):
        loss = stage.loss("", batch_of(config, corpus))
    assert loss.total.isfinite()
    return sum(storage.nbytes() for storage in kept.values())


WIDE = replace(
    PAPER, cross_attention=replace(PAPER.cross_attention, heads=2, head_width=128, media_width=256),
    language=replace(PAPER.language, width=256, ff_width=1024, heads=2, kv_heads=2, head_width=128, positions="rotary"),
)
LONG = replace(PAGES, batch=4, tokens=128)


@pytest.mark.parametrize("corpus", [LONG, replace(LONG, tokens=32, frames=4)], ids=["text", "frames"])
def test_activations_take_about_the_bytes_that_a_step_keeps(corpus) -> None:
    """On a CPU attention with a mask keeps its scores too, so positions here are rotary, which need none."""
    kept = kept_bytes(WIDE, corpus, False) - copied_bytes(WIDE)
    assert corpus.batch * document_bytes(WIDE, corpus, False) == pytest.approx(kept, rel=0.15)


def test_recomputed_activations_grow_by_the_input_of_a_layer() -> None:
    deep = replace(WIDE, language=replace(WIDE.language, layers=8), cross_attention=replace(
        WIDE.cross_attention, interval=2))  # as many gated layers as before
    kept = kept_bytes(deep, LONG, True) - kept_bytes(WIDE, LONG, True)
    plan = document_bytes(deep, LONG, True) - document_bytes(WIDE, LONG, True)
    assert LONG.batch * plan == pytest.approx(kept, rel=0.05)


def test_the_page_shows_the_tables_that_the_script_prints() -> None:
    page = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    configs = {name: preset(f"flamingo-{name.lower()}") for name in ("3B", "9B", "80B")}
    for table in tables(configs):
        assert table in page


@pytest.mark.parametrize("name", ["scaling_plan", "decode_step_costs"])
def test_a_preset_whose_encoder_is_another_projects_is_one_line(monkeypatch, capsys, name) -> None:
    monkeypatch.setattr("sys.argv", [name, "--preset", "photos"])
    with pytest.raises(SystemExit) as ended:
        import_module(f"benchmarks.{name}").main()
    said = f"{ended.value.code}{capsys.readouterr().err}".strip()
    assert "the vision encoder of the preset photos is another project's graph, which cannot be made" in said
    assert len(said.splitlines()) == 1
