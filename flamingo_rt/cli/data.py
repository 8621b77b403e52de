"""``flamingo-rt data``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flamingo_rt.cli.data_report import report_lines, report_record
from flamingo_rt.cli.dependencies import needs_extra
from flamingo_rt.cli.interrupts import on_interrupt
from flamingo_rt.cli.numbers import Number, count
from flamingo_rt.cli.paths import READ, WRITTEN
from flamingo_rt.cli.progress_bar import ProgressBar
from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.training.data.checking import DataReport
    from flamingo_rt.training.data.making import MadeKind
    from flamingo_rt.training.options import DataKind
    from flamingo_rt.training.scenes import Split


@click.group()
def command() -> None:
    """Make and check data for training.

    \b
    Example:
      flamingo-rt data make-scenes --kind pairs --count 2000 --out pairs
      flamingo-rt data check pairs --sheet pairs.png
    """


@command.command("make-scenes")
@click.option("--kind", required=True, type=click.Choice(["pairs", "videos", "pages", "text"]),
              help="Pictures with captions, clips in which an object moves, pages of several pictures and texts, or "
                   "texts alone.")
@click.option("--count", "scenes", required=True, type=count(), metavar="N", help="Scenes, clips or pages.")
@click.option("--out", required=True, type=WRITTEN, metavar="FOLDER", help="Folder for the tar shards.")
@click.option("--per-shard", type=count(), default=1000, show_default=True, metavar="N", help="Samples in a shard.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the scenes.")
@click.option("--split", type=click.Choice(["train", "heldout"]), default="train", show_default=True,
              help="The two share no picture, and no handwriting.")
@click.option("--size", type=click.IntRange(16, 1024), default=64, show_default=True, metavar="N",
              help="Width and height of a picture in pixels.")
@click.option("--questions", type=click.IntRange(0, 16), metavar="K",
              help="Questions about each scene, at most.  [default: 0 of pairs, 1 of pages, 4 of text]")
@click.option("--overwrite", is_flag=True, help="Replace shards of this kind in --out.")
def make_scenes(
    kind: MadeKind, scenes: int, out: Path, per_shard: int, seed: int, split: Split, size: int, questions: int | None,
    overwrite: bool,
) -> None:
    """Draw scenes and write them as tar shards: data of every kind without a download.

    The same options give the same files. A clip has 8 frames, each shown for a second. flamingo-rt evaluate scenes
    draws its pictures with 192 pixels. Needs the extra train.

    \b
    Examples:
      flamingo-rt data make-scenes --kind pairs --count 2000 --questions 2 --out pairs
      flamingo-rt data make-scenes --kind videos --count 200 --split heldout --out clips
    """
    with needs_extra("train"):
        from flamingo_rt.training.data.making import SceneShards, make_scenes

    with on_interrupt(lambda: "no shard was written"):
        made = SceneShards(kind, scenes, seed, split, size, questions)
        shards = make_scenes(made, out, per_shard, overwrite, ProgressBar())
    written = sum(path.stat().st_size for path in shards)
    click.echo(f"wrote {printable(str(out))}: {len(shards)} shards of {kind}, {written / 1e6:.1f} MB")


@command.command("check")
@click.argument("source", metavar="SOURCE[,KEY=VALUE…]")
@click.option("--kind", type=click.Choice(["auto", "pairs", "videos", "pages", "text"]),
              help="Kind of the samples; by default found out from the source.")
@click.option("--tokenizer", type=READ, metavar="FILE", help="tokenizer.json, or its folder, to count tokens of texts.")
@click.option("--model", type=READ, metavar="FOLDER",
              help="A checkpoint, to count tokens of whole documents, with its prompts and special tokens.")
@click.option("--max-damaged", type=Number(0, 1), default=0.01, show_default=True, metavar="SHARE",
              help="Largest share of damaged samples; above it the exit code is 1.")
@click.option("--sheet", type=WRITTEN, metavar="FILE", help="PNG to write: up to 40 samples with their texts.")
@click.option("--overwrite", is_flag=True, help="Replace --sheet when it exists.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with all damaged samples.")
def check(
    source: str, kind: DataKind | None, tokenizer: Path | None, model: Path | None, max_damaged: float,
    sheet: Path | None, overwrite: bool, as_json: bool,
) -> None:
    """Read every sample of a source and report what it holds and what is wrong with it.

    SOURCE is what train takes as --data: a folder, a file, or tar shards by a brace pattern, with its keys. Pictures
    and clips are decoded as in training. Needs the extra train.

    \b
    Examples:
      flamingo-rt data check my-pictures/captions.jsonl --sheet sheet.png
      flamingo-rt data check "pages-{0000..0003}.tar,tokens=256,images=5" --model models/tiny --json
    """
    with needs_extra("train"):
        from flamingo_rt.files import check_file
        from flamingo_rt.training.config_file import parse_data
        from flamingo_rt.training.data.checking import check_source
        from flamingo_rt.training.data.contact_sheet import SheetEntry, write_sheet
        from flamingo_rt.training.data.token_lengths import token_length

    options = parse_data(source, where="")
    if kind is not None:
        options = replace(options, kind=kind)
    if sheet is not None:
        check_file(sheet, overwrite, "--sheet")
    entries: list[SheetEntry] = []
    with on_interrupt(lambda: "nothing was printed"):
        length = token_length(options, tokenizer, model)
        report = check_source(options, length, ProgressBar(), entries if sheet is not None else None)
        if sheet is not None and entries:
            write_sheet(sheet, entries)
    _show(report, options.source, as_json)
    if sheet is not None and not as_json:
        click.echo(f"wrote {printable(str(sheet))}" if entries else "no sheet was written: no sample can be used")
    if report.damaged_share > max_damaged:
        raise DataError(f"{len(report.damaged):,} of {report.samples:,} samples of {options.source} are damaged, more "
                        f"than {max_damaged:.1%}: repair them or leave them out, or raise --max-damaged")


def _show(report: DataReport, source: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"source": source, **report_record(report)}))
        return
    for line in report_lines(report):
        click.echo(line)
