"""A kind of input: how its inputs are made, what reads them, and within which limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from .sandbox import Sandbox

Seeds = Mapping[str, bytes]  # valid files that inputs are made from, by name

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Case:
    """A named input of the corpus. ``refused``: it must be, or it must be answered; None leaves the choice. ``check``
    says of an answer whether it is right; ``unsaid`` is what no message may hold."""

    name: str
    write: Callable[[Sandbox, Seeds], None]
    refused: bool | None = True
    check: Callable[[Any], bool] | None = None
    unsaid: str = ""


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    ``seeds`` makes the valid files, once, in a process of its own. ``write`` makes one input of random choices in the
    sandbox, the same for the same ``Random`` but for the places of the sandbox. ``run`` lets the product read it:
    it returns the answer when the input is accepted and raises what the product raises; `WrongAnswer` when an answer
    is not what the product promises. ``commands`` is for the command line: then ``run`` ends in `SystemExit`.

    ``memory`` are bytes beyond what the process had before, ``seconds`` of processor time; ``share`` is how much of
    the time of all kinds this one gets, ``first`` how many of its inputs each run of the test suite tries.
    """

    name: str
    seeds: Callable[[Path], Seeds]
    write: Callable[[Random, Seeds, Sandbox], None]
    run: Callable[[Sandbox], Any]
    cases: tuple[Case, ...] = ()
    commands: bool = False
    memory: int = 500 * MEGABYTE
    seconds: int = 10
    share: float = 1.0
    first: int = 50


class WrongAnswer(Exception):
    """The product accepted an input and returned what it must not return."""
