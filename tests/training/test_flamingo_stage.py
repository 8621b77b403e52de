"""Stage 3: what is trained and what is frozen, ends of every kind, the same run twice."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_model import small_flamingo
from small_runs import RUN, SCENES, WHOLE, files, from_checkpoint, run

from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.model.flamingo import IGNORED_LABEL as NONE
from flamingo_rt.training import flamingo_stage
from flamingo_rt.training.flamingo_stage import frozen_identity, frozen_names, labelled_positions
from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.loop import train
from flamingo_rt.training.options import DataOptions
from flamingo_rt.training.sharding import World
from flamingo_rt.training.state import state_path, trained_parameters

pytestmark = pytest.mark.usefixtures("small")


def test_keys_of_drawn_scenes_reach_their_batches() -> None:
    data = (DataOptions("scenes", batch=2, questions=3, by_place=0.5), DataOptions("scenes", name="others", batch=4))
    first, other = (dataset.batches for dataset in open_flamingo_stage(replace(WHOLE, data=data), World()).datasets)
    assert (first.pictures, first.questions, first.by_place, first.number) == (2, 3, 0.5, 0)
    assert (other.pictures, other.questions, other.by_place, other.number) == (4, 2, 0.0, 1)
    assert [batches.fingerprint()["by_place"] for batches in (first, other)] == [0.5, 0.0]


# The same run twice


def test_the_same_options_give_the_same_checkpoint_to_the_bit(unbroken, tmp_path) -> None:
    seen = run(tmp_path / "out")
    assert files(tmp_path / "out") == files(unbroken)
    assert [report.step for report in seen] == [1, 2, 3, 4]
    assert all(report.tokens > 0 and math.isfinite(report.losses["scenes"]) for report in seen)


def test_another_seed_gives_other_weights() -> None:
    one, other = (
        open_flamingo_stage(replace(WHOLE, run=replace(RUN, seed=seed)), World()).model.state_dict() for seed in (0, 1)
    )
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_broke_off_ends_like_an_unbroken_one(unbroken, tmp_path, workers) -> None:
    often = replace(WHOLE, run=replace(RUN, save_seconds=1e-9, workers=workers))
    run(tmp_path / "out", often, stop=3)
    assert not (tmp_path / "out").exists()
    seen = run(tmp_path / "out", often, resume=True)
    assert [report.step for report in seen] == [3, 4]
    assert files(tmp_path / "out") == files(unbroken)
    assert not state_path(tmp_path / "out").exists()


def test_a_killed_run_ends_like_an_unbroken_one(small, unbroken, tmp_path) -> None:
    out = tmp_path / "out"
    often = replace(WHOLE, run=replace(RUN, save_seconds=1e-9))
    code = textwrap.dedent(f"""
        import time, torch
        from pathlib import Path
        from flamingo_rt.config import FlamingoConfig
        from flamingo_rt.presets import PRESETS
        from flamingo_rt.training import flamingo_start
        from flamingo_rt.training.loop import train
        from flamingo_rt.training.options import *
        from flamingo_rt.training.sharding import World
        torch.set_num_threads({torch.get_num_threads()})
        flamingo_start.TOKENIZER_SCENES = {SCENES}
        PRESETS["small"] = lambda: FlamingoConfig.from_dict({small.to_dict()!r})
        def report(step):
            print(step.step, flush=True)
            if step.step == 3:
                time.sleep(600)
        options = {often!r}
        train(flamingo_start.open_flamingo_stage(options, World()), options.run, Path({str(out)!r}), World(),
              on_step=report)
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert [process.stdout.readline().strip() for _ in range(3)] == ["1", "2", "3"]
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert [report.step for report in run(out, often, resume=True)] == [3, 4]
    assert files(out) == files(unbroken)
    assert list(tmp_path.iterdir()) == [out]


def test_a_run_is_not_resumed_with_another_model(tmp_path) -> None:
    often = replace(WHOLE, run=replace(RUN, save_seconds=1e-9))
    run(tmp_path / "out", often, stop=2)
    with pytest.raises(UsageError, match=r"trained\.unfrozen_rate was 1\.0, is 0\.2"):
        run(tmp_path / "out", replace(often, unfrozen_rate=0.2), resume=True)


