"""``flamingo-rt describe --model``: the memory that a bundle takes for a workload, and what fits into a given size."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flamingo_rt.errors import UsageError
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.bundle import Bundle
    from flamingo_rt.memory_plan import Fitting, MemoryPlan, Workload

QUESTION = 32  # tokens of the query, with its picture's, where no context is given
LABELS = {
    "language_model": "weights of the language model",
    "vision_encoder": "weights of the vision encoder",
    "resampler": "weights of the resampler",
    "python": "Python and its libraries",
    "runtime": "runtime and tokenizer",
    "vision_activations": "encoding pictures, {at_once} at once",
    "resampler_activations": "resampling them",
    "prefill_activations": "reading the prompt",
    "logits": "logits",
    "cache": "self-attention cache",
    "media": "keys and values of pictures",
}
NOTES = {
    "cpu": "Pictures that a program keeps (image_cache_bytes) and decoded files come on top.",
    "gpu": "Of a discrete GPU's memory. Activations are reckoned as a CPU's, in the type that is computed in; the CUDA "
           "context and the workspace of kernels come on top. Not compared with a GPU.",
    "jetson": "Of the memory that GPU and processor share. Activations are reckoned as a CPU's, in the type that is "
              "computed in; the CUDA context and the workspace of kernels come on top. Not compared with a Jetson.",
}


def describe_memory(
    path: Path, memory: int | None, device: str | None, shots: int, shot_tokens: int, batch: int, context: int | None,
    max_new_tokens: int, frames: int, as_json: bool,
) -> None:
    """Print the plan as a table or as JSON. Raises `DataError` for a damaged bundle, `UsageError` for a workload that
    the model does not allow."""
    from flamingo_rt.bundle import read_description
    from flamingo_rt.memory_plan import CPU, GPU, check_workload, largest_that_fit, plan_memory

    bundle = read_description(path)
    entry = next(iter(bundle.graphs.values()))
    device = device or (CPU if entry.lowering == "ort" and bundle.compute == "float32" else GPU)
    workload = _workload(bundle, shots, shot_tokens, batch, context, max_new_tokens, frames)
    check_workload(bundle, workload)

    def plan(workload: Workload) -> MemoryPlan:
        return plan_memory(bundle, workload, device)

    needed = plan(workload)
    fitting = largest_that_fit(bundle, workload, shot_tokens, memory, plan) if memory is not None else None
    if as_json:
        click.echo(json.dumps({
            "model": bundle.config.name, "bundle": str(path), "device": device,
            "workload": {"shots": shots, **asdict(workload)}, "parts": dict(needed.parts), "loading": needed.loading,
            "needed": needed.total, "memory": memory, "fits": None if memory is None else needed.total <= memory,
            "largest": fitting and {name: asdict(found) for name, found in fitting.items()},
        }))
        return
    _print(bundle, needed, workload, shots, device, memory, fitting)


def _workload(
    bundle: Bundle, shots: int, shot_tokens: int, batch: int, context: int | None, new_tokens: int, frames: int
) -> Workload:
    """The workload of these options; without a context, shots and question have their usual lengths."""
    from flamingo_rt.memory_plan import Workload

    most = bundle.config.language.context
    if context is None:
        answer = min(new_tokens, most - 1)
        tokens = shots * shot_tokens + min(QUESTION, most - answer) + answer
    elif context <= new_tokens:
        raise UsageError(f"--context {context} holds no prompt beside --max-new-tokens {new_tokens}: give more")
    else:
        tokens, answer = context, new_tokens
    return Workload(batch, shots + 1, tokens, answer, frames)


def _print(
    bundle: Bundle, needed: MemoryPlan, workload: Workload, shots: int, device: str, memory: int | None,
    fitting: dict[str, Fitting] | None,
) -> None:
    from rich.console import Console
    from rich.table import Table

    from flamingo_rt.contract import ENCODED_AT_ONCE

    console, at_once = Console(), min(ENCODED_AT_ONCE, workload.rows * workload.pictures * workload.frames)
    asked = f"{shots} shots and a query, {workload.tokens:,} tokens of which {workload.answer:,} are the answer's"
    if workload.rows > 1:
        asked = f"{workload.rows:,} rows, each of {asked}"
    click.echo(printable(f"{bundle.config.name} on {device}: {asked}"))
    table = Table(show_footer=True)
    table.add_column("part", footer="together")
    table.add_column("memory", justify="right", footer=_megabytes(sum(needed.parts.values())))
    for part, label in LABELS.items():
        if needed.parts[part]:
            table.add_row(label.format(at_once=at_once), _megabytes(needed.parts[part]))
    console.print(table)
    if needed.loading == needed.total:
        click.echo(f"While it is loaded it takes more: {_megabytes(needed.loading)}.")
    if memory is not None and fitting is not None:
        verdict = "It fits into" if needed.total <= memory else "It does not fit into"
        click.echo(f"{verdict} {_megabytes(memory)}. The most that fits, each with the others as asked:")
        table = Table("", "asked", "most", "limited by")
        counts = {"shots": shots, "pictures": workload.pictures, "rows": workload.rows, "tokens": workload.tokens}
        for key, found in fitting.items():
            most = "none" if found.most is None else f"{found.most:,}"
            table.add_row(key, f"{counts[key]:,}", most, "the model" if found.limit else "memory")
        console.print(table)
    click.echo(NOTES[device])


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
