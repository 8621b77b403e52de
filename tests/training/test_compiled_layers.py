"""Compiled layers: each layer of a class runs what was compiled for the first, recomputed or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from made_data import captions
from small_model import TEXTS, small_config, small_flamingo

from flamingo_rt.checkpoints import save_checkpoint
from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.options import DataOptions, FlamingoOptions
from flamingo_rt.training.sharding import World, compile_layers, recompute_activations
from flamingo_rt.training.tokenizer_training import train_tokenizer

LAYERS = 12  # of each kind: more than torch compiles forms of one function


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> FlamingoOptions:
    """A model with as many gated layers as language layers."""
    folder, config = tmp_path_factory.mktemp("compiled"), small_config()
    config = replace(config, language=replace(config.language, context=512, layers=LAYERS),
                     cross_attention=replace(config.cross_attention, interval=1))
    tokenizer = train_tokenizer(TEXTS, config.language.vocab_size, config.tokens)
    save_checkpoint(folder / "model", small_flamingo(config), tokenizer.to_str())
    data = DataOptions(str(captions(folder / "pictures", 8)), batch=4)
    return FlamingoOptions(data=(data,), start_from=str(folder / "model"))


@pytest.mark.parametrize("recomputed", [False, True])
def test_all_layers_of_a_class_run_compiled(options, monkeypatch, recomputed) -> None:
    graphs, runs = [], []

    def backend(graph, inputs):
        graphs.append(graph)

        def run(*arguments):
            runs.append(graph)
            return graph(*arguments)

        return run

    stage = open_flamingo_stage(options, World())
    layers = stage.shards()
    batch = stage.datasets[0].batches.draw(0, 0, 1).batch
    expected = stage.loss("pictures", batch).total.item()
    torch._dynamo.reset()
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiled(function, backend=backend))
    compile_layers(layers)
    if recomputed:
        recompute_activations(layers)
    loss = stage.loss("pictures", batch).total
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert len(runs) == len(layers)
    assert len(graphs) < 2 * len({type(layer) for layer in layers})
    loss.backward()
    torch._dynamo.reset()
