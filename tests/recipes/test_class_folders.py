"""Class folders: views of pictures, the same each time, with held-out concepts apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from flamingo_rt.errors import DataError
from recipes.photos.named_pictures import NamedPicture
from recipes.photos.pictures import HELD_OUT_VIEWS, TRAIN_VIEWS, write_class_folders
from recipes.photos.views import SIZE, may_be_flipped, read_picture, view


def drawn(file: Path, color: tuple[int, int, int, int] = (200, 0, 0, 255)) -> Path:
    """A picture with a square of one colour in a transparent frame."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = PIL.Image.new("RGBA", (400, 200), (0, 0, 0, 0))
    picture.paste(color, (100, 50, 300, 150))
    picture.save(file)
    return file


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


def test_view_0_is_the_whole_picture_in_the_middle_of_white(tmp_path: Path) -> None:
    pixels = np.asarray(view(read_picture(drawn(tmp_path / "a.png")), 0, [1]))
    assert pixels.shape == (SIZE, SIZE, 3)
    red = (pixels == (200, 0, 0)).all(-1)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert abs(rows[0] - (SIZE - 1 - rows[-1])) <= 3  # centred
    assert abs(columns[0] - (SIZE - 1 - columns[-1])) <= 3
    assert columns[-1] - columns[0] > 0.8 * SIZE  # what is transparent around it is cut away
    assert (pixels[0] == 255).all()


def test_views_differ_and_are_the_same_each_time(tmp_path: Path) -> None:
    picture = read_picture(drawn(tmp_path / "a.png"))
    views = [np.asarray(view(picture, number, [7])) for number in range(6)]
    assert all((first != other).any() for place, first in enumerate(views) for other in views[:place])
    assert all((first == np.asarray(view(picture, number, [7]))).all() for number, first in enumerate(views))
    assert (np.asarray(view(picture, 3, [8])) != views[3]).any()


def test_flips_only_what_may_be_flipped(tmp_path: Path) -> None:
    half = PIL.Image.new("RGBA", (40, 40), (0, 0, 255, 255))
    half.paste((255, 0, 0, 255), (0, 0, 20, 40))

    def red_is_left(number: int, flip: bool) -> bool:
        pixels = np.asarray(view(half, number, [0], flip))[SIZE // 2].astype(int)
        reds = np.flatnonzero((pixels[:, 0] > 200) & (pixels[:, 2] < 60))
        blues = np.flatnonzero((pixels[:, 2] > 200) & (pixels[:, 0] < 60))
        return bool(reds.mean() < blues.mean())

    assert all(red_is_left(number, False) for number in range(1, 20))
    assert {red_is_left(number, True) for number in range(1, 20)} == {True, False}
    assert may_be_flipped("red apple")
    assert not may_be_flipped("alarm clock")


def test_held_out_concepts_lie_apart_by_source(tmp_path: Path) -> None:
    file = drawn(tmp_path / "a.png")
    named = [NamedPicture(file, "red apple", "stamps"), NamedPicture(file, "red apple", "emoji"),
             NamedPicture(file, "red apple", "emoji"), NamedPicture(file, "rubber duck", "stamps"),
             NamedPicture(file, "duck", "clipart")]
    written = write_class_folders(named, tmp_path / "pictures")
    names = list(content(tmp_path / "pictures"))
    assert len([name for name in names if name.startswith("train/red_apple/")]) == 3 * TRAIN_VIEWS
    assert "train/red_apple/emoji-1-0.jpg" in names
    assert len([name for name in names if name.startswith("held-out/stamps/rubber_duck/stamps-0-")]) == HELD_OUT_VIEWS
    assert len([name for name in names if name.startswith("held-out/clipart/duck/clipart-0-")]) == HELD_OUT_VIEWS
    assert len(names) == 3 * TRAIN_VIEWS + 2 * HELD_OUT_VIEWS == written.files
    assert written.concepts == {"train": 1, "held-out/stamps": 1, "held-out/clipart": 1}


def test_the_same_pictures_give_the_same_files_and_replace_older_ones(tmp_path: Path) -> None:
    named = [NamedPicture(drawn(tmp_path / "a.png"), "cat", "stamps")]
    write_class_folders([NamedPicture(tmp_path / "a.png", "dog", "stamps")], tmp_path / "pictures")
    write_class_folders(named, tmp_path / "pictures")
    before = content(tmp_path / "pictures")
    write_class_folders(named, tmp_path / "pictures")
    assert content(tmp_path / "pictures") == before
    assert {name.split("/")[1] for name in before} == {"cat"}


def test_damaged_pictures_are_named_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "empty.png")
    named = [NamedPicture(tmp_path / "bad.png", "cat", "stamps"), NamedPicture(tmp_path / "empty.png", "cat", "stamps")]
    with pytest.raises(DataError, match="none of the pictures"):
        write_class_folders(named, tmp_path / "pictures")
    assert not (tmp_path / "pictures").exists()
    named.append(NamedPicture(drawn(tmp_path / "a.png"), "cat", "stamps"))
    written = write_class_folders(named, tmp_path / "pictures")
    assert ["bad.png" in line or "empty.png" in line for line in written.unreadable] == [True, True]
    assert written.files == TRAIN_VIEWS


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    drawn(tmp_path / "pictures" / "mine.png")
    with pytest.raises(DataError, match="not written by this recipe"):
        write_class_folders([NamedPicture(tmp_path / "pictures" / "mine.png", "cat", "stamps")], tmp_path / "pictures")
    assert (tmp_path / "pictures" / "mine.png").is_file()
