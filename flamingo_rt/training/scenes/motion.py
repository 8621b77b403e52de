"""Clips of a scene in which one object moves in a straight line and all else stands still."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flamingo_rt.training.scenes.dataset import SPLIT_STREAM
from flamingo_rt.training.scenes.descriptions import caption
from flamingo_rt.training.scenes.drawing import IMAGE_SIZE, draw
from flamingo_rt.training.scenes.scene import MARGIN, Scene, SceneObject, Split, sample_scene

WHICH_WAY = "Which way does it move?"
CLIP_STREAM = 1  # part of the seed: clips share no scene with pictures
LEAST_PATH = 0.3  # of the image: a way that is seen in 64 pixels
ATTEMPTS = 20  # objects and ways that are tried in a scene
# Direction -> (axis, 0 for x and 1 for y; sign).
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}


@dataclass(frozen=True)
class Motion:
    """An object of a scene, by its number, on its way along one axis: ``begin`` and ``end`` are the coordinates of its
    centre, fractions of the image."""

    number: int
    direction: str
    begin: float
    end: float

    def at(self, scene: Scene, share: float) -> Scene:
        """The scene after this share of the way, 0..1."""
        placed = _moved(scene.objects[self.number], self.direction, self.begin + share * (self.end - self.begin))
        objects = (*scene.objects[: self.number], placed, *scene.objects[self.number + 1 :])
        return replace(scene, objects=objects)


@dataclass(frozen=True, eq=False)
class SceneClip:
    """``frames`` uint8 RGB [F, size, size, 3], and the caption (`moving_caption`)."""

    frames: np.ndarray
    scene: Scene
    motion: Motion
    caption: str


def clip(seed: int, index: int, split: Split, size: int = IMAGE_SIZE, frames: int = 8) -> SceneClip:
    """Clip number ``index`` (0, 1, ...) of the stream ``seed``. Raises `UsageError` for an unknown split."""
    rng = np.random.default_rng([seed, index, SPLIT_STREAM.get(split, 0), CLIP_STREAM])
    scene, motion = sample_moving(rng, split)
    light = int(rng.integers(2**63))  # the same tilt, texture, light and noise in each frame
    pictures = [
        draw(motion.at(scene, number / max(1, frames - 1)), np.random.default_rng(light), size)
        for number in range(frames)
    ]
    return SceneClip(np.stack(pictures), scene, motion, moving_caption(scene, motion))


def sample_moving(rng: np.random.Generator, split: Split) -> tuple[Scene, Motion]:
    """A scene at random, and how one of its objects moves. Raises `UsageError` for an unknown split."""
    scene = sample_scene(rng, split)
    while (motion := _sample_motion(scene, rng)) is None:  # a large digit has nowhere to go
        scene = sample_scene(rng, split)
    return scene, motion


def moving_caption(scene: Scene, motion: Motion) -> str:
    """The object that moves, with its direction: ``a striped red circle moves left``."""
    return f"{caption(replace(scene, objects=(scene.objects[motion.number],)))} moves {motion.direction}"


def _sample_motion(scene: Scene, rng: np.random.Generator) -> Motion | None:
    """An object and a way on which it leaves the others alone, or None where none was found."""
    for _ in range(ATTEMPTS):
        number = int(rng.integers(len(scene.objects)))
        direction = tuple(DIRECTIONS)[rng.integers(len(DIRECTIONS))]
        placed = scene.objects[number]
        room = 1 - 2 * (placed.radius + MARGIN)
        if room < LEAST_PATH:
            continue
        length = rng.uniform(LEAST_PATH, room)
        low = placed.radius + MARGIN + rng.uniform(0, room - length)
        others = scene.objects[:number] + scene.objects[number + 1 :]
        if all(_passes(placed, direction, low, low + length, other) for other in others):
            ends = (low, low + length) if DIRECTIONS[direction][1] > 0 else (low + length, low)
            return Motion(number, direction, *map(float, ends))
    return None


def _passes(placed: SceneObject, direction: str, low: float, high: float, other: SceneObject) -> bool:
    """Whether an object on its way from ``low`` to ``high`` never touches another."""
    axis = DIRECTIONS[direction][0]
    nearest = _moved(placed, direction, float(np.clip((other.x, other.y)[axis], low, high)))
    distance = np.hypot(nearest.x - other.x, nearest.y - other.y)
    return bool(distance >= placed.radius + other.radius + MARGIN)


def _moved(placed: SceneObject, direction: str, coordinate: float) -> SceneObject:
    return replace(placed, y=coordinate) if DIRECTIONS[direction][0] else replace(placed, x=coordinate)
