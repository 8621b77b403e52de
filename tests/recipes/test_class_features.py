"""Features in which a classifier sees a class: they are what it was asked for, and held-out classes have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from flamingo_rt.errors import DataError
from recipes.photos import class_features
from recipes.photos.class_features import (
    CEILING,
    LEAST,
    base_features,
    class_names,
    seen_as,
    seen_class,
    trained_classes,
    training_pictures,
    write_class_features,
)
from recipes.photos.efficientnet_lite import CLASSES, GRID, WIDTH, EfficientNetLite2
from recipes.photos.held_out import side_of


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.05, (CLASSES, WIDTH)).astype(np.float32), np.zeros(CLASSES, np.float32)


def chance(grid: np.ndarray, label: int, head: tuple[np.ndarray, np.ndarray]) -> float:
    logits = torch.from_numpy(head[0] @ grid.mean(0) + head[1])
    return float(logits.softmax(0)[label])


def test_features_are_moved_until_the_classifier_sees_the_class(head: tuple[np.ndarray, np.ndarray]) -> None:
    grid = np.random.default_rng(1).uniform(0, 2, (GRID * GRID, WIDTH)).astype(np.float32)
    assert chance(grid, 7, head) < 0.1
    seen = [seen_as(grid, 7, *head, np.random.default_rng(seed)) for seed in range(3)]
    for moved in seen:
        assert moved is not None
        assert LEAST <= chance(moved, 7, head) < 1
        assert moved.min() >= 0
        assert moved.max() <= CEILING
        assert moved.shape == grid.shape
    first, second = (each - grid for each in seen[:2])
    assert not np.allclose(first, second)  # another part of the grid, another probability
    assert np.abs(first).sum(1).max() > 2 * np.abs(first).sum(1).min()


def test_a_class_that_cannot_be_reached_is_left_out(head: tuple[np.ndarray, np.ndarray]) -> None:
    bias = head[1].copy()
    bias[7] = -1e6
    assert seen_as(np.zeros((GRID * GRID, WIDTH), np.float32), 7, head[0], bias, np.random.default_rng(0)) is None


def names_folder(folder: Path, names: list[str]) -> Path:
    (folder / "imagenet_synsets.txt").write_text("".join(f"n{number:08}\n" for number in range(len(names))))
    (folder / "imagenet_synset_to_lemma.txt").write_text(
        "".join(f"n{number:08}\t{name}\n" for number, name in enumerate(names)))
    return folder


def test_names_are_those_of_the_classifiers_classes(tmp_path: Path) -> None:
    names = class_names(names_folder(tmp_path, ["Tench, Tinca tinca", *map("thing {}".format, range(CLASSES - 1))]))
    assert names[:2] == [("tench", "tinca tinca"), ("thing 0",)]
    with pytest.raises(DataError, match="names of 3 classes, not 1000"):
        class_names(names_folder(tmp_path, ["a", "b", "c"]))
    (tmp_path / "imagenet_synset_to_lemma.txt").write_text("n1\ta\n")
    with pytest.raises(DataError, match=r"does not hold the names of ImageNet's classes .*fetch it anew"):
        class_names(tmp_path)


def test_a_class_with_a_held_out_name_is_not_trained() -> None:
    words = [f"word{number}" for number in range(100)]
    held_out = next(word for word in words if side_of(word) == "held-out")
    first, second = [word for word in words if side_of(word) == "train"][:2]
    found = trained_classes([(first,), (held_out,), (second, f"red {held_out}"), (second,), (first, second)])
    assert found == {0: first, 3: second}


def test_files_are_written_for_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_features, "EACH", 2)
    pictures = tmp_path / "pictures" / "train" / "owl"
    pictures.mkdir(parents=True)
    for number in range(2):
        PIL.Image.new("RGB", (30, 30), (90 * number, 80, 70)).save(pictures / f"{number}.jpg")
    torch.manual_seed(0)
    model = EfficientNetLite2().eval()
    found = training_pictures(tmp_path / "pictures")
    assert len(found) == 2
    classes = {0: "sea lion", 5: "owl"}
    count = write_class_features(model, classes, found, tmp_path / "classes")
    folder = tmp_path / "classes"
    written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npy"))
    assert count == len(written) == 4
    assert written[0] == "owl/moved-0.npy"
    assert written[-1] == "sea_lion/moved-1.npy"
    grid = np.load(folder / "owl" / "moved-0.npy")
    assert grid.dtype == np.float16
    weights = model.fc.weight.detach().numpy(), model.fc.bias.detach().numpy()
    assert chance(grid.astype(np.float32), 5, weights) == pytest.approx(1, abs=1 - LEAST + 0.01)
    before = (folder / "owl" / "moved-0.npy").read_bytes()
    write_class_features(model, classes, found, folder)
    assert (folder / "owl" / "moved-0.npy").read_bytes() == before


def test_features_of_pictures_that_show_a_class_are_kept_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_features, "EACH", 0)
    monkeypatch.setattr(class_features, "SEEN", 0.5)
    (tmp_path / "train" / "owl").mkdir(parents=True)
    PIL.Image.new("RGB", (30, 30), (90, 80, 70)).save(tmp_path / "train" / "owl" / "0.jpg")
    torch.manual_seed(0)
    model = EfficientNetLite2().eval()
    with torch.no_grad():
        model.fc.bias[7] += 50
    found = training_pictures(tmp_path)
    assert write_class_features(model, {0: "sea lion"}, found, tmp_path / "classes") == 0  # class 7 is held out
    assert write_class_features(model, {0: "sea lion", 7: "eel"}, found, tmp_path / "classes") == 1
    kept = np.load(tmp_path / "classes" / "eel" / "seen-0.npy")
    assert np.array_equal(kept, next(base_features(model, found)).astype(np.float16))
    assert seen_class(kept.astype(np.float32), model.fc.weight.detach().numpy(), model.fc.bias.detach().numpy())[0] == 7


def test_without_training_pictures_the_command_that_makes_them_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no training pictures: run python -m recipes\.photos\.pictures"):
        training_pictures(tmp_path)
