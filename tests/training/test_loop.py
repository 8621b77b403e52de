"""The training loop on a stage that can be worked out by hand: gradients, ends of every kind, and refusals."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_stage import ToyBatches, ToyStage, two_datasets

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.training import state
from flamingo_rt.training.loop import train
from flamingo_rt.training.options import RunOptions
from flamingo_rt.training.run_log import RunLog, log_path, read_log
from flamingo_rt.training.sharding import World
from flamingo_rt.training.stage import Dataset, Loss
from flamingo_rt.training.state import state_path
from flamingo_rt.training.stop_signals import RunStopped, StopSignals

OPTIONS = RunOptions(steps=6, learning_rate=0.05, warmup_steps=2, gradient_clip=1e9, workers=0, save_seconds=1e-9)


def run(out: Path, options: RunOptions = OPTIONS, datasets=None, seed: int = 0, stop: int | None = None,
        shares: dict[str, float] | None = None, **more):
    """The reports of a run; broken off after the report of step ``stop``."""
    seen = []

    def on_step(report) -> None:
        seen.append(report)
        if report.step == stop:
            raise KeyboardInterrupt

    stage = ToyStage(datasets or two_datasets(), seed, shares=shares)
    if stop is None:
        train(stage, options, out, World(), on_step=on_step, **more)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(stage, options, out, World(), on_step=on_step, **more)
    return seen


def weights(out: Path) -> dict:
    return json.loads((out / "weights.json").read_text())


def losses(reports) -> list[dict[str, float]]:
    return [dict(report.losses) for report in reports]


# One step


def test_the_gradient_of_the_mixture_is_the_sum_of_the_weighted_gradients(tmp_path, monkeypatch) -> None:
    taken = {}

    def clip(self, bound) -> float:
        taken.update({name: p.grad.clone() for name, p in self.model.named_parameters() if p.requires_grad})
        return 0.0

    monkeypatch.setattr(ToyStage, "clip", clip)
    run(tmp_path / "out", replace(OPTIONS, steps=1))
    expected = dict.fromkeys(taken, 0.0)
    for dataset in two_datasets():
        alone = ToyStage([dataset])
        inputs, counts = dataset.batches.draw(0, 0, 1).batch
        mean = sum(
            count * alone.model(row[None]).pow(2).sum() for row, count in zip(inputs, counts, strict=True)
        ) / counts.sum()
        mean.backward()
        for name in expected:
            expected[name] = expected[name] + dataset.weight * alone.model.get_parameter(name).grad
    for name, gradient in taken.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_batch_in_parts_gives_the_same_steps(tmp_path, accumulate) -> None:
    whole = run(tmp_path / "whole")
    parts = run(tmp_path / "parts", replace(OPTIONS, accumulate=accumulate))
    for one, other in zip(losses(whole), losses(parts), strict=True):
        assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("shares", [{}, {"trained.weight": 0.5, "gate": 0.1}])
def test_a_step_is_adamw_with_warm_up_written_out(tmp_path, shares) -> None:
    run(tmp_path / "out", replace(OPTIONS, steps=1, weight_decay=0.1), shares=shares)
    stage = ToyStage(two_datasets())
    for dataset in stage.datasets:
        inputs, counts = dataset.batches.draw(0, 0, 1).batch
        (dataset.weight * stage.loss(dataset.name, (inputs, counts)).total / counts.sum()).backward()
    for name, parameter in stage.model.named_parameters():
        if parameter.requires_grad:
            rate = shares.get(name, 1.0) * OPTIONS.learning_rate / 2  # the first of two steps of warm-up
            decay = 0.1 if name == "trained.weight" else 0.0
            step = parameter.grad / (parameter.grad.abs() + 1e-8)  # the first of AdamW: g / (sqrt(g²) + eps)
            expected = parameter * (1 - rate * decay) - rate * step
            torch.testing.assert_close(torch.tensor(weights(tmp_path / "out")[name]), expected.detach())


def test_in_turn_takes_one_dataset_a_step(tmp_path) -> None:
    reports = run(tmp_path / "out", replace(OPTIONS, mixing="round-robin"))
    assert [list(report.losses) for report in reports] == [["one"], ["two"]] * 3


def test_frozen_parameters_have_no_gradient_and_stay_the_same_bits(tmp_path) -> None:
    stage = ToyStage(two_datasets())
    before = {name: value.clone() for name, value in stage.model.frozen.state_dict().items()}
    train(stage, OPTIONS, tmp_path / "out", World())
    assert all(torch.equal(before[name], value) for name, value in stage.model.frozen.state_dict().items())
    assert all(parameter.grad is None for parameter in stage.model.frozen.parameters())


def test_samples_are_taken_in_evaluation_and_change_nothing(tmp_path) -> None:
    plain, sampled = run(tmp_path / "a"), run(tmp_path / "b", replace(OPTIONS, sample_steps=2))
    assert losses(plain) == losses(sampled)
    assert [len(report.samples) for report in sampled] == [0, 1, 0, 1, 0, 1]
    assert all(line == "True in evaluation" for report in sampled for line in report.samples)


# Ends and beginnings


def test_the_same_options_give_the_same_bits(tmp_path) -> None:
    assert losses(run(tmp_path / "a")) == losses(run(tmp_path / "b"))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_run_that_broke_off_goes_on_as_if_it_had_not(tmp_path, stop) -> None:
    whole = run(tmp_path / "whole")
    first = run(tmp_path / "out", stop=stop)
    second = run(tmp_path / "out", resume=True)
    done = stop - 1  # the report comes before the state is saved
    assert [report.step for report in second] == list(range(done + 1, 7))
    assert losses(first)[:done] + losses(second) == losses(whole)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert not state_path(tmp_path / "out").exists()


def test_ctrl_c_while_the_state_is_written_leaves_the_one_before(tmp_path, monkeypatch) -> None:
    out, kept = tmp_path / "out", {}

    def interrupted(*arguments, **named) -> None:
        kept.update({file.name: file.read_bytes() for file in state_path(out).iterdir()})
        os.kill(os.getpid(), signal.SIGINT)

    def on_step(report) -> None:
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(state.dcp, "save", interrupted)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(ToyStage(two_datasets()), OPTIONS, out, World(), on_step=on_step, stop=StopSignals([signal.SIGINT]))
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in state_path(out).iterdir()} == kept
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.training"]
    assert [report.step for report in run(out, resume=True)] == [3, 4, 5, 6]


def test_a_signal_before_the_first_step_ends_the_run_without_one(tmp_path) -> None:
    with pytest.raises(RunStopped) as caught:
        train(ToyStage(two_datasets()), OPTIONS, tmp_path / "out", World(), stop=StopSignals([signal.SIGTERM]),
              on_start=lambda done: os.kill(os.getpid(), signal.SIGTERM))
    assert (caught.value.number, caught.value.step) == (signal.SIGTERM, 0)
    assert not list(tmp_path.iterdir())


def test_how_it_is_computed_may_change_when_a_run_goes_on(tmp_path) -> None:
    run(tmp_path / "out", stop=3)
    run(tmp_path / "out", replace(OPTIONS, workers=1, accumulate=2, sample_steps=3), resume=True)
    assert (tmp_path / "out").exists()


def test_a_run_that_came_to_no_number_goes_on_with_a_lower_rate(tmp_path) -> None:
    said = r"go on from .*out\.training with --resume and a lower learning_rate or gradient_clip, or delete it and"
    with pytest.raises(DataError, match=said):
        run(tmp_path / "out", datasets=two_datasets(nan_at=3))
    lower = replace(OPTIONS, learning_rate=OPTIONS.learning_rate / 2, gradient_clip=0.5, max_damaged=0.5)
    assert [report.step for report in run(tmp_path / "out", lower, resume=True)] == [4, 5, 6]


def test_a_dataset_may_have_the_name_of_an_option_that_may_change(tmp_path) -> None:
    def named(seed: int) -> list[Dataset]:
        return [Dataset("workers", 1.0, ToyBatches("workers", seed))]

    run(tmp_path / "out", stop=3, datasets=[*named(1), *two_datasets()])
    with pytest.raises(UsageError, match="dataset workers: data was 'workers 1', is 'workers 2'"):
        run(tmp_path / "out", resume=True, datasets=[*named(2), *two_datasets()])


def test_where_nothing_was_saved_no_state_is_promised(tmp_path) -> None:
    with pytest.raises(DataError, match=r"nothing was saved yet; start anew with .*, or without these samples$"):
        run(tmp_path / "out", datasets=two_datasets(nan_at=0))


@pytest.mark.parametrize(("change", "named"), [
    ({"options": replace(OPTIONS, seed=1)}, "options.seed was 0, is 1"),
    ({"options": replace(OPTIONS, weight_decay=0.5)}, "options.weight_decay was 0.1, is 0.5"),
    ({"seed": 3}, "toy was 0, is 3"),
    ({"datasets": two_datasets()[:1]}, r"another run: dataset two is missing\. Give .*, or delete .*out\.training"),
    ({"datasets": [*two_datasets(), Dataset("three", 1.0, ToyBatches("three", 3))]}, "dataset three is new"),
    ({"datasets": two_datasets(batch=8)}, "another run: dataset two: batch was 4, is 8"),
    ({"datasets": two_datasets()[::-1]}, "dataset one: number was 0, is 1"),
], ids=["seed", "decay", "model", "a dataset less", "a dataset more", "batch", "order"])
def test_a_run_is_not_resumed_as_another_and_the_difference_is_named(tmp_path, change, named) -> None:
    run(tmp_path / "out", stop=3)
    with pytest.raises(UsageError, match=named):
        run(tmp_path / "out", resume=True, **change)


def test_a_result_that_cannot_be_written_is_not_lost(tmp_path, monkeypatch) -> None:
    """No state was due before the end."""
    rarely = replace(OPTIONS, save_seconds=1e9)

    def failing(*arguments) -> None:
        raise DataError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(ToyStage, "write", failing)
        with pytest.raises(DataError, match="no space left"):
            run(tmp_path / "out", rarely)
    assert run(tmp_path / "out", rarely, resume=True) == []
    run(tmp_path / "whole", rarely)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_an_unfinished_run_is_not_started_anew_unasked(tmp_path) -> None:
    run(tmp_path / "out", stop=3)
    with pytest.raises(UsageError, match="--resume"):
        run(tmp_path / "out")


def test_an_output_that_exists_is_refused_first(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="--overwrite"):
        run(tmp_path / "out")


# Bad data


def test_a_loss_that_is_no_number_names_the_samples_and_keeps_the_last_state(tmp_path) -> None:
    with pytest.raises(DataError, match=r"loss on two became nan at step 4, on two-3-0, two-3-1, two-3-2, two-3-3"):
        run(tmp_path / "out", datasets=two_datasets(nan_at=3))
    stored = json.loads((state_path(tmp_path / "out") / "run.json").read_text())
    assert stored["step"] == 3


def test_a_second_loss_that_is_no_number_names_the_samples_too(tmp_path) -> None:
    class Second(ToyStage):
        def loss(self, dataset, batch) -> Loss:
            return super().loss(dataset, batch)._replace(extra=torch.tensor(float("nan")))

    with pytest.raises(DataError, match=r"loss on one became nan at step 1, on one-0-0"):
        train(Second([Dataset("one", 1.0, ToyBatches("one", 1, batch=4))]), OPTIONS, tmp_path / "out", World())


def test_all_samples_of_a_loss_that_is_no_number_are_reported(tmp_path) -> None:
    seen = []
    datasets = [Dataset("one", 1.0, ToyBatches("one", 1, batch=12, nan_at=1))]
    with pytest.raises(DataError, match=r"one-1-4 and 7 more \(the log names all\): go on from"):
        train(ToyStage(datasets), replace(OPTIONS, accumulate=2), tmp_path / "out", World(), on_step=seen.append)
    assert [report.step for report in seen] == [1, 2]
    assert seen[0].suspects == ()
    assert seen[1].suspects == tuple(f"one-1-{row}" for row in range(12))
    with RunLog(tmp_path / "out") as log:
        for report in seen:
            log.add(report)
    last = list(read_log(log_path(tmp_path / "out")))[-1]
    assert (last["step"], last["loss"], last["suspects"]) == (2, {"one": None}, list(seen[1].suspects))


def fail_at(monkeypatch, step: int, error: Exception) -> None:
    """Let the loss of the second dataset raise an error in this step."""
    calls, loss = [], ToyStage.loss

    def failing(self, dataset, batch):
        calls.append(dataset)
        if calls.count("two") == step:
            raise error
        return loss(self, dataset, batch)

    monkeypatch.setattr(ToyStage, "loss", failing)


def no_memory_on_the_cpu() -> RuntimeError:
    """The error of an allocation that the system refuses."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"), MemoryError(), no_memory_on_the_cpu()],
    ids=["GPU", "numpy", "CPU"],
)
def test_out_of_memory_says_what_to_lower_and_keeps_the_last_state(tmp_path, monkeypatch, error) -> None:
    fail_at(monkeypatch, 3, error)
    with pytest.raises(DataError, match=r"memory ran out at step 3 ") as caught:
        run(tmp_path / "out")
    assert "--resume, set checkpoint_activations or raise accumulate (now 1); to start anew" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    lower = replace(OPTIONS, checkpoint_activations=True, accumulate=2)
    assert [report.step for report in run(tmp_path / "out", lower, resume=True)] == [3, 4, 5, 6]


