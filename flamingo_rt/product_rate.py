"""Rate at which a machine multiplies matrices: that of the fastest product, since something else may be running."""

from __future__ import annotations

import time
from collections.abc import Callable


def product_rate(
    product: Callable[[], object], operations: int, repeats: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """FLOPs per second of the fastest of ``repeats`` calls of ``product``, each of which takes ``operations`` FLOPs."""
    fastest = float("inf")
    for _ in range(repeats):
        start = clock()
        product()
        fastest = min(fastest, clock() - start)
    return operations / fastest
