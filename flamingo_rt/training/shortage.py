"""A shortage of memory in a training step: the error that says what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from flamingo_rt.errors import DataError
from flamingo_rt.training.options import RunOptions
from flamingo_rt.training.stage import Division


def savings(options: RunOptions, division: Division) -> tuple[list[str], list[str]]:
    """Name what saves memory in a step, is not set already, and is accepted by a stage with this ``division`` of its
    batches: of a run that goes on, and of a new one alone."""
    resumed = [] if options.checkpoint_activations else ["set checkpoint_activations"]
    resumed.append({"parts": f"raise accumulate (now {options.accumulate})",
                    "ranks": "divide the batch among more GPUs or hosts (torchrun)"}[division])
    anew = ["lower the batch of the data"]
    return resumed, anew if options.precision == "bf16" else [*anew, "set precision to bf16"]


@contextmanager
def shortage_explained(options: RunOptions, step: int, division: Division) -> Iterator[None]:
    """Turn an allocation that failed, on a GPU or a CPU, into a `DataError` that says what to lower, of what a stage
    with this ``division`` of its batches accepts."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = _shortage(error)
        resumed, anew = savings(options, division)
        remedies = [f"to go on from a saved state with --resume, {' or '.join(resumed)}",
                    f"to start anew with less, {', or '.join(anew)}"]
        raise DataError(f"memory ran out at step {step} ({text}): {'; '.join(remedies)}") from error


@contextmanager
def writing_explained(state: Path) -> Iterator[None]:
    """Turn an allocation that failed while the result is measured and written into a `DataError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise DataError(
            f"memory ran out while the result was measured and written ({_shortage(error)}): all steps are done, and "
            f"the state is in {state}; free memory, or take a machine with more, and go on with --resume"
        ) from error


def _shortage(error: RuntimeError | MemoryError) -> str:
    """The text of an allocation that failed, on a GPU or a CPU; any other error is raised again."""
    text = " ".join(str(error).split())
    # torch.OutOfMemoryError is a RuntimeError, as is that of the CPU.
    if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in text:
        raise error
    return text[:120]
