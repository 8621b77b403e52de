"""Batches drawn ahead of the training step, by any number of processes: the order and the content are the same."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from flamingo_rt.errors import DataError, FlamingoError
from flamingo_rt.training.stage import Dataset, Drawn
from flamingo_rt.training.stop_signals import keep_from_stopping

AHEAD = 4  # parts that each process draws before they are asked for
PARALLEL_TOKENIZERS = "TOKENIZERS_PARALLELISM"


class _Parts(TorchDataset):
    """The parts that one rank draws, numbered in the order in which they are needed."""

    def __init__(self, datasets: Sequence[Dataset], start: int, stop: int, part_range: range, parts: int,
                 in_turn: bool) -> None:
        self._datasets, self._start, self._steps = datasets, start, max(0, stop - start)
        self._part_range, self._parts, self._in_turn = part_range, parts, in_turn

    def __len__(self) -> int:
        return self._steps * self._datasets_a_step * len(self._part_range)

    def __getitem__(self, index: int) -> Drawn:
        rest, part = divmod(index, len(self._part_range))
        step, number = divmod(rest, self._datasets_a_step)
        step += self._start
        if self._in_turn:  # its own count of steps: no batch of a dataset is left out
            step, number = divmod(step, len(self._datasets))
        try:
            return self._datasets[number].batches.draw(step, self._part_range[part], self._parts)
        except FlamingoError as error:  # raised in a worker, it would arrive within that process's traceback
            return Drawn(None, error=error)

    @property
    def _datasets_a_step(self) -> int:
        return 1 if self._in_turn else len(self._datasets)


def drawn(
    datasets: Sequence[Dataset], start: int, stop: int, part_range: range, parts: int, workers: int, in_turn: bool
) -> Iterator[Drawn]:
    """Draw from step ``start`` up to ``stop``, in order: for each step, for each dataset (with ``in_turn``, for the one
    whose turn it is), each of the parts ``part_range`` of ``parts``.

    ``workers`` processes draw ahead; with 0 of them each part is drawn when it is asked for. Errors of the data come in
    `Drawn.error`. Raises `DataError` when a process ends, which a system does to one that takes too much memory.
    """
    items = _Parts(datasets, start, stop, part_range, parts, in_turn)
    if workers == 0 or len(items) == 0:
        for index in range(len(items)):
            yield items[index]
        return
    with _started_silently():
        # A generator of its own: the loader draws a seed for its processes, which are given nothing random to do.
        loader = DataLoader(items, batch_size=None, num_workers=min(workers, len(items)), prefetch_factor=AHEAD,
                            collate_fn=_as_it_is, worker_init_fn=_prepare_worker, generator=torch.Generator())
        parts_in_order = iter(loader)
    try:
        yield from parts_in_order
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(f"a process that draws batches ended: {error}. If memory ran out, lower workers or the batch"
                        ) from error


def _as_it_is(part: Any) -> Any:
    return part


def _prepare_worker(worker: int) -> None:
    """Leave the other cores to the training step, and signals to stop to the training process."""
    import cv2

    keep_from_stopping()
    cv2.setNumThreads(0)  # with 1 it would wait for its threads to end, which were left behind in the forked process
    torch.set_num_threads(1)


@contextmanager
def _started_silently() -> Iterator[None]:
    """Keep the tokenizers' library from warning that a process was forked: the new ones encode single texts, for which
    it uses no threads; and torch from warning of more processes than cores, which were asked for."""
    given = os.environ.get(PARALLEL_TOKENIZERS)
    os.environ.setdefault(PARALLEL_TOKENIZERS, "false")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            yield
    finally:
        if given is None:
            del os.environ[PARALLEL_TOKENIZERS]
