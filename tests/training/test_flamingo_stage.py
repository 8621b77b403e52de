"""Stage 3: what is trained and what is frozen, ends of every kind, and where a run starts from."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from small_model import TEXTS, small_config, small_flamingo

from flamingo_rt import model_memory
from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.model.flamingo import IGNORED_LABEL as NONE
from flamingo_rt.parameter_count import reckon_parameters
from flamingo_rt.presets import PRESETS
from flamingo_rt.training import flamingo_stage, flamingo_start
from flamingo_rt.training.flamingo_stage import frozen_identity, frozen_names, labelled_positions
from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.loop import train
from flamingo_rt.training.options import DataOptions, FlamingoOptions, RunOptions
from flamingo_rt.training.sharding import World
from flamingo_rt.training.state import state_path, trained_parameters
from flamingo_rt.training.tokenizer_training import train_tokenizer

SCENES = 20
RUN = RunOptions(steps=4, learning_rate=1.5e-3, warmup_steps=2, weight_decay=0.05, workers=0, save_seconds=1e9)
# From nothing: all parts have random weights and are trained.
WHOLE = FlamingoOptions(
    run=RUN, data=(DataOptions("scenes", batch=2, questions=1),), preset="small", unfreeze=("vision", "language"),
    initial_gate=1.0,
)


@pytest.fixture(scope="module", autouse=True)
def small():
    """A preset that trains in a moment, and a tokenizer from few texts."""
    config = replace(small_config(), language=replace(small_config().language, context=512))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "small", lambda: config)
        patch.setattr(flamingo_start, "TOKENIZER_SCENES", SCENES)
        yield config


def run(out: Path, options: FlamingoOptions = WHOLE, stop: int = 0, **more):
    """The reports of a run; broken off after the report of step ``stop``."""
    seen = []

    def on_step(report) -> None:
        seen.append(report)
        if report.step == stop:
            raise RuntimeError("broken off")

    if not stop:
        train(open_flamingo_stage(options, World()), options.run, out, World(), on_step=on_step, **more)
        return seen
    with pytest.raises(RuntimeError, match="broken off"):
        train(open_flamingo_stage(options, World()), options.run, out, World(), on_step=on_step, **more)
    return seen


def test_keys_of_drawn_scenes_reach_their_batches() -> None:
    data = (DataOptions("scenes", batch=2, questions=3, by_place=0.5), DataOptions("scenes", name="others", batch=4))
    first, other = (dataset.batches for dataset in open_flamingo_stage(replace(WHOLE, data=data), World()).datasets)
    assert (first.pictures, first.questions, first.by_place, first.number) == (2, 3, 0.5, 0)
    assert (other.pictures, other.questions, other.by_place, other.number) == (4, 2, 0.0, 1)
    assert [batches.fingerprint()["by_place"] for batches in (first, other)] == [0.5, 0.0]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def unbroken(small, tmp_path_factory) -> Path:
    """The checkpoint of `WHOLE`."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    run(out)
    return out


def from_checkpoint(path: Path, **changes) -> FlamingoOptions:
    """A fine-tuning run with everything frozen but the bridge."""
    return replace(FlamingoOptions(run=RUN, data=WHOLE.data, start_from=str(path)), **changes)


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


def test_gates_start_where_they_are_asked_to(unbroken) -> None:
    model = open_flamingo_stage(WHOLE, World()).model.model
    gates = [p for name, p in model.named_parameters() if name.endswith(("attention_gate", "ff_gate", "skip_gain"))]
    assert len(gates) >= 6
    assert all(gate.eq(1.0).all() for gate in gates)
    kept = open_flamingo_stage(from_checkpoint(unbroken), World()).model.model.state_dict()
    stored = load_file(unbroken / "model.safetensors")
    assert all(torch.equal(kept[name], stored[name]) for name in stored if name.endswith("gate"))


def test_trained_gates_of_a_checkpoint_are_not_set_again(unbroken) -> None:
    kept = open_flamingo_stage(from_checkpoint(unbroken, initial_gate=0.5), World()).model.model.state_dict()
    stored = load_file(unbroken / "model.safetensors")
    gates = [name for name in stored if name.endswith(("gate", "skip_gain"))]
    assert gates
    assert all(torch.equal(kept[name], stored[name]) for name in gates)


def test_a_new_encoders_gains_are_no_gates() -> None:
    for gate, gain in ((None, 0.0), (0.5, 0.5)):
        stage = open_flamingo_stage(replace(WHOLE, gates="none", initial_gate=gate), World())
        gains = [p for name, p in stage.model.named_parameters() if name.endswith("skip_gain")]
        assert gains
        assert all(p.requires_grad and p.item() == gain for p in gains)


