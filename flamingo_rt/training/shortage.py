"""A shortage of memory in a training step: the error that says what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flamingo_rt.errors import DataError
from flamingo_rt.training.options import RunOptions
from flamingo_rt.training.stage import Division


@contextmanager
def shortage_explained(options: RunOptions, step: int, division: Division) -> Iterator[None]:
    """Turn an allocation that failed, on a GPU or a CPU, into a `DataError` that says what to lower, of what a stage
    with this ``division`` of its batches accepts."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        text = " ".join(str(error).split())
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in text:
            raise
        ways = {"parts": [f"raise accumulate (now {options.accumulate})"],
                "ranks": ["divide the batch among more GPUs or hosts (torchrun)"], "none": []}[division]
        resumed = ways if options.checkpoint_activations else ["set checkpoint_activations", *ways]
        anew = "lower the batch of the data" + ("" if options.precision == "bf16" else ", or set precision to bf16")
        remedies = [f"to go on from a saved state with --resume, {' or '.join(resumed)}"] if resumed else []
        remedies.append(f"to start anew with less, {anew}")
        raise DataError(f"memory ran out at step {step} ({text[:120]}): {'; '.join(remedies)}") from error
