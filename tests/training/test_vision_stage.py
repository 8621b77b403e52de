"""The vision stage: it learns, clips as it says, divides among ranks, and writes what it can be read from."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch
from made_pairs import NFNET, VIT, add_gradient, added_gradients, meeting, single_objects, vision_stage

from flamingo_rt.errors import DataError, DependencyError, UsageError
from flamingo_rt.training.adaptive_clipping import clip_adaptively
from flamingo_rt.training.dual_encoder import DualEncoder, DualEncoderConfig, Embeddings
from flamingo_rt.training.loop import train
from flamingo_rt.training.options import DataOptions, RunOptions, VisionOptions
from flamingo_rt.training.sharding import World
from flamingo_rt.training.towers import Tower, read_tower
from flamingo_rt.training.vision_stage import VisionStage, open_vision_stage

HERE = Path(__file__).parent
ALONE = World()


@pytest.fixture(scope="module")
def learnt():
    """A stage after 40 steps, with the losses of its steps."""
    stage = vision_stage(ALONE, evaluation=single_objects(64, "heldout", labelled=True))
    optimizer = torch.optim.AdamW(stage.model.parameters(), lr=4e-3)
    losses = []
    stage.model.train()
    for step in range(40):
        losses.append(add_gradient(stage, stage.datasets[0].batches.draw(step, 0, 1).batch, ALONE))
        stage.clip(10.0)
        optimizer.step()
        optimizer.zero_grad()
    return stage, losses


def test_the_loss_falls_and_classes_are_found_far_above_chance(learnt) -> None:
    stage, losses = learnt
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    scores = stage.measure()
    assert scores.classes == 8
    assert scores.zero_shot > 3 / 8
    assert scores.linear_probe > 3 / 8
    assert stage.scalars() == {"temperature": pytest.approx(0.07, abs=0.05), **scores.scalars()}
    assert list(stage.scalars()) == ["temperature"]
    assert list(stage.sample_lines()) == [str(scores), *scores.examples]


def test_too_little_memory_is_not_answered_with_parts_of_a_batch_which_this_stage_refuses(
    tmp_path, monkeypatch
) -> None:
    def fail(*arguments) -> None:
        raise torch.OutOfMemoryError("none left")

    stage = vision_stage(ALONE)
    monkeypatch.setattr(stage, "loss", fail)
    with pytest.raises(DataError, match="memory ran out") as caught:
        train(stage, RunOptions(workers=0), tmp_path / "out", ALONE)
    assert "checkpoint_activations" in str(caught.value)
    assert "accumulate" not in str(caught.value)


def test_two_ranks_give_the_gradient_of_one_process_clipped_or_not(tmp_path) -> None:
    """This process is the first rank, and then alone."""
    batches, parts = ([stage_batches(vision_stage(ALONE), part, parts) for part in range(parts)] for parts in (1, 2))
    torch.save([tuple(batch) for batch in parts[1]], tmp_path / "batches.pt")
    other = subprocess.Popen(
        [sys.executable, str(HERE / "second_rank.py"), str(tmp_path)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
    )
    try:
        with meeting(tmp_path, 0) as world:
            together = added_gradients(vision_stage(world, captioning=0.5), parts[0], world, 0.5)
    finally:
        _, errors = other.communicate(timeout=60)
        assert other.returncode == 0, errors[-3000:]
    alone = added_gradients(vision_stage(ALONE, captioning=0.5), batches[0], ALONE, 0.5)
    assert alone.norm > 0.5
    assert together.losses == pytest.approx(alone.losses, rel=1e-6)
    assert together.norm == pytest.approx(alone.norm, rel=1e-5)
    torch.testing.assert_close(together.before, alone.before, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.after, alone.after, rtol=1e-5, atol=1e-6)
    theirs = torch.load(tmp_path / "second.pt")
    torch.testing.assert_close(theirs, together.after, rtol=0, atol=0)


def stage_batches(stage, part: int = 0, parts: int = 1):
    """A part of two batches; the second is another dataset's, or another part, in a run: gradients are added up."""
    return [stage.datasets[0].batches.draw(step, part, parts).batch for step in range(2)]


def test_an_nfnet_is_clipped_adaptively_and_the_rest_by_its_norm() -> None:
    stage = vision_stage(ALONE)
    add_gradient(stage, stage_batches(stage)[0], ALONE)
    parameters = dict(stage.model.named_parameters())
    before = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    rest = torch.cat([grad.flatten() for name, grad in before.items() if not name.startswith("vision.")]).norm()
    whole = torch.cat([grad.flatten() for grad in before.values()]).norm()
    assert stage.clip(float(rest) / 4) == pytest.approx(float(whole), rel=1e-5)
    for name, parameter in parameters.items():
        if name.startswith("vision."):
            expected = torch.nn.Parameter(parameter.detach().clone())
            expected.grad = before[name].clone()
            clip_adaptively([expected], 0.01)
            assert torch.equal(parameter.grad, expected.grad)
        else:
            torch.testing.assert_close(parameter.grad, before[name] / 4, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("vision", "agc"), [(NFNET, 0.0), (VIT, 0.01)], ids=["NFNet without AGC", "ViT"])