def test_a_run_goes_on_that_began_before_some_options_were_there(tmp_path) -> None:
    often = replace(WHOLE, run=replace(RUN, save_seconds=1e-9))
    run(tmp_path / "out", often, stop=2)
    file = tmp_path / "out.training" / "run.json"
    stored = json.loads(file.read_text())
    del stored["identity"]["trained"]["new_tokens"], stored["identity"]["model"]["cross_attention"]["first"]
    for data in stored["identity"]["datasets"].values():
        assert not {"ways", "shots", "names"} & set(data)
    file.write_text(json.dumps(stored))
    run(tmp_path / "out", often, resume=True)


def test_a_run_is_not_resumed_without_its_gates(unbroken, tmp_path) -> None:
    options = from_checkpoint(unbroken, run=replace(RUN, save_seconds=1e-9))
    run(tmp_path / "out", options, stop=2)
    with pytest.raises(UsageError, match=r"trained\.gates was 'tanh', is 'none'"):
        run(tmp_path / "out", replace(options, gates="none"), resume=True)


def test_a_run_is_not_resumed_with_rounded_features_where_it_had_exact_ones(unbroken, tmp_path) -> None:
    often = from_checkpoint(unbroken, run=replace(RUN, save_seconds=1e-9))
    run(tmp_path / "out", often, stop=2)
    with pytest.raises(UsageError, match="cached was False, is True"):
        run(tmp_path / "out", replace(often, cache_features=str(tmp_path / "features")), resume=True)


def test_frozen_weights_in_another_place_are_other_weights() -> None:
    model = small_flamingo()
    before = frozen_identity(model, ())
    assert frozen_identity(small_flamingo(), ()) == before
    weight = model.language.layers[0].attention.query.weight
    weight.data = weight.data.flip(0)  # with the same sum
    assert frozen_identity(model, ()) != before
    assert frozen_identity(model, ("language",)) == frozen_identity(small_flamingo(), ("language",))


