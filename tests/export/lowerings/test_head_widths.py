"""Heads of any width: where the cache's heads are wider than the model's, answers are PyTorch's all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from language_kinds import LANGUAGES
from small_model import TEXTS, small_config, small_flamingo

import flamingo_rt
from flamingo_rt import Image
from flamingo_rt.bench.ceilings import cache_bytes
from flamingo_rt.bundle import Bundle
from flamingo_rt.checkpoints import open_checkpoint, save_checkpoint
from flamingo_rt.config import FlamingoConfig, TokensConfig, ViTConfig
from flamingo_rt.contract import APPENDED, LANGUAGE_MODEL, graph_specs, layer_parts, past_name
from flamingo_rt.export.graph_modules import LanguageModelGraph
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.export.quantization.calibration import Calibration, CalibrationPrompt
from flamingo_rt.export.quantization.quantization_options import Quantize
from flamingo_rt.export.tracing import LOWERINGS
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.runtime.activation_memory import prefill_bytes
from flamingo_rt.runtime.batch_memory import needed_bytes
from flamingo_rt.training.tokenizer_training import train_tokenizer

TOLERANCE = 2e-5  # float32 logits up to 5


def config_with(head_width: int, **language: object) -> FlamingoConfig:
    """Every kind of head has an unusual width: 20 / 3 of the encoder, 7 of the resampler, 5 of cross-attention."""
    config = small_config()
    return replace(
        config, vision=ViTConfig(image_size=28, patch_size=14, width=60, layers=1, heads=3, ff_width=48),
        resampler=replace(config.resampler, head_width=7),
        cross_attention=replace(config.cross_attention, head_width=5),
        language=replace(config.language, layers=2, head_width=head_width, **language),
    )


@pytest.mark.parametrize("head_width", [4, 20, 100])
@pytest.mark.parametrize("kind", LANGUAGES)
def test_padded_heads_attend_as_the_models_own(kind: str, head_width: int) -> None:
    """The graph of ``tensorrt-classic``, whose operators PyTorch can run: a prefill, then tokens behind a cache."""
    config = config_with(head_width, **LANGUAGES[kind])
    model = small_flamingo(config)
    ids = torch.randint(config.language.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    index = torch.zeros_like(ids)
    media = [torch.randn(2, 2, 5, 5) for _ in range(2 * len(config.cross_layers))]
    with torch.no_grad():
        positions = torch.arange(9).expand_as(ids)
        expected = model.decode(ids, positions, index, media[::2], media[1::2])
        found = torch.cat(list(logits_of_pieces(model, ids, index, media, (6, 1, 2))), dim=1)
    assert (found - expected).abs().max() <= TOLERANCE


def logits_of_pieces(model: Flamingo, ids: torch.Tensor, index: torch.Tensor, media: list, pieces: tuple[int, ...]):
    """Run the graph on some tokens at a time; its cache has the contract's shape."""
    spec = graph_specs(model.config, cache=APPENDED)[LANGUAGE_MODEL]
    names = [past_name(*part) for part in layer_parts(model.config.language.layers)]
    past = [torch.zeros(spec.input(name).resolve({"B": 2, "C": 1})) for name in names]
    graph, start = LanguageModelGraph(model, LOWERINGS["tensorrt-classic"]), 0
    for tokens in pieces:
        part, wanted = slice(start, start + tokens), torch.arange(tokens).expand(2, -1)
        length = torch.full((2,), start)
        logits, _, _, *present = graph(ids[:, part], length, index[:, part], wanted, media, past)
        past = [new if start == 0 else torch.cat([old, new]) for old, new in zip(past, present, strict=True)]
        start += tokens
        yield logits


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Bundle]]:
    """A checkpoint and its bundle."""

    def exported(config: FlamingoConfig, **options: object) -> tuple[Path, Bundle]:
        folder = tmp_path_factory.mktemp("heads")
        tokenizer = train_tokenizer(TEXTS, config.language.vocab_size, TokensConfig())
        save_checkpoint(folder / "checkpoint", small_flamingo(config), tokenizer.to_str())
        return folder / "checkpoint", export_model(open_checkpoint(folder / "checkpoint"), folder / "bundle", **options)

    return exported


def test_a_bundle_with_padded_heads_answers_as_its_checkpoint(export, tmp_path: Path) -> None:
    """Prefill, a kept prompt from a file, several rows, beams and guesses: all over caches of the padded width."""
    config = small_config()  # the suite traces its other graphs anyway
    checkpoint, bundle = export(replace(config, language=replace(config.language, head_width=20)))
    assert all(0 < value < TOLERANCE for value in bundle.parity.values())
    spec = graph_specs(bundle.config)[LANGUAGE_MODEL].input(past_name(0, "key"))
    assert (bundle.config.language.head_width, spec.shape) == (20, ("B", 2, "C", 24))
    picture = Image(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    answers = {}
    for name, path in (("torch", checkpoint), ("ort", bundle.path)):
        model = flamingo_rt.load(path, backend=name)
        shots = model.prompt([picture, "Output: a red circle<|endofchunk|>"])
        if name == "ort":  # a bundle's can be kept
            shots.save(tmp_path / "shots.prompt")
            shots = model.load_prompt(tmp_path / "shots.prompt")
        rows = [[picture, "Output:"], "Question: how many stars are there? Answer:"]
        answers[name] = (
            list(model.generate([picture, "Output:"], prefix=shots, max_new_tokens=12)),
            [each.text for each in model.generate_batch(rows, max_new_tokens=12)],
            list(model.generate([picture, "Output:"], beams=3, max_new_tokens=8)),
        )
    assert answers["ort"] == answers["torch"]


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["ort", "tensorrt", "tensorrt-classic"])
@pytest.mark.parametrize("head_width", [20, 100])
@pytest.mark.parametrize("kind", LANGUAGES)
def test_every_position_scheme_and_lowering_equals_pytorch(export, kind: str, head_width: int, lowering: str) -> None:
    _, bundle = export(config_with(head_width, **LANGUAGES[kind]), lowering=lowering)
    assert all(0 < value < TOLERANCE for value in bundle.parity.values())


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_weights_of_fewer_bits_go_with_padded_heads(export, scheme: str) -> None:
    picture = Image(np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8))
    prompts = [CalibrationPrompt([picture, text], text) for text in TEXTS]
    options = Quantize(scheme, calibration=Calibration(prompts[1:], prompts[:1], "of texts"), max_changed=0.4)
    _, bundle = export(config_with(20), quantize=options)
    assert bundle.quantization is not None


def test_memory_is_reckoned_with_the_width_of_the_cache() -> None:
    for config in (config_with(20), config_with(24)):
        assert cache_bytes(config, 10) == 10 * 2 * 2 * 2 * 24 * 4  # tokens, layers, parts, heads, numbers, bytes
    narrow, wide = (needed_bytes(graph_specs(config_with(width)), 3, 50, 1) for width in (20, 24))
    assert narrow == wide
    narrow, wide = (prefill_bytes(config_with(width), 3, 50, 50) for width in (20, 24))
    assert narrow == wide > prefill_bytes(config_with(16), 3, 50, 50)
