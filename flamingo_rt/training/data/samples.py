"""A training sample as a source gives it: visuals and texts in order, not yet decoded, tokenized or cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np


class DamagedSample(Exception):
    """A sample cannot be used: its name, and the reason in one line. It is counted, named in the log and skipped."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class EmptyText(DamagedSample):
    """A sample's caption, question, answer or text is empty."""


class MissingFile(DamagedSample):
    """A sample's picture or clip is not in its folder."""


@dataclass(frozen=True, eq=False)
class Visual:
    """One picture or clip, or the features of a picture (`given_features.py`). ``content``: its file's bytes, its path,
    or uint8 RGB [H, W, 3] of a drawn picture, [F, H, W, 3] of a clip; of features their path."""

    kind: Literal["image", "video", "features"]
    content: bytes | Path | np.ndarray
    name: str


@dataclass(frozen=True)
class Said:
    """A text; loss is taken on its tokens where ``learnt``. ``same_line``: in a document without pictures it goes on
    the line of the text before it."""

    text: str
    learnt: bool = True
    same_line: bool = False


Segment = Visual | Said
SampleKind = Literal["pairs", "videos", "pages", "text"]
FilePrint = tuple[str, str]  # the name of a file, and a short text that changes with its content (`file_prints.py`)


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample: a caption is ``(visual, text)``, a question ``(visual, question, answer)``, of which the answer alone
    is learnt, a page any order of visuals and texts, text a `Said` or several. Texts are as they stand in the data:
    prompts are put around them later.

    ``name`` says where it is: the file, and the line or the key in it. ``label``: the class of an ImageFolder picture.
    """

    name: str
    segments: tuple[Segment, ...]
    label: str | None = None


class SampleSource(Protocol):
    """A finite, indexed dataset. Reading the same index gives the same sample in every process."""

    @property
    def kind(self) -> SampleKind: ...

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """Sample ``index``, from 0. Raises `DamagedSample`."""
        ...

    def fingerprint(self) -> str:
        """A short text that changes when the data changes (files' names, sizes, number of samples): a resumed run
        compares it."""
        ...

    @property
    def files(self) -> Sequence[FilePrint]:
        """The source's files, in order: a resumed run compares them, and names those that changed."""
        ...
