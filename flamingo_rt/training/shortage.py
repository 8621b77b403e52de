"""A shortage of memory in a training step: the error that says what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flamingo_rt.errors import DataError
from flamingo_rt.training.options import RunOptions


@contextmanager
def shortage_explained(options: RunOptions, step: int) -> Iterator[None]:
    """Turn an allocation that failed, on a GPU or a CPU, into a `DataError` that says what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        text = " ".join(str(error).split())
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in text:
            raise
        resumed = [] if options.checkpoint_activations else ["set checkpoint_activations"]
        resumed.append(f"raise accumulate (now {options.accumulate})")
        anew = "lower the batch of the data" + ("" if options.precision == "bf16" else ", or set precision to bf16")
        raise DataError(
            f"memory ran out at step {step} ({text[:120]}). To go on from a saved state with --resume, "
            f"{' or '.join(resumed)}; to start anew with less, {anew}"
        ) from error
