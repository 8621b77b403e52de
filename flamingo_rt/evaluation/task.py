"""A task of an n-shot evaluation: what is asked, about what, from which shots, and how answers are judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

TaskKind = Literal["caption", "question", "classes"]
Metric = Literal["cider", "vqa", "exact", "accuracy"]


@dataclass(frozen=True)
class Item:
    """A picture or clip, with what is right about it.

    ``name`` is unique in its pool. ``file`` is the picture, or the clip where ``clip``; None for an item of text alone.
    ``question`` is None for captions, and for classes that are asked for without one. ``answers`` are the reference
    captions, what people answered (ten times in VQAv2, where single ones may be empty), or the one class. Shots of an
    item are drawn from the support of its own ``group``.
    """

    name: str
    file: Path | None
    question: str | None
    answers: tuple[str, ...]
    clip: bool = False
    group: str = ""

    @property
    def answer(self) -> str:
        """The answer that the item has as a shot: the commonest that is not empty, of equally common ones the first."""
        return max(filter(None, self.answers), key=self.answers.count)


@dataclass(frozen=True)
class Task:
    """A task with its items.

    ``kind``: a caption is written, a question is answered, or one of ``classes`` is chosen by likelihood. Shots are
    drawn from ``support``. ``before`` is the text between a picture and its answer in place of the model's own form,
    with ``{}`` where the question goes; None for that form. ``after`` is text behind each shot's end of chunk.
    ``per_token``: classes are chosen by the mean log-likelihood of their tokens, not by the sum. ``missing`` are
    pictures that were named and are not there, with the reason. ``group_classes``: the classes of each group, where
    they are not ``classes`` for all.
    """

    name: str
    kind: TaskKind
    metric: Metric
    items: tuple[Item, ...]
    support: tuple[Item, ...]
    classes: tuple[str, ...] = ()
    before: str | None = None
    beams: int = 1
    max_new_tokens: int = 20
    missing: tuple[str, ...] = ()
    group_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    length_penalty: float = 0.0
    after: str = ""
    per_token: bool = False

    def classes_of(self, item: Item) -> tuple[str, ...]:
        """The classes from which the item's is chosen."""
        return self.group_classes.get(item.group, self.classes)

    def support_of(self, group: str) -> tuple[Item, ...]:
        """The support from which shots of a group's items are drawn."""
        return tuple(item for item in self.support if item.group == group)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of the items, in their order."""
        return tuple(dict.fromkeys(item.group for item in self.items))

    @property
    def chance(self) -> float | None:
        """The mean share of classes that guessing gets right, 0 to 1; None for answers that are written."""
        if not self.classes:
            return None
        return sum(1 / len(self.classes_of(item)) for item in self.items) / len(self.items)
