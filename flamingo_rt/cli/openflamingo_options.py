"""Options for the sources of an OpenFlamingo model, shared by ``import`` and ``export``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flamingo_rt.cli.paths import READ
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.checkpoints import StoredModel
    from flamingo_rt.config import ViTActivation

# Names of the parameters that `source_options` adds to a command.
SOURCES = ("vision", "language", "tokenizer", "vision_activation", "vision_post_norm", "preset")


def source_options(required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that adds ``--vision``, ``--language`` and the options that go with them."""
    options = (
        click.option("--vision", required=required, type=READ, metavar="FILE|FOLDER",
                     help="CLIP's weights: of open_clip, OpenAI (ViT-L-14.pt) or the transformers library."),
        click.option("--language", required=required, type=READ, metavar="FOLDER",
                     help="The language model: config.json, weights, tokenizer.json."),
        click.option("--tokenizer", type=READ, metavar="FILE|FOLDER",
                     help="tokenizer.json, or its folder, when it is not in --language."),
        click.option("--vision-activation", type=click.Choice(["quick_gelu", "gelu"]),
                     help="Default: what the configuration beside --vision says, else quick_gelu (OpenAI's)."),
        click.option("--vision-post-norm", is_flag=True,
                     help="Take patch tokens after the encoder's final norm; the released models take them before it."),
        click.option("--preset", metavar="NAME", help="Check the files against this model, such as openflamingo-3b."),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def open_sources(
    checkpoint: Path, vision: Path, language: Path, tokenizer: Path | None, vision_activation: ViTActivation | None,
    vision_post_norm: bool, preset: str | None,
) -> StoredModel:
    """Open the model of the sources; notes about it go to stderr."""
    from flamingo_rt.importing.openflamingo import OpenFlamingoFiles, open_openflamingo

    imported = open_openflamingo(OpenFlamingoFiles(
        checkpoint, vision, language, tokenizer, vision_activation, vision_post_norm, preset
    ))
    for note in imported.notes:
        click.echo(f"note: {printable(note)}", err=True)
    return imported.model
