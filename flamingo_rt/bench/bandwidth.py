"""Memory bandwidth of this machine, for reading.

A separate process holds the buffer and reads it when asked, so that neither its memory nor its one-thread BLAS affects
this process. Several ways of reading are tried, each with as many threads as the model has; the fastest counts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from flamingo_rt.child_process import child_environment, python_command
from flamingo_rt.errors import DataError

BUFFER_BYTES = 512 << 20  # far more than any cache holds
THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
ONE_THREAD = dict.fromkeys(THREAD_SETTINGS, "1")


class BandwidthProbe:
    """Reads memory in a process of its own, which ends with the ``with`` block. Raises `DataError` when that fails."""

    def __init__(self, threads: int, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._threads, self._bytes = threads, buffer_bytes

    def __enter__(self) -> BandwidthProbe:
        try:
            command = python_command("flamingo_rt.bench.bandwidth", str(self._threads), str(self._bytes))
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env=child_environment(ONE_THREAD), start_new_session=True,  # Ctrl-C is for us; it ends with its stdin
            )
        except OSError as error:
            raise DataError(f"the process that measures memory bandwidth cannot be started: {error}") from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self) -> tuple[float, str]:
        """Bytes per second, and how they were read."""
        asking, answers = self._process.stdin, self._process.stdout
        try:
            if asking is None or answers is None:
                raise OSError("the process has no pipes")
            asking.write("read\n")
            asking.flush()
            rate, way = answers.readline().split(maxsplit=1)
        except (OSError, ValueError) as error:
            raise DataError(
                f"memory bandwidth could not be measured: reading {self._bytes / 1e6:.0f} MB in a process of its own "
                "failed; is there that much memory left?"
            ) from error
        return float(rate), f"{way.strip()}, {self._bytes / 1e6:.0f} MB, {_threads(self._threads)}"


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")


def _serve(threads: int, size: int) -> None:
    """Answer each line on stdin with one on stdout: bytes per second, and the way of reading that reached them."""
    import numpy as np

    buffer = np.ones(size // 8, dtype=np.int64)
    parts = np.array_split(buffer, threads)
    floats = [part.view(np.float32) for part in parts]
    words = [part.view(np.uint64) for part in parts]
    ways = {
        "np.dot of float32": lambda thread: np.dot(floats[thread], floats[thread]),
        "np.sum of int64": lambda thread: parts[thread].sum(),
        "np.bitwise_or.reduce of uint64": lambda thread: np.bitwise_or.reduce(words[thread]),
    }
    with ThreadPoolExecutor(threads) as pool:
        for _ in sys.stdin:
            rates: dict[str, float] = {}
            for name, way in ways.items():
                for _ in range(3):
                    start = time.perf_counter()
                    list(pool.map(way, range(threads)))
                    rates[name] = max(rates.get(name, 0.0), buffer.nbytes / (time.perf_counter() - start))
            best = max(rates, key=lambda name: rates[name])
            print(rates[best], best, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