def test_an_output_to_be_replaced_is_kept_when_training_fails(small, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    old = json.dumps(replace(small, name="old").to_dict())
    (out / "config.json").write_text(old)
    run(out, stop=3, overwrite=True)
    assert files(out) == {"config.json": old.encode()}
    run(out, overwrite=True)
    assert json.loads(files(out)["config.json"])["name"] == small.name


# From random weights


def test_the_loss_falls(tmp_path) -> None:
    options = replace(WHOLE, run=replace(RUN, steps=30, learning_rate=3e-3))
    losses = [report.losses["scenes"] for report in run(tmp_path / "out", options)]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 1.0  # from about ln 300 = 5.7


def test_every_part_learns(unbroken) -> None:
    before = open_flamingo_stage(WHOLE, World()).model.model
    after = open_checkpoint(unbroken).load()
    for name, parameter in before.named_parameters():
        assert not torch.equal(parameter, after.get_parameter(name)), name


# Frozen parts


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_the_bridge_and_two_rows_change_and_the_rest_stays_the_same_bits(unbroken, tmp_path, precision) -> None:
    options = from_checkpoint(unbroken, run=replace(RUN, precision=precision))
    stage = open_flamingo_stage(options, World())
    train(stage, options.run, tmp_path / "out", World())
    before, after = (load_file(path / "model.safetensors") for path in (unbroken, tmp_path / "out"))
    assert before.keys() == after.keys()
    new = [stage.tokenizer.token_to_id(text) for text in ("<image>", "<|endofchunk|>")]
    for name in before:
        if name in ("language.embedding.weight", "language.head.weight"):
            changed = (before[name] != after[name]).any(1).nonzero().flatten().tolist()
            assert set(changed) <= set(new)
            assert changed
        elif name.startswith(("vision.", "language.")):
            assert torch.equal(before[name], after[name]), name
        else:
            assert not torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("changes", [
    {}, {"lora": 2}, {"unfreeze": ("embedding",)}, {"unfreeze": ("embedding",), "lora": 2}, {"unfreeze": ("language",)},
    {"unfreeze": ("vision", "embedding")},
], ids=str)
def test_all_that_is_trained_is_in_float32_with_bfloat16(unbroken, changes) -> None:
    options = from_checkpoint(unbroken, run=replace(RUN, precision="bf16"), **changes)
    stage = open_flamingo_stage(options, World())
    trained = {name: p.dtype for name, p in stage.model.named_parameters() if p.requires_grad}
    assert set(trained.values()) == {torch.float32}
    whole_table = not {"embedding", "language"}.isdisjoint(options.unfreeze)
    assert ("model.language.embedding.weight" in trained) == whole_table


def test_an_embedding_is_trained_from_its_exact_values_and_resumed_with_bfloat16(unbroken, tmp_path) -> None:
    options = from_checkpoint(unbroken, run=replace(RUN, precision="bf16", save_seconds=1e-9), unfreeze=("embedding",))
    run(tmp_path / "whole", options)
    run(tmp_path / "out", options, stop=3)
    run(tmp_path / "out", options, resume=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    before, after = (load_file(path / "model.safetensors") for path in (unbroken, tmp_path / "out"))
    name = "language.embedding.weight"
    moved = (after[name] - before[name]).abs().max()
    assert 0 < moved < 4 * RUN.learning_rate + 1e-6  # AdamW's steps, and no rounding


def test_with_the_embedding_unfrozen_a_head_of_its_own_learns_the_new_tokens_too(unbroken, tmp_path) -> None:
    options = from_checkpoint(unbroken, unfreeze=("embedding",))
    stage = open_flamingo_stage(options, World())
    train(stage, options.run, tmp_path / "out", World())
    before, after = (load_file(path / "model.safetensors") for path in (unbroken, tmp_path / "out"))
    new = {stage.tokenizer.token_to_id(text) for text in ("<image>", "<|endofchunk|>")}
    changed = {
        part: set((before[name] != after[name]).any(1).nonzero().flatten().tolist())
        for part in ("embedding", "head") for name in [f"language.{part}.weight"]
    }
    assert changed["head"] == new
    assert changed["embedding"] > new


def test_only_what_is_not_written_as_it_was_given_is_gathered(unbroken, tmp_path, monkeypatch) -> None:
    stage = open_flamingo_stage(from_checkpoint(unbroken, lora=2), World())
    gathered: list[int] = []
    monkeypatch.setattr(flamingo_stage, "whole", lambda tensor: gathered.append(tensor.data_ptr()) or tensor)
    stage.write(tmp_path / "out", overwrite=False)
    model = stage.model.model
    kept = frozen_names(model)
    assert len(kept) > 20
    assert gathered == [tensor.data_ptr() for name, tensor in model.state_dict().items() if name not in kept]
    assert list(load_file(tmp_path / "out" / "model.safetensors")) == list(load_file(unbroken / "model.safetensors"))


def test_frozen_parts_have_no_gradients(unbroken) -> None:
    stage = open_flamingo_stage(from_checkpoint(unbroken), World())
    batch = stage.datasets[0].batches.draw(0, 0, 1).batch
    stage.loss("scenes", batch).total.backward()
    graded = {name for name, parameter in stage.model.named_parameters() if parameter.grad is not None}
    assert graded
    assert not any(name.startswith(("model.vision", "model.language")) for name in graded
                   if not name.endswith("new_rows"))
    trained = {name for name, parameter in stage.model.named_parameters() if parameter.requires_grad}
    assert graded == trained


def test_low_rank_updates_change_the_language_model_alone_and_are_merged(unbroken, tmp_path) -> None:
    run(tmp_path / "out", from_checkpoint(unbroken, lora=2))
    before, after = (load_file(path / "model.safetensors") for path in (unbroken, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert not torch.equal(before["language.layers.0.attention.query.weight"],
                           after["language.layers.0.attention.query.weight"])
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("vision."))


def test_decay_acts_on_matrices_outside_the_resampler(unbroken) -> None:
    stage = open_flamingo_stage(from_checkpoint(unbroken), World())
    decayed = {name: stage.updating(name, entry).decayed for name, entry in trained_parameters(stage.model).items()}
    wanted = [name for name in decayed if "cross_attention" in name and name.endswith(("query.weight", "up.weight"))]
    assert wanted
    assert all(decayed[name] for name in wanted)
    for name, decays in decayed.items():
        if "resampler" in name or name.endswith(("gate", "new_rows")) or "norm" in name:
            assert not decays, name


def test_unfrozen_parts_learn_at_their_share_of_the_rate_and_what_is_new_at_all_of_it(unbroken) -> None:
    options = from_checkpoint(unbroken, unfreeze=("vision", "embedding"), unfrozen_rate=0.25)
    stage = open_flamingo_stage(options, World())
    shares = {name: stage.updating(name, entry).rate_share for name, entry in trained_parameters(stage.model).items()}
    assert {name.split(".")[1] for name, share in shares.items() if share == 0.25} == {"vision", "language"}
    for name, share in shares.items():
        old = name.startswith("model.vision.") or (name.startswith("model.language.") and "new_rows" not in name)
        assert share == (0.25 if old else 1.0), name
    assert any("new_rows" in name for name in shares)
    assert any("resampler" in name for name in shares)


def test_decay_does_not_act_on_an_encoders_gains() -> None:
    stage = open_flamingo_stage(WHOLE, World())
    encoder = {name: entry for name, entry in stage.model.named_parameters() if name.startswith("model.vision")}
    decayed = {name for name, entry in encoder.items() if stage.updating(name, entry).decayed}
    gains = {name for name in encoder if "gain" in name}
    assert any(encoder[name].ndim == 4 for name in gains)
    assert not gains & decayed
    assert "model.vision.blocks.0.excite.down.weight" in decayed


def test_one_picture_without_stored_features_is_encoded_as_one_of_several(unbroken, tmp_path) -> None:
    stage = open_flamingo_stage(from_checkpoint(unbroken, cache_features=str(tmp_path / "features")), World())
    batch = stage.datasets[0].batches.draw(0, 0, 1).batch
    seen: list[int] = []
    stage.model.model.vision.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    both = stage.model(batch).new
    cached = both.index_fill(0, torch.tensor([1]), 0.0)
    one = stage.model(batch._replace(cached=cached, missing=torch.tensor([1]), pixel_values=batch.pixel_values[1:]))
    assert seen == [2, 2]
    assert torch.equal(one.new, both[1:])


def test_the_loss_is_that_of_a_naive_loop(unbroken) -> None:
    stage = open_flamingo_stage(from_checkpoint(unbroken), World())
    batch = stage.datasets[0].batches.draw(0, 0, 1).batch
    total, count = 0.0, 0
    model = stage.model.model
    with torch.no_grad():
        for row in range(len(batch.input_ids)):
            shown = batch.rows[row : row + 1]
            logits, _ = model(batch.input_ids[row : row + 1], batch.media_index[row : row + 1], batch.pixel_values,
                              shown)
            for place in range(batch.labels.shape[1] - 1):
                label = int(batch.labels[row, place + 1])
                if label >= 0:
                    total -= float(logits[0, place].double().log_softmax(-1)[label])
                    count += 1
        loss = stage.loss("scenes", batch).total
    assert stage.targets(batch) == count
    assert float(loss) == pytest.approx(total, rel=1e-5)


def test_logits_are_computed_where_the_next_token_is_learnt() -> None:
    labels = torch.tensor([[9, NONE, NONE, 5, 6, NONE, 7], [9, 4, NONE, NONE, NONE, NONE, NONE], [NONE] * 7])
    index, wanted = labelled_positions(labels)
    assert index.tolist() == [[2, 3, 5], [0, 0, 0], [0, 0, 0]]
    assert wanted.tolist() == [[5, 6, 7], [4, NONE, NONE], [NONE] * 3]


def test_a_batch_without_learnt_tokens_has_one_position_that_is_ignored() -> None:
    index, wanted = labelled_positions(torch.full((2, 4), NONE))
    assert index.tolist() == [[0], [0]]
    assert wanted.tolist() == [[NONE], [NONE]]


def test_sample_answers_show_prompt_answer_and_the_right_one(unbroken) -> None:
    stage = open_flamingo_stage(from_checkpoint(unbroken), World())
    stage.model.eval()
    with torch.no_grad():
        lines = list(stage.sample_lines())
    assert 1 <= len(lines) <= 3
    assert all(line.startswith("scenes: ") and " -> " in line and "(right: " in line for line in lines)
    assert all("<" not in line for line in lines)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path) -> None:
    with pytest.raises(DataError, match=r"(nan|inf) at step \d+"):
        run(tmp_path / "out", replace(WHOLE, run=replace(RUN, learning_rate=2e9)))
    assert not (tmp_path / "out").exists()