def test_a_new_language_model_takes_the_tokenizer_that_is_given(small, tmp_path, monkeypatch) -> None:
    given = train_tokenizer(TEXTS, 280, small.tokens)
    (tmp_path / "tokenizer.json").write_text(given.to_str())
    options = replace(WHOLE, tokenizer=str(tmp_path / "tokenizer.json"))
    assert open_flamingo_stage(options, World()).tokenizer.get_vocab() == given.get_vocab()
    assert open_flamingo_stage(WHOLE, World()).tokenizer.get_vocab() != given.get_vocab()
    smaller = replace(small, language=replace(small.language, vocab_size=270))
    monkeypatch.setitem(PRESETS, "smaller", lambda: smaller)
    with pytest.raises(DataError, match="has the token id 279, and the preset's language model 270 tokens"):
        open_flamingo_stage(replace(options, preset="smaller"), World())
    plain = train_tokenizer(TEXTS, 280, replace(small.tokens, image="<picture>"))
    (tmp_path / "tokenizer.json").write_text(plain.to_str())
    with pytest.raises(DataError, match=r"tokenizer\.json: the tokenizer has no token '<image>'"):
        open_flamingo_stage(options, World())


def test_an_unknown_preset_is_refused_also_beside_a_checkpoint(unbroken) -> None:
    with pytest.raises(UsageError, match="smal1"):
        open_flamingo_stage(from_checkpoint(unbroken, preset="smal1"), World())


@pytest.mark.parametrize("unfreeze", [(), ("embedding",), ("vision",), ("language", "embedding")])
def test_memory_is_asked_for_weights_and_for_what_is_trained(unbroken, small, monkeypatch, unfreeze) -> None:
    counts = reckon_parameters(small)
    trained = sum(counts[part] for part in ("resampler", "cross_attention", *unfreeze) if part != "embedding")
    if unfreeze == ("embedding",):
        trained += small.language.vocab_size * small.language.width
    needed = 4 * counts["total"] + 12 * trained
    for available, refused in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(model_memory, "available_bytes", lambda available=available: available)
        with pytest.raises(DataError, match="12 bytes more each") if refused else nullcontext():
            open_flamingo_stage(from_checkpoint(unbroken, unfreeze=unfreeze), World())


def test_parts_that_would_be_frozen_with_random_weights_are_refused() -> None:
    with pytest.raises(UsageError, match=r"the language part would be frozen .*--unfreeze language"):
        open_flamingo_stage(replace(WHOLE, unfreeze=("vision",)), World())


def test_without_gates_they_are_open_and_not_trained(unbroken, tmp_path) -> None:
    run(tmp_path / "out", from_checkpoint(unbroken, gates="none"))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    gates = [tensor for name, tensor in stored.items() if name.endswith(("attention_gate", "ff_gate"))]
    assert gates
    assert all(gate.tanh().eq(1).all() for gate in gates)


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


def test_a_checkpoint_with_a_damaged_tokenizer_is_refused(unbroken, tmp_path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name, content in files(unbroken).items():
        (folder / name).write_bytes(b"{}" if name == "tokenizer.json" else content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        open_flamingo_stage(from_checkpoint(folder), World())


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


# New tokens that learn as output, and cross-attention that begins higher


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


# Tasks of a folder of classes


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "animals"
    for number, name in enumerate(("owl", "fox", "newt")):
        (folder / name).mkdir(parents=True)
        for picture in range(4):
            color = (60 * number, 50 * picture, 99)
            PIL.Image.new("RGB", (8, 8), color).save(folder / name / f"{picture}.png")
    return folder


def test_tasks_of_classes_train_with_stored_features_and_go_on(unbroken, classes, tmp_path) -> None:
    data = (DataOptions(str(classes), kind="tasks", batch=2, tokens=500, shots=(1,)),)
    often = from_checkpoint(unbroken, data=data, run=replace(RUN, save_seconds=1e-9, sample_steps=4),
                            cache_features=str(tmp_path / "features"))
    run(tmp_path / "first", often)  # fills the cache
    assert 3 <= len(list((tmp_path / "features").rglob("*.npy"))) <= 12
    run(tmp_path / "whole", often)
    run(tmp_path / "out", often, stop=3)
    with pytest.raises(UsageError, match="names"):
        run(tmp_path / "out", replace(often, data=(replace(data[0], names=0.5),)), resume=True)
    run(tmp_path / "out", often, resume=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_tasks_of_classes_that_do_not_fit_are_refused_before_the_run(unbroken, classes) -> None:
    data = DataOptions(str(classes), kind="tasks", batch=2, tokens=500)
    with pytest.raises(UsageError, match="3 classes of 3 shots and a query are 10 pictures, and the model takes 6"):
        open_flamingo_stage(from_checkpoint(unbroken, data=(data,)), World())


def test_a_new_tokenizer_is_learnt_from_the_texts_of_the_tasks(classes) -> None:
    data = DataOptions(str(classes), kind="tasks", batch=2, tokens=500, shots=(1,), names=0.5)
    stage = open_flamingo_stage(replace(WHOLE, data=(data,)), World())
    text = stage.config.prompts.caption + stage.config.prompts.answer_separator
    assert len(stage.tokenizer.encode(text, add_special_tokens=False).ids) <= 3
