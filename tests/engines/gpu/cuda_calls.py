"""Calls of `Cuda` whose results are known, for every library and stand-in."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from flamingo_rt.engines.gpu.cuda import Cuda
from flamingo_rt.errors import DataError


def copied_rows(cuda: Cuda) -> None:
    """Rows of a matrix [4, 6] are copied into one of zeros [4, 8], and come back."""
    source, found = np.arange(24, dtype=np.float32).reshape(4, 6), np.full((4, 8), np.nan, np.float32)
    expected = np.zeros_like(found)
    expected[:, :4] = source[:, 1:5]
    with cuda.current():
        small, large = cuda.allocate(source.nbytes, "a test"), cuda.allocate(found.nbytes, "a test")
        cuda.zero(large)
        cuda.upload(small.address, source)
        cuda.copy_rows(large.address, 8 * 4, small.address + 4, 6 * 4, 4 * 4, 4)
        cuda.download(found, large.address)
        cuda.synchronize()
    np.testing.assert_array_equal(found, expected)


def copied_within(cuda: Cuda) -> None:
    """Numbers are copied from one allocation to another, in pinned memory on both ends, and an event tells when."""
    with cuda.current():
        sent, received = cuda.pinned((3, 5), np.int64), cuda.pinned((3, 5), np.int64)
        sent[...] = np.arange(15).reshape(3, 5)
        one, other = (cuda.allocate(sent.nbytes, "a test") for _ in range(2))
        done = cuda.event()
        for factor in (1, 2):  # an event is recorded again
            sent *= factor
            cuda.upload(one.address, sent)
            cuda.copy(other.address, one.address, sent.nbytes)
            cuda.download(received, other.address)
            cuda.record(done)
            done.synchronize()
            np.testing.assert_array_equal(received, np.arange(15).reshape(3, 5) * factor)


def timed(cuda: Cuda) -> None:
    """Work is timed, and another stream waited for."""
    with cuda.current():
        memory = cuda.allocate(1 << 16, "a test")
        assert cuda.seconds(lambda: cuda.zero(memory)) >= 0
        cuda.wait_for(2)


def captured_copies(cuda: Cuda) -> None:
    """A captured copy is replayed with what is there then."""
    if not cuda.captures:
        assert cuda.capture(lambda: None) is None
        return
    with cuda.current():
        memory, sent, received = (
            cuda.allocate(256, "a test"), cuda.pinned((64,), np.float32), cuda.pinned((64,), np.float32)
        )

        def there_and_back() -> None:
            cuda.upload(memory.address, sent)
            cuda.download(received, memory.address)

        cuda_graph = cuda.capture(there_and_back)
        assert cuda_graph is not None
        for value in (1.0, 2.0):
            sent[:] = value
            cuda_graph.enqueue()
            cuda.synchronize()
            assert (received == value).all()


def failed_capture(cuda: Cuda) -> None:
    """An error during a capture leaves the stream usable."""

    def fail() -> None:
        raise KeyError("a test")

    with cuda.current():
        if cuda.captures:
            with pytest.raises(KeyError):
                cuda.capture(fail)
        memory = cuda.allocate(256, "a test")
        cuda.zero(memory)
        cuda.synchronize()


def freed_elsewhere(cuda: Cuda) -> None:
    """Memory whose last reference goes in another thread is freed there."""
    with cuda.current():
        held = [cuda.allocate(1 << 20, "a test"), cuda.pinned((1 << 10,), np.float32), cuda.event()]
        before, _ = cuda._driver.memory_info()
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    with cuda.current():
        assert cuda._driver.memory_info()[0] >= before + (1 << 20)


def pinned_alone(cuda: Cuda) -> None:
    """A view of a pinned array keeps its memory, without any other reference."""
    with cuda.current():
        array = cuda.pinned((8, 2), np.float16)[1:, 0]
    array[...] = np.arange(7)
    assert array.tolist() == list(range(7))


def too_much(cuda: Cuda) -> None:
    """More memory than there is: the message says how much is there, and what would fit."""
    with cuda.current(), pytest.raises(DataError, match=r"a test takes 1,125,899,906.8 MB more, .* free; \d+ fit"):
        cuda.allocate(1 << 50, "a test", lambda free: f"{free} fit")


CALLS = (
    copied_rows, copied_within, timed, captured_copies, failed_capture, freed_elsewhere, pinned_alone, too_much,
)
