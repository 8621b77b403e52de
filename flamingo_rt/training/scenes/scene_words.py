"""Words of the drawn scenes, with the colours and sizes they stand for."""

from __future__ import annotations

# RGB, 0..255. Pink is left out: between red, purple and white it is the one that 64 pixels cannot tell apart.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 32, 38),
    "green": (30, 160, 55),
    "blue": (32, 84, 225),
    "yellow": (250, 222, 30),
    "orange": (250, 130, 10),
    "purple": (140, 40, 175),
    "white": (250, 250, 250),
    "black": (18, 18, 20),
}

# Singular to plural.
SHAPES: dict[str, str] = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "cross": "crosses",
    "heart": "hearts",
}

TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted")

# Where these are small, 64 pixels leave too few inside their points and arms for a texture: they stay plain.
PLAIN_WHEN_SMALL = frozenset({"triangle", "star", "cross", "heart"})

# Radius as a fraction of the image. The gap keeps a small circle apart from a large square, which fills less of its
# radius.
SIZES: dict[str, tuple[float, float]] = {"small": (0.12, 0.15), "large": (0.19, 0.23)}

# Counts and handwritten digits share these words: the index is the value.
NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
