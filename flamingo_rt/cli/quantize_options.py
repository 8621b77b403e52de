"""Options of ``export --quantize``, and the lines that report the cost of quantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from flamingo_rt.bundle import QUANTIZATIONS
from flamingo_rt.cli.numbers import Number
from flamingo_rt.cli.paths import PATH_TEXT
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.export.quantization.quantization_options import (
    BLOCKS,
    BLOCKS_OF,
    DEFAULT_BLOCK,
    LIMITS,
    RANDOM_PROMPTS,
    ROUNDINGS,
    WITHOUT_4_BITS,
    Quantize,
    check_calibrated,
)

OF_4_BITS = ("rounding", "block")
OPTIONS = (*OF_4_BITS, "calibration", "min_cosine", "max_changed", "evaluate")  # that go with --quantize
SCENES = "scenes"  # drawn scenes instead of a file of prompts; a file of that name is ./scenes
EVALUATED = 50  # drawn scenes that a model calibrated on them is asked about, unless --evaluate says otherwise


def quantize_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--quantize``, ``--rounding``, ``--block``, ``--calibration``, ``--min-cosine``, ``--max-changed``,
    ``--evaluate``."""
    options = (
        click.option("--quantize", type=click.Choice(QUANTIZATIONS),
                     help="Store weights in fewer bits; the cost is measured, printed and recorded. mixed: int4 for "
                          "the feed-forward layers, which are most of a model, int8 for the rest; int4 and mixed need "
                          "--calibration or --rounding nearest. fp8 is for TensorRT; tensorrt-classic has int8 only."),
        click.option("--rounding", type=click.Choice(ROUNDINGS),
                     help="Rounding of 4-bit matrices. gptq, the default, compensates rounding errors as seen on the "
                          "prompts of --calibration; nearest needs none and changes several times as many tokens."),
        click.option("--block", type=click.Choice([str(block) for block in BLOCKS]),
                     help="Numbers of a 4-bit matrix that share a scale: small blocks are more accurate, large ones "
                          f"faster. Default: {DEFAULT_BLOCK}, for TensorRT {BLOCKS_OF['tensorrt'][-1]}, the largest."),
        click.option("--calibration", type=PATH_TEXT, metavar="FILE|scenes",
                     help="Prompts such as the model will get, with their answers, one JSON list a line: "
                          '[{"image": "a.png"}, "Output: a star"]. Three of four calibrate, every fourth is measured '
                          "on, at most 64 and 16. scenes: drawn ones, for a model of flamingo-rt train. Without it, "
                          "the cost is measured on random prompts."),
        click.option("--min-cosine", type=Number(-1, 1),
                     help="Refuse a graph whose output's cosine with PyTorch's is below this. Default: "
                          f"{_usual('cosine')}."),
        click.option("--max-changed", type=Number(0, 1),
                     help=f"Refuse when a larger share of greedy tokens changes. Default: {_usual('changed')}."),
        click.option("--evaluate", type=click.IntRange(0, 10_000), metavar="SCENES",
                     help="Ask about this many drawn scenes before and after quantization, for a model of flamingo-rt "
                          f"train. Default: {EVALUATED} with --calibration {SCENES}, else 0."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _usual(limit: str) -> str:
    """List the schemes' limits of one kind: the numbers, then the schemes."""
    numbers = [f"{getattr(LIMITS[scheme], limit):g}" for scheme in QUANTIZATIONS]
    return f"{', '.join(numbers)} for {', '.join(QUANTIZATIONS)}"


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `UsageError` for an option that has no effect beside the others, or for missing calibration prompts."""
    scheme = options["quantize"]
    for name in OPTIONS:
        written = f"--{name.replace('_', '-')}"
        if options[name] is not None and scheme is None:
            raise UsageError(f"{written} goes with --quantize {', '.join(QUANTIZATIONS[:-1])} or {QUANTIZATIONS[-1]}")
        if options[name] is not None and scheme in WITHOUT_4_BITS and name in OF_4_BITS:
            raise UsageError(f"{written} is for 4-bit matrices, and --quantize {scheme} has none: leave it out")
    if scheme is not None:
        check_calibrated(scheme, options["rounding"] or ROUNDINGS[0], options["calibration"] is not None)


def quantize_of(options: Mapping[str, Any], config: FlamingoConfig) -> Quantize | None:
    """Build the export's options, with the calibration prompts for a model of this configuration; None without
    ``--quantize``. Raises `DataError` for a file of prompts that cannot be used."""
    from flamingo_rt.export.quantization.calibration import drawn_scenes, read_prompts

    if options["quantize"] is None:
        return None
    prompts, scenes = options["calibration"], options["calibration"] == SCENES
    calibration = None
    if prompts is not None:
        calibration = drawn_scenes(config) if scenes else read_prompts(Path(prompts))
    evaluate = options["evaluate"]
    return Quantize(
        options["quantize"],
        rounding=options["rounding"] or ROUNDINGS[0],
        block=int(options["block"]) if options["block"] else None,
        calibration=calibration,
        min_cosine=options["min_cosine"],
        max_changed=options["max_changed"],
        evaluate=evaluate if evaluate is not None else EVALUATED if scenes else 0,
    )


def cost_lines(quantization: Mapping[str, Any]) -> list[str]:
    """Report the cost of quantization, from a bundle's record, in one line per figure."""
    quality, prompts = quantization["quality"], quantization["measured_on"]
    hint = ", since there is no --calibration" if prompts == RANDOM_PROMPTS else ""
    lines = [f"cost, measured on {prompts}{hint}:"]
    lines += [
        f"{graph}: cosine with PyTorch's output {cost['cosine']:.5f} (lowest of a prompt {cost['lowest_cosine']:.5f}), "
        f"norm ratio {cost['norm_ratio']:.4f}"
        for graph, cost in quality["graphs"].items()
    ]
    lines.append(f"greedy tokens that changed: {quality['changed']} of {quality['tokens']}")
    if "accuracy" in quantization:
        accuracy = quantization["accuracy"]
        lines += [
            f"right {kind} about {accuracy['scenes']} drawn scenes: {accuracy['before'][kind]:.1%} before, "
            f"{accuracy['after'][kind]:.1%} after"
            for kind in ("captions", "questions")
        ]
    return lines
