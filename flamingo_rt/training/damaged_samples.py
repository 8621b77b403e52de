"""Damaged samples of a run: counted over all ranks, and too many of them end it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flamingo_rt.errors import DataError
from flamingo_rt.training.sharding import World
from flamingo_rt.training.stage import Drawn
from flamingo_rt.training.state import RunPosition

UNLIKELY = 1e-3  # probability of as many damaged samples by chance below which a run is stopped


def count_damaged(
    dataset: str, parts: Sequence[Drawn], at: RunPosition, most: float, world: World, seen: set[str]
) -> list[str]:
    """Count in ``at`` what all ranks read for a step; gives damaged samples with their reasons, which are added to
    ``seen``, those since the run began or went on. Raises the error of any rank, and `DataError` where more than the
    share ``most`` of the data are surely damaged."""
    mine = ([part.error for part in parts if part.error], sum(part.read for part in parts),
            [text for part in parts for text in part.damaged])
    everyone = world.gathered(mine)
    for errors, read, damaged in everyone:
        if errors:
            raise errors[0]
        at.read += read
        at.damaged += len(damaged)
    damaged = [text for _, _, texts in everyone for text in texts]
    seen.update(damaged)
    if damaged and surely_more(at.damaged, at.read, most):
        raise DataError(
            f"{at.damaged} of {at.read} samples drawn are damaged, {len(seen)} different ones, more than "
            f"max_damaged {most:g}; the last, of {dataset}: {damaged[-1]}. Mend them (flamingo-rt "
            "data check lists all) and start anew, or raise max_damaged"
        )
    return damaged


def surely_more(found: int, read: int, share: float) -> bool:
    """Whether ``found`` of ``read`` samples say that more than ``share`` of the data are so: were it ``share``, as many
    or more would be found with a probability below `UNLIKELY` (Chernoff's bound of the binomial distribution)."""
    seen = found / read
    if seen <= share:
        return False
    if share == 0:
        return True
    distance = seen * math.log(seen / share)  # of Kullback and Leibler
    if seen < 1:
        distance += (1 - seen) * math.log((1 - seen) / (1 - share))
    return read * distance > -math.log(UNLIKELY)
