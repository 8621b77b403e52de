"""Samples for the positions of a dataset; one that cannot be used is replaced by another, always the same one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

import numpy as np

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.printable import printable
from flamingo_rt.training.data.sample_order import SampleOrder
from flamingo_rt.training.data.samples import DamagedSample, Sample, SampleSource
from flamingo_rt.training.options import DataOptions

MOST_DAMAGED, MOST_EMPTY = 16, 64  # in a row, for one position

Made = TypeVar("Made")
Make = Callable[[Sample, np.random.Generator], Made]


def places_of_part(options: DataOptions, part: int, parts: int) -> range:
    """The places in a batch that part ``part`` of ``parts`` takes. Raises `UsageError` for a batch that cannot be
    divided into equal parts."""
    whole = options.batch
    if whole % parts:
        raise UsageError(f"data {options.source!r}: a batch of {whole} cannot be divided into {parts} equal parts "
                         f"(ranks times accumulate): take a multiple of {parts}")
    return range(part * whole // parts, (part + 1) * whole // parts)


class NothingToLearn(Exception):
    """A sample is whole, but nothing in it can be learnt with these options: it is not drawn, and not counted as
    damaged."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class SampleReader:
    """Reads the samples of one part of a batch. ``damaged``, ``read`` and ``names`` are those of `Drawn`: damaged
    samples with their reasons, how many samples were read, and the names of those that were used."""

    def __init__(self, source: SampleSource, order: SampleOrder, label: str) -> None:
        """``label`` is the dataset's name in messages."""
        self._source, self._order, self._label = source, order, label
        self.damaged: list[str] = []
        self.names: list[str] = []
        self.read = 0

    def take(self, position: int, make: Make[Made], without: Collection[int] = ()) -> tuple[int, Made]:
        """The index of the sample for a position, and what ``make`` makes of it with random numbers of this position.

        Samples with an index in ``without`` are passed over, and those for which the source or ``make`` raise
        `DamagedSample` or `NothingToLearn`; the next attempt is `SampleOrder.index`'s. Raises `DataError` when that
        goes on: after `MOST_DAMAGED` damaged samples, or `MOST_EMPTY` with nothing to learn.
        """
        damaged = empty = attempt = 0
        tried: set[int] = set()
        while True:
            index = self._order.index(position, attempt)
            rng = np.random.default_rng([self._order.seed, self._order.dataset, position, attempt])
            attempt += 1
            if index in without:
                continue
            self.read += 1
            tried.add(index)
            try:
                sample = self._source.sample(index)
                made = make(sample, rng)
            except DamagedSample as error:
                self.damaged.append(printable(str(error)))
                damaged += 1
                if damaged == MOST_DAMAGED:
                    raise DataError(f"{self._label}: {_in_a_row(damaged, len(tried))} are damaged; the last: "
                                    f"{self.damaged[-1]}. flamingo-rt data check lists all") from error
            except NothingToLearn as error:
                empty += 1
                if empty == MOST_EMPTY:
                    raise DataError(f"{self._label}: {_in_a_row(empty, len(tried))} hold nothing to learn; the last: "
                                    f"{error}") from error
            else:
                self.names.append(sample.name)
                return index, made


def _in_a_row(draws: int, samples: int) -> str:
    """Say how many samples were drawn, of a small source some of them again and again."""
    if samples >= draws:
        return f"{draws} samples in a row"
    return f"{draws} draws in a row, of {samples} sample{'s' * (samples != 1)},"
