"""The training loop, for every stage.

One step (§4): the gradient of each dataset, times its λ, is added up over all datasets, then AdamW takes one step. A
batch may come in parts, one after the other or one for each rank: each part's sum of losses is divided by the number of
targets of the whole batch, so that the gradient is that of the batch, however it is divided.

A step is a function of (state, seed, step): batches are, and random numbers are seeded with the step. So a run that was
killed goes on as if it had not been.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flamingo_rt.errors import DataError, FlamingoError, UsageError
from flamingo_rt.files import check_output
from flamingo_rt.training.damaged_samples import count_damaged
from flamingo_rt.training.data.loader import drawn
from flamingo_rt.training.flops import StepFlops, matrix_rate, shapes, utilisation
from flamingo_rt.training.memory import require_step_memory
from flamingo_rt.training.options import RunOptions
from flamingo_rt.training.run_log import StepReport
from flamingo_rt.training.sharding import World, autocast, compile_layers, recompute_activations, shard
from flamingo_rt.training.shortage import shortage_explained, writing_explained
from flamingo_rt.training.stage import Dataset, Drawn, Stage, Updating
from flamingo_rt.training.state import (
    RunPosition,
    folder_number,
    has_state,
    is_written,
    load_state,
    read_position,
    remove_state,
    save_state,
    state_path,
    trained_parameters,
)
from flamingo_rt.training.stop_signals import RunStopped, StopSignals


def train(
    stage: Stage, options: RunOptions, out: Path, world: World, *, resume: bool = False, overwrite: bool = False,
    on_start: Callable[[int], None] = lambda done: None, on_step: Callable[[StepReport], None] = lambda report: None,
    on_written: Callable[[], None] = lambda: None, stop: StopSignals | None = None,
) -> bool:
    """Train ``stage`` and write its result to ``out``; every rank calls this. ``on_start`` is told how many steps the
    state holds that the run goes on from; ``on_written`` is called in the first rank when the result is in its place.
    ``stop``: signals after which the run saves its state and ends; by default none.

    Gives whether there was anything to do: a run that was killed after it had written ``out`` only lost the time to
    remove its state.

    Raises `UsageError` when ``out`` exists, or an unfinished run is there and ``resume`` is not asked for; `DataError`
    for a loss that is no number, for too many damaged samples, and for a state that cannot be gone on with;
    `RunStopped` after such a signal.
    """
    world.from_first(lambda: check_run(out, resume, overwrite))
    state, same = state_path(out), _identity(stage, options)
    if world.from_first(lambda: is_written(out)):
        world.from_first(lambda: _remove_finished(state, same, on_written))
        return False
    run = _Run(stage, options, world, state, on_step if world.is_first else lambda report: None)
    # One rank that ended at a signal while others heed it would leave them waiting: all heed it before they first meet.
    with stop or StopSignals() as asked:
        if world.from_first(lambda: has_state(state)):
            run.at = load_state(state, stage.model, run.optimizer, same, world)
        run.at.replaced = world.from_first(lambda: folder_number(out))
        if world.is_first:
            on_start(run.at.step)
        _take_steps(run, same, asked)
    with writing_explained(state):
        stage.write(out, overwrite)
    world.from_first(on_written)
    world.from_first(lambda: remove_state(state))
    return True


def _remove_finished(state: Path, same: Mapping[str, Any], on_written: Callable[[], None]) -> None:
    read_position(state, same)  # raises where it is of another run
    on_written()
    remove_state(state)


def _take_steps(run: _Run, same: Mapping[str, Any], asked: StopSignals) -> None:
    """Take all steps that are left, and save the state now and then, after the last one, and when a signal came."""
    stage, options, world = run.stage, run.options, run.world
    stage.model.train()
    batches = drawn(stage.datasets, run.at.step, options.steps, run.parts, world.size * options.accumulate,
                    options.workers, options.mixing == "round-robin")
    saved = time.monotonic()
    _, stopped = _agreed(world, False, asked.number)
    while not stopped and run.at.step < options.steps:
        with shortage_explained(options, run.at.step + 1, stage.division):
            report = run.step(batches)
            if options.sample_steps and (run.at.step % options.sample_steps == 0 or run.at.step == options.steps):
                samples = run.sample()
                report = replace(report, samples=samples, scalars={**report.scalars, **stage.scalars()})
        run.on_step(report)
        due, stopped = _agreed(world, time.monotonic() - saved > options.save_seconds, asked.number)
        # The last step's state is saved too: writing the result may fail.
        last = run.at.step == options.steps
        if due or stopped or last:
            failed = _save(run, same)
            if failed is not None and not last:
                raise failed
            if failed is not None:  # the result may be smaller than the state, and is all that is left of the run
                stopped = 0
                if world.is_first:
                    logging.getLogger(__name__).warning(f"the last state was not saved ({failed}); the result is "
                                                        "written all the same")
            saved = time.monotonic()
    if stopped:
        raise RunStopped(stopped, run.at.step, run.state)


def _save(run: _Run, same: Mapping[str, Any]) -> FlamingoError | None:
    """Save the state. Gives the error of a rank that could not, to all of them, so that they go on together."""
    failed = None
    try:
        save_state(run.state, run.stage.model, run.optimizer, run.at, same, run.world)
    except FlamingoError as error:
        failed = error
    return next((error for error in run.world.gathered(failed) if error is not None), None)


def _agreed(world: World, due: bool, number: int) -> tuple[bool, int]:
    """Whether a state is due in any rank, and a signal that any rank was sent, 0 for none: the same in all of them."""
    everyone = world.gathered((due, number))
    return any(due for due, _ in everyone), max(number for _, number in everyone)


def check_run(out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse an output before any work is done for it.

    Raises `UsageError` when ``out`` exists and may not be replaced, or an unfinished run is there and ``resume`` is not
    asked for; `DataError` where no folder can be written. A resumed run that has written ``out`` already may go on: its
    state is left to be removed.
    """
    if resume and is_written(out):
        return
    check_output(out, overwrite)
    state = state_path(out)
    if has_state(state) and not resume:
        raise UsageError(f"an unfinished run is at {state}: continue it with --resume, or delete it to start anew")


