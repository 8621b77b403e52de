"""An imported model answers as the real open_flamingo does: same logits, same greedy tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peer_model import CASES, PeerModel, PeerPrompt

from flamingo_rt.contract import graph_specs
from flamingo_rt.engines.ort import OrtEngine
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.importing.openflamingo import open_openflamingo
from flamingo_rt.model.engine import TorchEngine
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.runtime.decoder import Decoder, Row
from flamingo_rt.runtime.engine import Engine
from flamingo_rt.runtime.media import encode_visuals
from flamingo_rt.runtime.timing import StageTimer

TOLERANCE = 2e-4  # float32; the peer sums in another order
# One of each family, intervals 1, 2 and 4, and the encoder with its final norm: exporting all would take minutes.
EXPORTED = ("mpt-interval1-post_norm", "mosaic_gpt-interval1", "gpt_neox-interval2", "llama-interval4", "opt-interval2")


@pytest.fixture(scope="module", params=CASES)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PeerModel, Flamingo]:
    peer = PeerModel(request.param)
    files = peer.write(tmp_path_factory.mktemp(request.param))
    return peer, open_openflamingo(files).model.load()


def logits_of(model: Flamingo, prompts: Sequence[PeerPrompt], image_id: int) -> list[np.ndarray]:
    """The stateless model's logits [T, vocab] for each row of a right-padded batch."""
    length, slots = max(len(p.input_ids) for p in prompts), max(len(p.pixels) for p in prompts)
    input_ids, media_index = (np.zeros((len(prompts), length), dtype=np.int64) for _ in range(2))
    rows, start = np.zeros((len(prompts), slots), dtype=np.int64), 0
    for row, prompt in enumerate(prompts):
        input_ids[row, : len(prompt.input_ids)] = prompt.input_ids
        media_index[row, : len(prompt.input_ids)] = prompt.media_index(image_id)
        rows[row, : len(prompt.pixels)] = np.arange(start, start + len(prompt.pixels))
        start += len(prompt.pixels)
    pixels = torch.from_numpy(np.concatenate([p.pixels for p in prompts]))[:, None]
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(input_ids), torch.from_numpy(media_index), pixels, torch.from_numpy(rows))
    return [logits[row, : len(prompt.input_ids)].numpy() for row, prompt in enumerate(prompts)]


def greedy_tokens(
    engine: Engine, config, prompts: Sequence[PeerPrompt], about: dict
) -> tuple[np.ndarray, np.ndarray]:
    """32 tokens for each row of a batch through the cache, [B, 32], and the logits after the prompts [B, vocab].

    The peer was kept from choosing ``suppress_tokens`` (its loop cannot go on after an image token).
    """
    specs, image_id, count = graph_specs(config), about["tokens"]["media"], 32
    rows = [
        Row(p.input_ids, p.media_index(image_id), encode_visuals(engine, specs, list(p.pixels[:, None]), StageTimer()))
        for p in prompts
    ]
    decoder = Decoder(engine, config, specs, len(rows), max(len(p.input_ids) for p in prompts) + count)
    first = logits = decoder.prefill(rows).copy()
    tokens = []
    for _ in range(count):
        allowed = logits.copy()
        allowed[:, about["suppress_tokens"]] = -np.inf
        tokens.append(allowed.argmax(axis=1))
        logits = decoder.step(tokens[-1])
    return np.stack(tokens, axis=1), first


def test_logits_are_the_peers(imported: tuple[PeerModel, Flamingo]) -> None:
    peer, model = imported
    known = peer.about["predictable"]
    for prompts in peer.batches:
        for prompt, found in zip(prompts, logits_of(model, prompts, peer.about["tokens"]["media"]), strict=True):
            assert np.abs(found[:, :known] - prompt.logits[:, :known]).max() <= TOLERANCE
            assert (found[:, known:] < -1e4).all()  # a head without rows for the new tokens cannot choose them


def test_greedy_tokens_through_the_cache_are_the_peers(imported: tuple[PeerModel, Flamingo]) -> None:
    peer, model = imported
    for prompts in peer.batches:
        tokens, _ = greedy_tokens(TorchEngine(model), model.config, prompts, peer.about)
        np.testing.assert_array_equal(tokens, [prompt.greedy for prompt in prompts])


@pytest.mark.parametrize("name", EXPORTED)
def test_the_exported_bundle_gives_the_peers_logits_and_tokens(name: str, tmp_path: Path) -> None:
    peer = PeerModel(name)
    model = open_openflamingo(peer.write(tmp_path)).model
    bundle = export_model(model, tmp_path / "bundle")
    engine = OrtEngine({graph: bundle.graph_path(graph) for graph in bundle.graphs}, bundle.config)
    known = peer.about["predictable"]
    for prompts in peer.batches:
        tokens, logits = greedy_tokens(engine, bundle.config, prompts, peer.about)
        np.testing.assert_array_equal(tokens, [prompt.greedy for prompt in prompts])
        expected = np.stack([prompt.logits[-1, :known] for prompt in prompts])
        assert np.abs(logits[:, :known] - expected).max() <= TOLERANCE