def test_another_error_of_a_step_stays_what_it_is(tmp_path, monkeypatch) -> None:
    fail_at(monkeypatch, 2, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(tmp_path / "out")


def test_an_error_of_a_worker_is_raised_as_it_is(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="cannot draw two 2"):
        run(tmp_path / "out", datasets=two_datasets(error_at=2))


def test_damaged_samples_are_named_and_counted_and_too_many_end_the_run(tmp_path) -> None:
    options = replace(OPTIONS, max_damaged=0.05)
    seen = []
    said = r"8 of 32 samples drawn are damaged, 8 different ones, .*two-3-3: cut short.*data check"
    with pytest.raises(DataError, match=said):
        train(ToyStage(two_datasets(damaged_from=2)), options, tmp_path / "out", World(), on_step=seen.append)
    assert [report.damaged for report in seen] == [()] * 2 + [
        ("two-2-0: cut short", "two-2-1: cut short", "two-2-2: cut short", "two-2-3: cut short")
    ]


def test_a_full_disk_ends_the_run_and_the_last_state_stays(tmp_path, monkeypatch) -> None:
    run(tmp_path / "out", stop=3)
    before = {file.name: file.read_bytes() for file in state_path(tmp_path / "out").iterdir()}

    def no_room(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state.dcp, "save", no_room)
    with pytest.raises(DataError, match="no space left"):
        run(tmp_path / "out", resume=True)
    assert {file.name: file.read_bytes() for file in state_path(tmp_path / "out").iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.training"]