def _identity(stage: Stage, options: RunOptions) -> dict[str, Any]:
    """Everything that two parts of one run have in common: the options, the model, and the data."""
    data = {entry.name: {"number": number, "weight": entry.weight, **entry.batches.fingerprint()}
            for number, entry in enumerate(stage.datasets)}  # the number is in the seed of its batches
    return {"options": asdict(options), **stage.identity(), "datasets": data}


class _Run:
    """The stage, divided among the ranks, with its optimizer and how far it is."""

    def __init__(
        self, stage: Stage, options: RunOptions, world: World, state: Path, on_step: Callable[[StepReport], None]
    ) -> None:
        self.stage, self.options, self.world, self.on_step, self.at = stage, options, world, on_step, RunPosition()
        self.state, self.fits = state, False  # whether a step has been found to fit into memory
        self.damaged: set[str] = set()  # samples, with their reasons, since the run began or went on
        self.flops = StepFlops()
        self.rate = matrix_rate(world.device, torch.float32 if options.precision == "fp32" else torch.bfloat16)
        self.parts = range(world.rank * options.accumulate, (world.rank + 1) * options.accumulate)
        layers = list(stage.shards())
        if options.compile:
            compile_layers(layers)
        if options.checkpoint_activations:
            recompute_activations(layers)
        shard(stage.model, layers, world)
        self.optimizer = torch.optim.AdamW(
            _groups(stage, options.weight_decay), lr=options.learning_rate, betas=(0.9, options.beta2),
        )

    def step(self, batches: Iterator[Drawn]) -> StepReport:
        """Take one optimizer step on the next batch of each dataset."""
        began, number = time.monotonic(), self.at.step
        rate = self.options.learning_rate_at(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_share"]
        seed = np.random.SeedSequence([self.options.seed, number, self.world.rank])
        torch.manual_seed(int(seed.generate_state(1)[0]))
        losses, damaged, tokens, waiting = {}, [], 0, 0.0
        for dataset in self._datasets(number):
            asked = time.monotonic()
            parts = [next(batches) for _ in self.parts]
            waiting += time.monotonic() - asked
            damaged += count_damaged(dataset.name, parts, self.at, self.options.max_damaged, self.world, self.damaged)
            loss = self._add_gradient(dataset, parts)
            if loss is not None:
                losses[dataset.name] = loss
            tokens += sum(self.stage.tokens(part.batch) for part in parts)
        norm = self._update()
        self.at.step += 1
        scalars, tokens = self.stage.scalars(), int(self.world.total(tokens))
        seconds = time.monotonic() - began
        mfu = utilisation(self.flops.take(), seconds, self.rate)
        return StepReport(self.at.step, losses, norm, rate, tokens, seconds, waiting, mfu, scalars, tuple(damaged))

    def _datasets(self, number: int) -> Sequence[Dataset]:
        datasets = self.stage.datasets
        return datasets if self.options.mixing == "accumulate" else [datasets[number % len(datasets)]]

    def _add_gradient(self, dataset: Dataset, parts: Sequence[Drawn]) -> float | None:
        """Add a dataset's gradient, times its λ, to the parameters'. Gives its mean loss, None without any target.

        Raises `DataError` for a loss that is no number, and reports the names of the batch's samples.
        """
        targets = self.world.total(sum(self.stage.targets(part.batch) for part in parts))
        total = 0.0
        for part in parts:
            if not self.fits:
                self._check_memory(part)
            with self.flops.part((dataset.name, shapes(part.batch))):
                with autocast(self.world, self.options.precision):
                    loss = self.stage.loss(dataset.name, part.batch)
                share = loss.total / max(targets, 1.0)
                if loss.extra is not None:
                    share = share + loss.extra / (len(parts) * self.world.size)
                if share.requires_grad:
                    # FSDP takes the mean over the ranks, and this is a part of a sum.
                    (share * dataset.weight * self.world.size).backward()
            total += float(loss.total.detach())
            if loss.extra is not None and not math.isfinite(float(loss.extra.detach())):
                total = float(loss.extra.detach())
        total = self.world.total(total)
        if not math.isfinite(total):
            names = [name for rank in self.world.gathered([part.names for part in parts]) for each in rank
                     for name in each]
            rate = self.options.learning_rate_at(self.at.step)
            self.on_step(StepReport(self.at.step + 1, {dataset.name: total}, math.nan, rate, 0, 0.0, 0.0,
                                    suspects=tuple(names)))
            raise DataError(
                f"the loss on {dataset.name} became {total} at step {self.at.step + 1}, on {_listed(names)}: "
                + self._remedy("without these samples")
            )
        return total / targets if targets else None

    def _check_memory(self, part: Drawn) -> None:
        """Raise `DataError` where a step on this part of a batch, the first, needs more memory than there is."""
        trained = sum(parameter.numel() for parameter in trained_parameters(self.stage.model).values())
        require_step_memory(self.stage.activation_bytes(part.batch), trained, bool(self.optimizer.state), self.options,
                            self.stage.division, self.world)
        self.fits = True

    def _remedy(self, otherwise: str = "") -> str:
        """Say what to do after a step that came to no number; ``otherwise`` is one more way to start anew."""
        if has_state(self.state):
            anew = otherwise and f", or delete it and start anew {otherwise}"
            return f"go on from {self.state} with --resume and a lower learning_rate or gradient_clip{anew}"
        anew = otherwise and f", or {otherwise}"
        return f"nothing was saved yet; start anew with a lower learning_rate or gradient_clip{anew}"

    def _update(self) -> float:
        """Take AdamW's step on the gradients; gives their norm before they were clipped."""
        for parameter in trained_parameters(self.stage.model).values():
            if parameter.grad is None:  # no dataset of this step reaches it: its moments fade as if it were 0
                parameter.grad = torch.zeros_like(parameter)
        norm = self.stage.clip(self.options.gradient_clip)
        if not math.isfinite(norm):
            raise DataError(
                f"the gradient became {norm} at step {self.at.step + 1}: {self._remedy()}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def sample(self) -> tuple[str, ...]:
        """Sample answers of the model, in evaluation mode and without changing the run's random numbers."""
        self.stage.model.eval()
        try:
            with torch.no_grad(), autocast(self.world, self.options.precision):
                return tuple(self.stage.sample_lines())
        finally:
            self.stage.model.train()


def _groups(stage: Stage, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters as the optimizer takes them: those that are updated in the same way together."""
    groups: dict[Updating, list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(stage.model).items():
        groups.setdefault(stage.updating(name, parameter), []).append(parameter)
    return [{"params": parameters, "weight_decay": weight_decay if way.decayed else 0.0, "rate_share": way.rate_share}
            for way, parameters in groups.items()]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) or "samples without names"
    return shown + (f" and {len(names) - 5} more (the log names all)" if len(names) > 5 else "")
