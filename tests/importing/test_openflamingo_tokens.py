"""An imported model answers as the real open_flamingo does: same logits, same greedy tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peer_model import CASES, PeerModel, PeerPrompt

from flamingo_rt.backend import Backend
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.importing.openflamingo import open_openflamingo
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.runtime.decoder import Decoder, Row
from flamingo_rt.runtime.timing import StageTimer
from flamingo_rt.runtime.visual_encoder import encode_visuals

TOLERANCE = 2e-4  # float32; the peer sums in another order
# Exported in every run: intervals 1 and 2, ALiBi and rotary positions, and the encoder with its final norm.
# Every case is compared in PyTorch. The exports of all of them take minutes: `make test-all`.
EXPORTED = ("mpt-interval1-post_norm", "gpt_neox-interval2")


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


def encoded(engine: Backend, config: FlamingoConfig, prompts: Sequence[PeerPrompt], image_id: int) -> list[Row]:
    return [
        Row(p.input_ids, p.media_index(image_id), encode_visuals(engine, list(p.pixels[:, None]), StageTimer()))
        for p in prompts
    ]


def greedy_tokens(engine: Backend, config: FlamingoConfig, rows: list[Row], about: dict) -> np.ndarray:
    """32 tokens for each row of a batch through the cache, [B, 32].

    The peer was kept from choosing ``suppress_tokens`` (its loop cannot go on after an image token).
    """
    count = 32
    decoder = Decoder(engine, config, len(rows), max(len(r.input_ids) for r in rows) + count)
    logits = decoder.prefill(rows)
    tokens = []
    for _ in range(count):
        allowed = logits.copy()
        allowed[:, about["suppress_tokens"]] = -np.inf
        tokens.append(allowed.argmax(axis=1))
        logits = decoder.step(tokens[-1])
    return np.stack(tokens, axis=1)


def engine_logits(engine: Backend, config: FlamingoConfig, rows: list[Row]) -> list[np.ndarray]:
    """Logits [T, vocab] of each row of a batch, from the graph that generates."""
    longest = max(len(row.input_ids) for row in rows)
    decoder = Decoder(engine, config, len(rows), longest)
    logits = decoder._forward(rows, decoder.lengths, [np.arange(longest)] * len(rows), decoder._cache.buffers())
    return [row_logits[: len(row.input_ids)] for row_logits, row in zip(logits, rows, strict=True)]


def assert_the_peers(found: Sequence[np.ndarray], prompts: Sequence[PeerPrompt], known: int) -> None:
    for prompt, logits in zip(prompts, found, strict=True):
        assert np.abs(logits[:, :known] - prompt.logits[:, :known]).max() <= TOLERANCE
        assert (logits[:, known:] < -1e4).all()  # a head without rows for the new tokens cannot choose them


def test_logits_are_the_peers(imported: tuple[PeerModel, Flamingo]) -> None:
    peer, model = imported
    for prompts in peer.batches:
        found = logits_of(model, prompts, peer.about["tokens"]["media"])
        assert_the_peers(found, prompts, peer.about["predictable"])


def test_greedy_tokens_through_the_cache_are_the_peers(imported: tuple[PeerModel, Flamingo]) -> None:
    peer, model = imported
    for prompts in peer.batches:
        engine = TorchBackend(model)
        rows = encoded(engine, model.config, prompts, peer.about["tokens"]["media"])
        tokens = greedy_tokens(engine, model.config, rows, peer.about)
        np.testing.assert_array_equal(tokens, [prompt.greedy for prompt in prompts])


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in EXPORTED else pytest.mark.slow) for n in CASES])
def test_the_exported_bundle_gives_the_peers_logits_and_tokens(name: str, tmp_path: Path) -> None:
    peer = PeerModel(name)
    model = open_openflamingo(peer.write(tmp_path)).model
    bundle = export_model(model, tmp_path / "bundle")
    engine = OrtBackend({graph: bundle.graph_path(graph) for graph in bundle.graphs}, bundle.config)
    for prompts in peer.batches:
        rows = encoded(engine, bundle.config, prompts, peer.about["tokens"]["media"])
        assert_the_peers(engine_logits(engine, bundle.config, rows), prompts, peer.about["predictable"])
        tokens = greedy_tokens(engine, bundle.config, rows, peer.about)
        np.testing.assert_array_equal(tokens, [prompt.greedy for prompt in prompts])
