"""Tasks of a folder of classes: shots that name some of its classes with words of their own, then a query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from flamingo_rt.config import FlamingoConfig, PromptsConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.printable import printable
from flamingo_rt.training.data.documents import DocumentWriter
from flamingo_rt.training.data.drawn_source import DrawnSource
from flamingo_rt.training.data.folder_source import ImageFolder, class_name
from flamingo_rt.training.data.row_fields import checked_text, file_inside
from flamingo_rt.training.data.samples import DamagedSample, FilePrint, Said, Sample, Segment, Visual
from flamingo_rt.training.options import DataOptions
from flamingo_rt.training.scenes.nonce_words import known_words, nonce_words

_STREAM = 7
FEWEST_CLASSES, FEWEST_PICTURES = 2, 2


@dataclass(frozen=True, eq=False)
class ClassTasks(DrawnSource):
    """A `SampleSource` of tasks as pages: pictures of some classes of a folder, each with the caption's prompt and a
    word for its class that the task alone has. The query, last, is another picture than the shots.

    ``ways``: numbers of classes of which a task has one, ``shots``: numbers of pictures of each class. All classes of a
    task have as many, one fewer than the smallest has files at most. ``names`` is the share of tasks that use the
    classes' own names. Loss is taken on the words that a shot before has shown, and on all names.
    """

    folder: ImageFolder
    ways: tuple[int, ...]
    shots: tuple[int, ...]
    names: float
    prompts: PromptsConfig
    kind: Literal["pages"] = "pages"

    @classmethod
    def of(cls, folder: ImageFolder, options: DataOptions, prompts: PromptsConfig, seed: int) -> ClassTasks:
        """The tasks that ``options`` ask for; of ``ways`` those count for which there are classes.

        Raises `DataError` where too few classes have two pictures.
        """
        found = len(_classes(folder))
        ways = tuple(number for number in options.ways if number <= found)
        if found < FEWEST_CLASSES or not ways:
            least = max(FEWEST_CLASSES, min(options.ways))
            raise DataError(f"{printable(str(folder.folder))} has {found} classes of {FEWEST_PICTURES} pictures or "
                            f"more, and a task needs {least}: add pictures, or lower ways")
        return cls(seed, folder, ways, options.shots, options.names, prompts)

    @cached_property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """The classes that can be used, by name, and the numbers of their pictures in ``folder``."""
        return _classes(self.folder)

    @cached_property
    def most_shots(self) -> dict[int, int]:
        """The most shots of each class in a task, by its number of classes: a class has a picture more."""
        sizes = sorted(map(len, self.classes.values()), reverse=True)
        return {ways: min(max(self.shots), sizes[ways - 1] - 1) for ways in self.ways}

    def sample(self, index: int) -> Sample:
        """See `SampleSource.sample`."""
        rng, name = np.random.default_rng([self.seed, index, _STREAM]), f"task {index} of {self.folder.folder.name}"
        count, each = (int(numbers[rng.integers(len(numbers))]) for numbers in (self.ways, self.shots))
        labels = list(self.classes)
        chosen = [labels[number] for number in rng.choice(len(labels), count, replace=False)]
        named = bool(rng.random() < self.names)
        words = chosen if named else nonce_words(rng, "train", count)
        # As many of each class: that one has fewer must not tell that the query is its.
        each = min(each, *(len(self.classes[label]) - 1 for label in chosen))
        pictures = [rng.choice(self.classes[label], each + 1, replace=False).tolist() for label in chosen]
        order = rng.permutation(np.repeat(np.arange(count), each)).tolist()
        order.append(int(rng.integers(count)))
        seen: set[int] = set()
        shown: list[tuple[int, str, bool]] = []
        for number in order:
            shown.append((pictures[number].pop(), words[number], named or number in seen))
            seen.add(number)
        return self._page(name, shown)

    def largest(self, ways: int, length: Callable[[str], int]) -> Sample:
        """A task with as many pictures as any of ``ways`` classes, and the answers of which ``length`` says that they
        are longest.

        Raises `DamagedSample` for a class that has a name which is no text, where tasks use the names.
        """
        def tokens(word: str) -> int:
            return length(self.prompts.answer_separator + word)

        kinds = [known_words("train")] if self.names < 1 else []
        if self.names > 0:
            kinds.append([checked_text(label, "the name of a class", printable(label)) for label in self.classes])
        each = self.most_shots[ways]
        longest = max((sorted(words, key=tokens)[-ways:] for words in kinds),
                      key=lambda words: each * sum(map(tokens, words)) + tokens(words[-1]))
        words = [*longest * each, longest[-1]]
        return self._page("the largest task", [(0, word, True) for word in words])

    def fingerprint(self) -> str:
        """See `SampleSource.fingerprint`: changes with the files' names and sizes, the seed, and the options."""
        return (f"tasks of {len(self.classes)} classes, {self.folder.digest[:16]}, seed {self.seed}, ways "
                f"{list(self.ways)}, shots {list(self.shots)}, names {self.names}")

    @property
    def files(self) -> tuple[FilePrint, ...]:
        """See `SampleSource.files`: the sizes of the pictures."""
        return self.folder.files

    def _page(self, name: str, shown: Sequence[tuple[int, str, bool]]) -> Sample:
        """Pictures, by their numbers in the folder, each with a word and whether that is learnt."""
        segments: list[Segment] = []
        for picture, word, learnt in shown:
            file = self.folder.names[picture]
            path = file_inside(self.folder.root, file, "the picture", self.folder.folder.name)  # one of many tasks
            answer = checked_text(word, "the name of the class", self.folder.folder.name)
            segments += [Visual("image", path, printable(file)), Said(self.prompts.caption, learnt=False),
                         Said(self.prompts.answer_separator + answer, learnt=learnt)]
        return Sample(name, tuple(segments))


def require_room(tasks: ClassTasks, options: DataOptions, config: FlamingoConfig, writer: DocumentWriter) -> None:
    """Raise `UsageError` where the largest task has more pictures than the model takes, or more tokens than a document
    holds, and `DataError` for a class whose name no text can hold."""
    where = f"data {options.source!r}"
    pictures, ways = max((number * each + 1, number) for number, each in tasks.most_shots.items())
    if pictures > config.max_visuals:
        raise UsageError(f"{where}: {ways} classes of {tasks.most_shots[ways]} shots and a query are {pictures} "
                         f"pictures, and the model takes {config.max_visuals}: lower ways or shots")
    try:
        tokens, ways = max((writer.length(tasks.largest(number, writer.text_length), is_page=True), number)
                           for number in tasks.ways)
    except DamagedSample as error:
        raise DataError(f"{where}: a class cannot be named: {error}; rename its folder, or set names to 0") from error
    if tokens > writer.most:
        raise UsageError(f"{where}: the largest task, {ways} classes of {tasks.most_shots[ways]} shots and a query, "
                         f"has {tokens} tokens, and a document at most {writer.most}: raise tokens (within the model's "
                         f"context, {config.language.context}), or lower ways or shots")


def _classes(folder: ImageFolder) -> dict[str, tuple[int, ...]]:
    """The classes with `FEWEST_PICTURES` or more, by name, and the numbers of their pictures."""
    found: dict[str, list[int]] = {}
    for number, file in enumerate(folder.names):
        found.setdefault(class_name(file.split("/", 1)[0]), []).append(number)
    return {name: tuple(numbers) for name, numbers in found.items() if len(numbers) >= FEWEST_PICTURES}