def test_one_norm_bounds_all_gradients_of_a_vit_or_without_adaptive_clipping(vision, agc) -> None:
    stage = vision_stage(ALONE, vision=vision, agc=agc)
    add_gradient(stage, stage_batches(stage)[0], ALONE)
    norm = stage.clip(0.01)
    grads = torch.cat([entry.grad.flatten() for entry in stage.model.parameters() if entry.grad is not None])
    assert norm > 0.01
    assert grads.norm().item() == pytest.approx(0.01, rel=1e-4)


def test_weight_decay_acts_on_kernels_and_matrices_alone() -> None:
    stage = vision_stage(ALONE)
    for name, parameter in stage.model.named_parameters():
        kept = name.endswith(("gain", "bias", "norm.weight", "temperature"))
        assert stage.updating(name, parameter) == (not kept, 1.0), name


def embedded_again(stage: VisionStage, tower: Tower) -> tuple[Embeddings, Embeddings]:
    """A batch as the model of a tower embeds it, and as the stage's does."""
    again = DualEncoder(DualEncoderConfig.from_dict(tower.config)).eval()
    again.load_state_dict({name: tensor.read() for name, tensor in tower.tensors.items()})
    batch = stage.datasets[0].batches.draw(0, 0, 1).batch
    stage.model.eval()
    with torch.no_grad():
        return again(*batch[:3]), stage.model(*batch[:3])


def test_the_tower_that_is_written_gives_the_same_embeddings(learnt, tmp_path) -> None:
    stage, _ = learnt
    stage.write(tmp_path / "vision", False)
    tower = read_tower(tmp_path / "vision", "vision")
    found, expected = embedded_again(stage, tower)
    for name in ("images", "texts", "features", "inverse_temperature"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert tower.vision == stage.model.config.vision
    assert tower.tokenizer is not None
    with pytest.raises(UsageError, match="already exists"):
        stage.write(tmp_path / "vision", False)
    stage.write(tmp_path / "vision", True)


def test_a_captioner_learns_to_write_the_texts_and_is_kept_with_the_tower(tmp_path) -> None:
    stage = vision_stage(ALONE, captioning=1.0)
    written = []
    options = RunOptions(steps=40, learning_rate=4e-3, workers=0)
    train(stage, options, tmp_path / "vision", ALONE, on_step=lambda report: written.append(report.scalars))
    losses = [scalars["captioning"] for scalars in written]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    found, expected = embedded_again(stage, read_tower(tmp_path / "vision", "vision"))
    assert torch.equal(found.captioning, expected.captioning)


def test_the_captioners_loss_is_reported_over_all_datasets_once() -> None:
    stage = vision_stage(ALONE, captioning=0.5)
    losses = [float(stage.loss("made", batch).extra.detach()) / 0.5 for batch in stage_batches(stage)]
    assert stage.scalars()["captioning"] == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert "captioning" not in stage.scalars()


def test_an_unfinished_run_from_before_there_were_captioners_goes_on() -> None:
    """Its state has no key of theirs."""
    stage, other = vision_stage(ALONE), vision_stage(ALONE, captioning=0.5)
    assert "captioner_layers" not in stage.identity()["model"]
    assert "captioning" not in stage.identity()["trained"]
    assert other.identity()["model"]["captioner_layers"] == 2
    assert DualEncoderConfig.from_dict(stage.model.config.to_dict()) == stage.model.config


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"checkpoint_activations": True}])
def test_captions_are_learnt_in_half_precision_and_with_recomputed_activations(tmp_path, options) -> None:
    losses = []
    for more in ({}, options):
        stage, run = vision_stage(ALONE, batch=8, captioning=1.0), RunOptions(steps=2, workers=0, **more)
        train(stage, run, tmp_path / str(more), ALONE,
              on_step=lambda report: losses.append(report.scalars["captioning"]))
    assert losses[2:] == pytest.approx(losses[:2], rel=0.02 if "precision" in options else 1e-5)


def test_without_captioning_there_is_no_captioner() -> None:
    stage = vision_stage(ALONE)
    assert stage.model.captioner is None
    assert stage.loss("made", stage_batches(stage)[0]).extra is None


def test_in_half_precision_with_recomputed_activations_the_loss_is_nearly_the_same(tmp_path) -> None:
    losses = []
    for precision, again in (("fp32", False), ("bf16", True)):
        options = RunOptions(steps=2, workers=0, precision=precision, checkpoint_activations=again)
        train(vision_stage(ALONE, batch=8), options, tmp_path / precision, ALONE,
              on_step=lambda report: losses.append(report.losses["made"]))
    assert losses[2:] == pytest.approx(losses[:2], rel=0.02)
    assert losses[2:] != losses[:2]


