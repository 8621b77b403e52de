"""Scenes for the tests: many drawn ones, and ones put together by hand."""

from __future__ import annotations

from functools import cache

import numpy as np

from flamingo_rt.training.scenes import Background, Scene, SceneObject, sample_scene

PLAIN = Background("plain", (120, 120, 120), (120, 120, 120))


@cache
def drawn_scenes() -> tuple[Scene, ...]:
    """1,500 scenes of the training split."""
    rng = np.random.default_rng(0)
    return tuple(sample_scene(rng, "train") for _ in range(1500))


def thing(shape="circle", color="red", texture="plain", size="large", x=0.5, y=0.5, radius=0.2) -> SceneObject:
    return SceneObject(shape, color, texture, size, x, y, radius)


def row(*objects: SceneObject) -> Scene:
    return Scene(objects, PLAIN)
