"""Drawn scenes with captions and questions: the endless data set on which the tiny Flamingo learns.

from flamingo_rt.training.scenes import questions, sample
drawn = sample(seed=0, index=7, split="train")   # the same picture in every process
drawn.image, drawn.caption, questions(drawn.scene, rng, count=4)
"""

from flamingo_rt.training.scenes.dataset import Layout, Sample, sample
from flamingo_rt.training.scenes.descriptions import (
    Question,
    caption,
    comparisons,
    detailed_caption,
    named_caption,
    orderings,
    questions,
)
from flamingo_rt.training.scenes.drawing import draw
from flamingo_rt.training.scenes.episodes import Episode, Shot, sample_episode
from flamingo_rt.training.scenes.grading import answer_is_right, caption_is_right, named_objects
from flamingo_rt.training.scenes.motion import WHICH_WAY, SceneClip, clip, moving_caption, sample_moving
from flamingo_rt.training.scenes.scene import Background, Scene, SceneObject, Split, sample_scene
from flamingo_rt.training.scenes.scene_words import COLORS, NUMBERS, SHAPES, SIZES, TEXTURES

__all__ = [
    "COLORS",
    "NUMBERS",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "WHICH_WAY",
    "Background",
    "Episode",
    "Layout",
    "Question",
    "Sample",
    "Scene",
    "SceneClip",
    "SceneObject",
    "Shot",
    "Split",
    "answer_is_right",
    "caption",
    "caption_is_right",
    "clip",
    "comparisons",
    "detailed_caption",
    "draw",
    "moving_caption",
    "named_caption",
    "named_objects",
    "orderings",
    "questions",
    "sample",
    "sample_episode",
    "sample_moving",
    "sample_scene",
]
