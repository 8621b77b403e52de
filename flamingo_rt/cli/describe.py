"""``flamingo-rt describe``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from flamingo_rt.cli.dependencies import needs_extra
from flamingo_rt.cli.describe_memory import describe_memory
from flamingo_rt.cli.numbers import Size, count
from flamingo_rt.cli.paths import READ
from flamingo_rt.errors import UsageError
from flamingo_rt.presets import PAPER_PARAMETERS, PRESETS, preset

ROWS = {
    "vision": "vision encoder",
    "resampler": "resampler",
    "cross_attention": "gated cross-attention",
    "language": "language model",
    "total": "total",
    "trainable": "trainable in the paper's recipe",
}


MOST_TOKENS, MOST_ROWS, MOST_FRAMES = 1 << 24, 1 << 16, 1024


@click.command()
@click.option("--preset", "name", metavar="NAME", help=f"Parameters of one of {', '.join(PRESETS)}.")
@click.option("--model", "path", type=READ, metavar="BUNDLE", help="A bundle, whose memory is reckoned instead.")
@click.option("--memory", type=Size(), metavar="SIZE",
              help="Memory that there is for it, such as 8GB or 7.4GiB: also say what fits.")
@click.option("--device", type=click.Choice(["cpu", "gpu", "jetson"]),
              help="Device to run it; a Jetson's GPU and processor share the memory.  [default: cpu for fp32]")
@click.option("--shots", type=count(0, MOST_ROWS), default=0, show_default=True,
              help="Examples before the query, each a picture with its text.")
@click.option("--shot-tokens", type=count(1, MOST_TOKENS), default=16, show_default=True, help="Tokens of a shot.")
@click.option("--batch", type=count(1, MOST_ROWS), default=1, show_default=True, help="Rows, or beams, at a time.")
@click.option("--context", type=count(2, MOST_TOKENS),
              help="Tokens of a row, its prompt and answer.  [default: those of the shots, 32 and the answer's]")
@click.option("--max-new-tokens", type=count(1, MOST_TOKENS), default=64, show_default=True,
              help="Tokens of the longest answer.")
@click.option("--frames", type=count(1, MOST_FRAMES), default=1, show_default=True,
              help="Frames of each picture, which is then a clip.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def command(
    click_context: click.Context, name: str | None, path: Path | None, as_json: bool, **memory: Any,
) -> None:
    """Show a model's parameters by part, or the memory that a bundle takes.

    Parameters stand beside the Flamingo paper's figures where there are some. The model is built without memory for its
    weights, so 80B takes a second.

    Memory is reckoned by part for the shots, rows and tokens that are asked for; nothing is loaded. With --memory, the
    most shots, pictures, rows and tokens that fit, each with the others as asked.

    \b
    Examples:
      flamingo-rt describe --preset flamingo-3b
      flamingo-rt describe --model bundle --memory 8GB --shots 8
    """
    if path is not None:
        if name is not None:
            raise UsageError(f"--model {path} and --preset {name} exclude each other: give one of them")
        describe_memory(path, as_json=as_json, **memory)
        return
    if name is None:
        raise UsageError("nothing to describe: give --preset NAME for parameters, or --model BUNDLE for its memory")
    given = [option for option in memory if _is_given(click_context, option)]
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')} goes with --model BUNDLE: a preset has no files")
    _describe_parameters(name, as_json)


def _is_given(context: click.Context, option: str) -> bool:
    return context.get_parameter_source(option) is not click.core.ParameterSource.DEFAULT


def _describe_parameters(name: str, as_json: bool) -> None:
    config = preset(name)
    with needs_extra("export"):
        from flamingo_rt.model.parameters import count_parameters
    counts = count_parameters(config)
    if as_json:
        click.echo(json.dumps({"preset": name, "parameters": counts}))
        return
    from rich.console import Console
    from rich.table import Table

    paper = PAPER_PARAMETERS.get(name, {})
    table = Table(title=name, title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    if paper:
        table.add_column("paper", justify="right")
        table.add_column("difference", justify="right")
    for part, label in ROWS.items():
        row = [label, _billions(counts[part])]
        if part in paper:
            stated = paper[part] * 1e9
            row += [_billions(stated), f"{counts[part] / stated - 1:+.1%}"]
        table.add_row(*row)
    Console().print(table)


def _billions(count: float) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.2f}B"
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count:,.0f}"
