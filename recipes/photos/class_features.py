"""Features in which the encoder's own classifier sees a class of ImageNet, so that the bridge learns all of its names.

    python -m recipes.photos.class_features

The encoder's package has a classifier of ImageNet's 1000 classes behind the features that the bridge reads; no picture
of most of these classes is in the packages. Of training pictures those features are kept in which it sees a class as
they are, with a probability of `SEEN` or more. For all classes others are made: features of a training picture, with
less of what they differ in from the mean, are moved along the gradient of the class's log-probability, in a part of the
grid, until the classifier gives the class a probability drawn from `LEAST` to `MOST`. Those that are kept are there so
that names of classes do not go with moved features alone.

Writes ``runs/photos/classes/bull_mastiff/moved-0.npy`` and ``…/seen-0.npy``, float16 [81, 1280], for ``train flamingo``
(kind ``features``). Classes of which any name has a held-out head noun are left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from flamingo_rt.errors import DataError, FlamingoError
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.preprocess import pixel_values
from recipes.photos import FETCHED, WORK
from recipes.photos.efficientnet_lite import CLASSES, GRID, SIZE, EfficientNetLite2
from recipes.photos.encoder import PREPROCESSING, fetched_encoder
from recipes.photos.fetch import fetched_folder
from recipes.photos.held_out import side_of
from recipes.photos.packages import CLASS_NAMES
from recipes.photos.pictures import PICTURES, class_folder
from recipes.photos.whole_folder import whole_folder

FOLDER = WORK / "classes"
EACH = 12  # moved features of a class
BASES = 4096  # training pictures whose features are looked at, and moved
SEEN = 0.3  # the classifier's probability from which a picture shows a class
LEAST, MOST = 0.5, 0.98  # of the classifier's probability
LEAST_OWN = 0.3  # share of a picture's difference from the mean that is kept, at least
STEP = 0.5  # length of each, of the pooled features
MOST_STEPS = 100
CEILING = 6.0  # of ReLU6, behind which the features are
AT_ONCE = 16  # pictures that are encoded together
SEED = 0


def class_names(folder: Path) -> list[tuple[str, ...]]:
    """The names of ImageNet's classes in the classifier's order, WordNet's first one first, in lower case.

    Raises `DataError` for files that are not the package's.
    """
    try:
        synsets = (folder / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
        lemmas = dict(line.split("\t", 1) for line in
                      (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines())
        names = [tuple(name.strip().lower() for name in lemmas[synset].split(",")) for synset in synsets]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} does not hold the names of ImageNet's classes ({error}): fetch it anew") from error
    if len(names) != CLASSES:
        raise DataError(f"{folder} holds names of {len(names)} classes, not {CLASSES}: fetch it anew")
    return names


def trained_classes(names: Sequence[tuple[str, ...]]) -> dict[int, str]:
    """The name of each class that may be trained, by its number: none of its names has a held-out head noun. Of two
    classes with one name the first has it."""
    found: dict[int, str] = {}
    for number, all_names in enumerate(names):
        if all(side_of(name) == "train" for name in all_names) and all_names[0] not in found.values():
            found[number] = all_names[0]
    return found


def seen_as(
    grid: np.ndarray, label: int, weight: np.ndarray, bias: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    """Features of a picture, float32 [81, 1280], moved until the classifier (``weight`` [1000, 1280], ``bias``) gives
    class ``label`` a probability drawn from `LEAST` to `MOST`, or None where `MOST_STEPS` did not do it."""
    wanted, where = rng.uniform(LEAST, MOST), _region(rng)
    moved = grid.copy()
    for _ in range(MOST_STEPS):
        logits = weight @ moved.mean(0) + bias
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        if chances[label] >= wanted:
            return moved
        gradient = weight[label] - chances @ weight
        moved += STEP * where * (gradient / np.linalg.norm(gradient))
        np.clip(moved, 0, CEILING, out=moved)
    return None


def seen_class(grid: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[int, float]:
    """The class that the classifier sees in features [81, 1280], and its probability."""
    logits = weight @ grid.mean(0) + bias
    label = int(logits.argmax())
    return label, float(1 / np.exp(logits - logits[label]).sum())


def _region(rng: np.random.Generator) -> np.ndarray:
    """Weights [81, 1] of the grid's cells, of mean 1: a round blob in a random place, of a random size."""
    row, column = rng.uniform(GRID * 0.25, GRID * 0.75, 2)
    radius = rng.uniform(GRID * 0.2, GRID * 0.6)
    rows, columns = np.mgrid[:GRID, :GRID] + 0.5
    blob = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * radius * radius)).reshape(-1, 1)
    weights: np.ndarray = (blob / blob.mean()).astype(np.float32)
    return weights


def base_features(model: EfficientNetLite2, files: Sequence[Path]) -> Iterator[np.ndarray]:
    """Features float32 [81, 1280] of pictures. Raises `DataError` for one that cannot be read."""
    import torch

    for start in range(0, len(files), AT_ONCE):
        pixels = np.stack([pixel_values(open_picture(file), PREPROCESSING, SIZE)
                           for file in files[start : start + AT_ONCE]])
        with torch.inference_mode():
            yield from model(torch.from_numpy(pixels)).numpy()


def write_class_features(
    model: EfficientNetLite2, classes: dict[int, str], pictures: Sequence[Path], folder: Path, seed: int = SEED,
) -> int:
    """Write the features in which pictures show each class, and `EACH` moved ones, into ``folder``; gives the number of
    files. Raises `DataError`."""
    weight, bias = (each.detach().numpy() for each in (model.fc.weight, model.fc.bias))
    rng = np.random.default_rng(seed)
    chosen = [pictures[number] for number in rng.permutation(len(pictures))[:BASES]]
    bases = [grid.astype(np.float16) for grid in base_features(model, chosen)]
    mean = np.mean([grid.mean(0, dtype=np.float32) for grid in bases], 0)
    count = 0
    with whole_folder(folder) as beside:
        for name in classes.values():
            (beside / class_folder(name)).mkdir()

        def write(label: int, kind: str, number: int, grid: np.ndarray) -> None:
            np.save(beside / class_folder(classes[label]) / f"{kind}-{number}.npy", grid.astype(np.float16))

        for number, grid in enumerate(bases):
            label, chance = seen_class(grid.astype(np.float32), weight, bias)
            if chance >= SEEN and label in classes:
                write(label, "seen", number, grid)
                count += 1
        for label in classes:
            for number in range(EACH):
                grid = bases[rng.integers(len(bases))].astype(np.float32)
                moved = seen_as(mean + rng.uniform(LEAST_OWN, 1) * (grid - mean), label, weight, bias, rng)
                if moved is not None:
                    write(label, "moved", number, moved)
                    count += 1
    return count


def training_pictures(pictures: Path = PICTURES) -> list[Path]:
    """The training views, in order. Raises `DataError` where there are none."""
    found = sorted((pictures / "train").glob("*/*.jpg"))
    if not found:
        raise DataError(f"{pictures} holds no training pictures: run python -m recipes.photos.pictures")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the features; gives the exit code."""
    argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(arguments)
    start = time.perf_counter()
    try:
        classes = trained_classes(class_names(fetched_folder(CLASS_NAMES, FETCHED)))
        count = write_class_features(fetched_encoder(), classes, training_pictures(), FOLDER)
    except FlamingoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{CLASSES - len(classes)} of {CLASSES} classes are left out; wrote {count} features of {len(classes)} in "
          f"{FOLDER} in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
