"""``--quantize`` of ``export`` and what goes with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from flamingo_rt.bundle import QUANTIZATIONS
from flamingo_rt.cli.numbers import Number
from flamingo_rt.cli.paths import READ
from flamingo_rt.errors import UsageError
from flamingo_rt.export.quantization.quantization_options import (
    BLOCKS,
    BLOCKS_OF,
    DEFAULT_BLOCK,
    LIMITS,
    ROUNDINGS,
    WITHOUT_4_BITS,
)

if TYPE_CHECKING:
    from flamingo_rt.config import FlamingoConfig
    from flamingo_rt.export.quantization.quantized_export import Quantize

OF_4_BITS = ("rounding", "block")
OPTIONS = (*OF_4_BITS, "calibration", "min_cosine", "max_changed", "evaluate")  # that go with --quantize
SCENES = 50  # that a model of flamingo-rt train is asked about by default


def quantize_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--quantize``, ``--rounding``, ``--block``, ``--calibration``, ``--min-cosine``, ``--max-changed``,
    ``--evaluate``."""
    options = (
        click.option("--quantize", type=click.Choice(QUANTIZATIONS),
                     help="Store weights in fewer bits; what it costs is measured, printed and recorded. mixed: int4 "
                          "for the feed-forward layers, which are most of a model, int8 for the rest. fp8 is "
                          "TensorRT's; tensorrt-classic has int8 alone."),
        click.option("--rounding", type=click.Choice(ROUNDINGS),
                     help="Of 4-bit matrices: gptq, the default, makes up for rounding errors, seen on calibration "
                          "prompts."),
        click.option("--block", type=click.Choice([str(block) for block in BLOCKS]),
                     help="Numbers of a 4-bit matrix that share a scale: fewer are nearer, more are faster. Default: "
                          f"{DEFAULT_BLOCK}, of TensorRT's lowering {BLOCKS_OF['tensorrt'][-1]}, its most."),
        click.option("--calibration", type=READ, metavar="FILE",
                     help='Prompts with their answers, one JSON list a line: [{"image": "a.png"}, "Output: a star"]. '
                          "Three of four calibrate, the fourth is measured on, 64 and 16 at most. Default: drawn "
                          "scenes."),
        click.option("--min-cosine", type=Number(-1, 1),
                     help="Refuse a graph whose output's cosine with PyTorch's is below this. Default: "
                          f"{_usual('cosine')}."),
        click.option("--max-changed", type=Number(0, 1),
                     help="Refuse when a larger share of greedy tokens changes. Default: "
                          f"{_usual('changed')}."),
        click.option("--evaluate", type=click.IntRange(0, 10_000), metavar="SCENES",
                     help="Ask about this many drawn scenes before and after quantization: for models of flamingo-rt "
                          f"train. Default: {SCENES} for the preset tiny, else 0."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _usual(limit: str) -> str:
    """The schemes' limits: numbers, and whose they are."""
    numbers = [f"{getattr(LIMITS[scheme], limit):g}" for scheme in QUANTIZATIONS]
    return f"{', '.join(numbers)} for {', '.join(QUANTIZATIONS)}"


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `UsageError` for an option that says nothing beside the others."""
    scheme = options["quantize"]
    for name in OPTIONS:
        written = f"--{name.replace('_', '-')}"
        if options[name] is not None and scheme is None:
            raise UsageError(f"{written} goes with --quantize {', '.join(QUANTIZATIONS[:-1])} or {QUANTIZATIONS[-1]}")
        if options[name] is not None and scheme in WITHOUT_4_BITS and name in OF_4_BITS:
            raise UsageError(f"{written} is of 4-bit matrices, and --quantize {scheme} has none: leave it out")


def quantize_of(options: Mapping[str, Any], config: FlamingoConfig) -> Quantize | None:
    """What the options ask for, for a model of this configuration."""
    from flamingo_rt.export.quantization.quantized_export import Quantize

    if options["quantize"] is None:
        return None
    scenes = options["evaluate"]
    if scenes is None:
        scenes = SCENES if config.name == "tiny" else 0
    return Quantize(
        options["quantize"],
        rounding=options["rounding"] or ROUNDINGS[0],
        block=int(options["block"]) if options["block"] else None,
        calibration=options["calibration"],
        min_cosine=options["min_cosine"],
        max_changed=options["max_changed"],
        evaluate=scenes,
    )


def cost_lines(quantization: Mapping[str, Any]) -> list[str]:
    """What quantization cost, from a bundle's record, a line each."""
    quality = quantization["quality"]
    lines = [
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
