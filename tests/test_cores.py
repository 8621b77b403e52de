"""The number of threads is that of the cores that this process may use: more would wait for busy cores."""

from __future__ import annotations

import os

import pytest

import flamingo_rt
from flamingo_rt import UsageError, cores
from flamingo_rt.bench.bench_options import BenchOptions
from flamingo_rt.cores import check_threads, core_count


def test_the_cores_are_those_this_process_may_use(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert core_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert core_count() == 6


@pytest.mark.parametrize("threads", [0, -1, 3, 200, 10**30, 1.0, True, "2"])
def test_threads_that_there_are_no_cores_for_are_refused(monkeypatch, threads) -> None:
    monkeypatch.setattr(cores, "core_count", lambda: 2)
    with pytest.raises(UsageError, match="from 1 to 2: this process may use 2 cores"):
        check_threads(threads)


def test_as_many_threads_as_cores_are_allowed(monkeypatch) -> None:
    monkeypatch.setattr(cores, "core_count", lambda: 2)
    for threads in (None, 1, 2):
        check_threads(threads)


def test_every_way_to_ask_for_threads_is_checked() -> None:
    many = core_count() + 1
    with pytest.raises(UsageError, match=f"threads is {many}"):
        flamingo_rt.load(threads=many)
    with pytest.raises(UsageError, match=f"threads is {many}"):
        BenchOptions(threads=many)