def test_a_run_measures_at_its_end_and_keeps_the_scores(tmp_path) -> None:
    stage = vision_stage(ALONE, batch=8, evaluation=single_objects(64, "heldout", labelled=True)[:16])
    reports = []
    train(stage, RunOptions(steps=3, workers=0, sample_steps=2), tmp_path / "vision", ALONE, on_step=reports.append)
    measured = [any(name.startswith("evaluation.") for name in report.scalars) for report in reports]
    assert measured == [bool(report.samples) for report in reports] == [False, True, True]
    assert reports[2].samples[0] == str(stage.scores)
    assert read_tower(tmp_path / "vision", "vision").config["scores"] == stage.scores.scalars()


def test_the_scores_that_are_written_are_those_of_the_runs_precision(tmp_path) -> None:
    """The last ones that were shown, or measured at the end, where none were asked for before."""
    written = []
    for name, sample_steps in (("shown", 2), ("last", 0)):
        options = RunOptions(steps=2, workers=0, sample_steps=sample_steps, precision="bf16")
        held_out = single_objects(64, "heldout", labelled=True)
        stage = vision_stage(ALONE, batch=8, evaluation=held_out, run=options)
        measured = []
        stage.model.text_projection.register_forward_hook(lambda *call, into=measured: into.append(call[2].dtype))
        train(stage, options, tmp_path / name, ALONE)
        assert set(measured[-2:]) == {torch.bfloat16}, name
        written.append(read_tower(tmp_path / name, "vision").config["scores"])
    assert written[0] == written[1]


def picture_folder(folder: Path) -> Path:
    """An ImageFolder tree of two classes."""
    for color in ("red", "dark_blue"):
        (folder / color).mkdir(parents=True)
        for number in range(4):
            PIL.Image.new("RGB", (20, 30), color.replace("_", "")).save(folder / color / f"{number}.png")
    return folder


def test_a_stage_is_opened_from_options(tmp_path) -> None:
    folder = str(picture_folder(tmp_path / "pictures"))
    options = VisionOptions(data=(DataOptions(folder, batch=4), DataOptions("scenes", batch=4)), vocab_size=300,
                            evaluation=folder, text_tokens=8)
    stage = open_vision_stage(options, ALONE)
    assert [data.name for data in stage.datasets] == ["pictures", "scenes"]
    for data in stage.datasets:
        drawn = data.batches.draw(0, 0, 1)
        assert drawn.error is None
        assert stage.targets(drawn.batch) == stage.tokens(drawn.batch) == 4
        assert torch.isfinite(stage.loss(data.name, drawn.batch).total)
    assert stage.measure().classes == 2
    stage.write(tmp_path / "vision", False)

    given = replace(options, tokenizer=str(tmp_path / "vision"), vocab_size=5000, evaluation=None)
    again = open_vision_stage(given, ALONE)
    assert again.identity() == stage.identity()
    assert list(again.sample_lines()) == []
    assert again.identity() != open_vision_stage(replace(given, embedding=64), ALONE).identity()


def test_an_evaluation_that_cannot_be_measured_is_refused_before_the_first_step(tmp_path, monkeypatch) -> None:
    folder = picture_folder(tmp_path / "pictures")
    options = VisionOptions(data=(DataOptions("scenes", batch=4),), vocab_size=300, evaluation=str(folder))
    (folder / "dark_blue" / "0.png").write_bytes(b"torn")  # one that is damaged is left out
    open_vision_stage(options, ALONE)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "sklearn", None)
        with pytest.raises(DependencyError, match="needs scikit-learn"):
            open_vision_stage(options, ALONE)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"torn")
    with pytest.raises(DataError, match="none of the 8 pictures of the evaluation could be read"):
        open_vision_stage(options, ALONE)


@pytest.mark.parametrize(("options", "reason"), [
    (VisionOptions(), "needs data"),
    (VisionOptions(run=RunOptions(accumulate=4), data=(DataOptions("scenes"),)),
     "accumulate is 4, and a contrastive loss compares each picture with every text"),
    (VisionOptions(data=(DataOptions("scenes", batch=1),)), "batch is 1; a text must be told apart"),
    (VisionOptions(data=(DataOptions("scenes"), DataOptions("scenes"))), "two datasets are called 'scenes'"),
], ids=["no data", "accumulate", "batch of one", "same names"])
def test_options_that_contrast_cannot_have_are_refused(options, reason) -> None:
    with pytest.raises(UsageError, match=reason):
        open_vision_stage(options, ALONE)


def test_a_text_encoder_beyond_the_memory_is_refused_before_it_is_made() -> None:
    options = VisionOptions(data=(DataOptions("scenes"),), vocab_size=300, text_tokens=1 << 24, text_width=1 << 16)
    with pytest.raises(DataError, match="training the vision encoder of tiny and its text encoder needs at least"):
        open_vision_stage(options, ALONE)


def test_a_source_of_texts_is_refused(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("no pictures here")
    with pytest.raises(UsageError, match=r"a\.txt holds text: train vision takes pictures"):
        open_vision_stage(VisionOptions(data=(DataOptions(str(tmp_path / "a.txt")),)), ALONE)
