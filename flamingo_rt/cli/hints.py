"""Hints, one line on stderr, for commands that do what was asked though it may not be what was meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.runtime.generation_options import GenerationResult, Score
    from flamingo_rt.runtime.model import Model

LIKELY = 0.01  # total probability of the choices below which their order means little


def hint(text: str) -> None:
    """Print a hint to stderr."""
    click.echo(f"hint: {printable(text)}", err=True)


def hint_at_unlike_picture(model: Model, result: GenerationResult) -> None:
    """Hint at a caption that is less likely than captions of the model's own kind of pictures."""
    from flamingo_rt.bundle import QUANTILE

    if result.unlike_validation and model.usual_probability is not None:
        hint(
            f"this caption has a probability of {result.probability:.3g}; {1 - QUANTILE:.0%} of those of pictures of "
            f"the model's own kind have {model.usual_probability:.3g} or more: it may not know what is in this one"
        )


def hint_at_unlikely_choices(scores: Sequence[Score]) -> None:
    """Hint at choices none of which the model would say."""
    total = scores[0].total_probability
    if total < LIKELY:
        hint(
            f"all {len(scores)} choices together have a probability of {total:.1g}: the model would say none of them, "
            "and their order means little"
        )


def hint_at_missing_picture(model: Model, text: str, after_shots: bool) -> None:
    """Hint at a query ``text`` without a picture of its own that asks about one: in a form that asks about a picture,
    after shots, or to a model that was validated on pictures alone."""
    from flamingo_rt.processing.tasks import asks_about_a_picture

    remedy = "give --image FILE or --video FILE"
    if after_shots:
        hint(f"the query has no picture of its own, so it is about the last shot's: {remedy}")
    elif asks_about_a_picture(model.config, text):
        hint(f"the prompt asks about a picture and there is none: {remedy}")
    elif model.usual_probability is not None:
        hint(f"there is no picture, and this model was validated on pictures alone: {remedy}")


def hint_at_absent_classes(lacking: int, prompts: int) -> None:
    """Hint at prompts in which a class is not among the shots, ``lacking`` of ``prompts``."""
    if lacking:
        hint(f"in {lacking} of {prompts} prompts a class is not among the shots, which no shot then explains: "
             "--select balanced takes every class as often")
