"""Nearest neighbours of the frozen encoder's features alone, on the queries and shots of the tasks with words.

    python -m recipes.photos.nearest [--task stamps-words …] [--seeds 3]

A picture's feature is the mean over the encoder's grid. A query gets the word of the class whose shots have the nearest
mean, by the cosine. Shots are those that ``flamingo-rt evaluate task --select balanced`` draws with the same seeds. A
model that learns from shots should come near it; the pictures alone say no more to it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from flamingo_rt.errors import DataError, FlamingoError
from flamingo_rt.evaluation.confidence_interval import Interval, bootstrap
from flamingo_rt.evaluation.shots import BalancedShots
from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.evaluation.task_file import read_task
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.preprocess import pixel_values
from recipes.photos.tasks import CONCEPTS, TASKS

SHOTS = (5, 10, 20)  # 1, 2 and 4 of each of five classes
AT_ONCE = 16  # pictures
WORD_TASKS = ("stamps-words", "emoji-words", "styles-words")
Features = Mapping[Path, np.ndarray]


def whole_task(file: Path) -> Task:
    """A task with all of its pictures: of fewer, the neighbours' share would be another task's. Raises `DataError`."""
    task = read_task(file)
    if task.missing:
        raise DataError(f"{file}: {len(task.missing)} of its pictures are missing, the first is {task.missing[0]}; "
                        "run python -m recipes.photos.pictures and python -m recipes.photos.tasks anew")
    return task


def accuracies(task: Task, features: Features, shots: Sequence[int], seeds: int) -> dict[int, Interval]:
    """The share of queries named right after each number of shots, with its interval over groups.

    ``features`` are float32 [D] by the files of items and support. Raises `DataError` where a group has too few shots.
    """
    choosers = {group: BalancedShots(task.support_of(group), task.group_classes.get(group, task.classes))
                for group in task.groups}
    groups = [item.group for item in task.items]
    found = {}
    for count in shots:
        right = [[nearest_class(item, choosers[item.group].choose(item, count, seed), features) == item.answer
                  for item in task.items] for seed in range(seeds)]
        found[count] = bootstrap(np.array(right, float), groups)
    return found


def nearest_class(query: Item, shots: Sequence[Item], features: Features) -> str:
    """The class of whose shots the mean feature has the largest cosine with the query's."""
    by_class: dict[str, list[np.ndarray]] = {}
    for shot in shots:
        by_class.setdefault(shot.answer, []).append(_unit(_of(shot, features)))
    asked = _unit(_of(query, features))
    return max(by_class, key=lambda name: float(asked @ _unit(np.mean(by_class[name], axis=0))))


def encoded(files: Sequence[Path], encode: Callable[[np.ndarray], np.ndarray]) -> dict[Path, np.ndarray]:
    """Mean features float32 [D] of pictures; ``encode`` makes features [N, S, D] of pixel values [N, 3, H, W].

    Raises `DataError` for a picture that cannot be read. Files with equal bytes are encoded once.
    """
    from recipes.photos.encoder import PREPROCESSING, SIZE  # which loads torch

    by_content: dict[bytes, list[Path]] = {}
    for file in dict.fromkeys(files):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror or error}): "
                            "run python -m recipes.photos.pictures anew") from error
        by_content.setdefault(hashlib.sha256(content).digest(), []).append(file)
    sets, found = list(by_content.values()), {}
    for start in range(0, len(sets), AT_ONCE):
        batch = sets[start : start + AT_ONCE]
        pixels = np.stack([pixel_values(open_picture(same[0]), PREPROCESSING, SIZE) for same in batch])
        for same, features in zip(batch, encode(pixels), strict=True):
            found.update(dict.fromkeys(same, features.mean(0)))
    return found


def _of(item: Item, features: Features) -> np.ndarray:
    assert item.file is not None  # items of these tasks are pictures
    return features[item.file]


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def main() -> int:
    """Print a table of accuracies; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=WORD_TASKS, action="extend", nargs="+", metavar="TASK",
                        help=f"one or more of {', '.join(WORD_TASKS)}, and may be given again; default: all")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the shots; default: 1")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; give 1 or more")
    import torch

    from recipes.photos.encoder import fetched_encoder

    names = dict.fromkeys(options.task or WORD_TASKS)
    record = {}
    try:
        model = fetched_encoder()

        @torch.inference_mode()
        def encode(pixels: np.ndarray) -> np.ndarray:
            return model(torch.from_numpy(pixels)).numpy()

        for name in names:
            task = whole_task(TASKS / f"{name}.toml")
            files = [item.file for item in (*task.items, *task.support) if item.file is not None]
            record[name] = accuracies(task, encoded(files, encode), SHOTS, options.seeds)
    except FlamingoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps({name: {count: vars(interval) for count, interval in rows.items()}
                          for name, rows in record.items()}))
        return 0
    for name, rows in record.items():
        for count, interval in rows.items():
            print(f"{name}  {count // CONCEPTS} a class  {100 * interval.mean:5.1f}%  "
                  f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]  (guessing: {100 / CONCEPTS:.0f}%)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
