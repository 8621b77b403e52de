"""``flamingo-rt describe``."""

from __future__ import annotations

import json

import click

from flamingo_rt.cli.dependencies import needs_extra
from flamingo_rt.presets import PAPER_PARAMETERS, PRESETS, preset

ROWS = {
    "vision": "vision encoder",
    "resampler": "resampler",
    "cross_attention": "gated cross-attention",
    "language": "language model",
    "total": "total",
    "trainable": "trainable in the paper's recipe",
}


@click.command()
@click.option("--preset", "name", required=True, metavar="NAME", help=f"One of {', '.join(PRESETS)}.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with the counts.")
def command(name: str, as_json: bool) -> None:
    """Show a model's parameters by part, beside the Flamingo paper's figures where there are some.

    The model is built without memory for its weights, so 80B takes a second.

    \b
    Example:
      flamingo-rt describe --preset flamingo-3b
    """
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
