"""Stage 3: new tokens that learn as output, and cross-attention that begins higher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import RUN, WHOLE, files, from_checkpoint, run

from flamingo_rt.presets import PRESETS
from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.loop import train
from flamingo_rt.training.sharding import World

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def high(small, tmp_path_factory) -> Path:
    """The checkpoint of a model whose cross-attention begins at layer 2."""
    out = tmp_path_factory.mktemp("high") / "out"
    config = replace(small, cross_attention=replace(small.cross_attention, first=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "high", lambda: config)
        run(out, replace(WHOLE, preset="high"))
    return out


@pytest.mark.parametrize("more", [{}, {"checkpoint_activations": True}, {"precision": "bf16"}], ids=str)
def test_new_tokens_that_learn_as_output_spare_the_layers_below(high, tmp_path, more) -> None:
    often = from_checkpoint(high, run=replace(RUN, save_seconds=1e-9, **more), new_tokens="output")
    stage = open_flamingo_stage(often, World())
    needs: set[tuple[int, bool]] = set()
    for index, layer in enumerate(stage.model.model.language.layers):
        layer.register_forward_hook(
            lambda module, given, output, index=index: needs.add((index, output.requires_grad)))
    train(stage, often.run, tmp_path / "whole", World())
    assert needs == {(0, False), (1, False), (2, True)}
    run(tmp_path / "out", often, stop=3)
    run(tmp_path / "out", often, resume=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    before, after = (load_file(path / "model.safetensors") for path in (high, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed if name.startswith(("language.", "vision."))} == {"language.head.weight"}


def test_activations_below_the_first_gradient_are_not_reckoned(high) -> None:
    found = {}
    for name, changes in (("both", {}), ("output", {"new_tokens": "output"}),
                          ("updates", {"new_tokens": "output", "lora": 2})):
        stage = open_flamingo_stage(from_checkpoint(high, **changes), World())
        batch = stage.datasets[0].batches.draw(0, 0, 1).batch
        found[name] = stage.activation_bytes(batch)
    language = stage.config.language
    assert found["both"] == found["updates"]  # low-rank updates are in every layer
    layer = 4 * batch.input_ids.numel() * (10 * language.width + 3 * language.ff_width)
    assert found["output"] == found["both"] - 2 * layer
    rows, most = len(batch.labels), int((batch.labels[:, 1:] >= 0).sum(1).max())
    all_learnt = stage.activation_bytes(batch._replace(labels=torch.zeros_like(batch.labels)))
    others = rows * (batch.labels.shape[1] - 1 - most)
    assert all_learnt == found["updates"] + others * 12 * language.vocab_size  # three logits in float32
