"""``flamingo-rt data``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flamingo_rt.cli.dependencies import needs_extra
from flamingo_rt.cli.interrupts import on_interrupt
from flamingo_rt.cli.numbers import count
from flamingo_rt.cli.paths import WRITTEN
from flamingo_rt.cli.progress_bar import ProgressBar
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.training.data.making import MadeKind
    from flamingo_rt.training.scenes import Split


@click.group()
def command() -> None:
    """Make and check data for training.

    \b
    Example:
      flamingo-rt data make-scenes --kind pairs --count 2000 --out pairs
    """


@command.command("make-scenes")
@click.option("--kind", required=True, type=click.Choice(["pairs", "videos", "pages", "text"]),
              help="Pictures with captions, clips in which an object moves, pages of several pictures and texts, or "
                   "texts alone.")
@click.option("--count", "scenes", required=True, type=count(), metavar="N", help="Scenes, clips or pages.")
@click.option("--out", required=True, type=WRITTEN, metavar="FOLDER", help="Folder for the tar shards.")
@click.option("--per-shard", type=count(), default=1000, show_default=True, metavar="N", help="Samples in a shard.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Which scenes.")
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
