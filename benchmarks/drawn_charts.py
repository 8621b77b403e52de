"""Pictures that look like nothing in the project's scenes: bar charts, pies, curves and points, drawn by matplotlib.

Each has a caption in few words: "a red bar chart with three bars", "a green curve that falls". Needs the extra
``bench``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

COLORS = {"red": "tab:red", "green": "tab:green", "blue": "tab:blue", "black": "black", "orange": "tab:orange"}
NUMBERS = {2: "two", 3: "three", 4: "four"}
INCHES, DOTS = 1.6, 80  # 128 pixels


@dataclass(frozen=True)
class Chart:
    """A picture uint8 [128, 128, 3] and its caption."""

    image: np.ndarray
    caption: str


def draw_chart(seed: int, index: int) -> Chart:
    """Chart number ``index`` of the stream ``seed``: what stands in it, its data and its frame are drawn at random.
    Raises `ImportError` without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rng = np.random.default_rng([seed, index])
    figure = Figure(figsize=(INCHES, INCHES), dpi=DOTS, facecolor=rng.uniform(0.85, 1, 3))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("top", "right"):
        axes.spines[side].set_visible(bool(rng.random() < 0.5))
    name = str(rng.choice(list(COLORS)))
    kind = KINDS[int(rng.integers(len(KINDS)))]
    said = kind(axes, COLORS[name], rng).format(color=name)
    canvas.draw()
    article = "an" if said[0] in "aeiou" else "a"
    return Chart(np.asarray(canvas.buffer_rgba())[..., :3].copy(), f"{article} {said}")


def _bars(axes: Any, color: str, rng: np.random.Generator) -> str:
    count = int(rng.choice(list(NUMBERS)))
    axes.bar(range(count), rng.uniform(0.3, 1.0, count), color=color, width=rng.uniform(0.5, 0.8))
    return f"{{color}} bar chart with {NUMBERS[count]} bars"


def _pie(axes: Any, color: str, rng: np.random.Generator) -> str:
    count = int(rng.choice(list(NUMBERS)))
    axes.pie(rng.uniform(0.5, 1.0, count), colors=[color], startangle=rng.uniform(0, 360),
             wedgeprops={"linewidth": 2, "edgecolor": "white"})
    return f"{{color}} pie with {NUMBERS[count]} pieces"


def _curve(axes: Any, color: str, rng: np.random.Generator) -> str:
    x, rises = np.linspace(0, 1, 40), bool(rng.random() < 0.5)
    y = x ** rng.uniform(0.6, 1.8)
    axes.plot(x, y if rises else 1 - y, color=color, linewidth=rng.uniform(2, 4))
    axes.margins(rng.uniform(0.05, 0.2))
    return f"{{color}} curve that {'rises' if rises else 'falls'}"


def _points(axes: Any, color: str, rng: np.random.Generator) -> str:
    axes.scatter(rng.random(14), rng.random(14), color=color, s=rng.uniform(15, 30), marker=rng.choice(["o", "s"]))
    return "cloud of {color} points"


KINDS: tuple[Callable[[Any, str, np.random.Generator], str], ...] = (_bars, _pie, _curve, _points)


def write_chart_folder(folder: Path, count: int, seed: int) -> Path:
    """Write ``count`` charts of a stream, and their ``captions.jsonl``."""
    folder.mkdir(parents=True)
    lines = []
    for index in range(count):
        chart, name = draw_chart(seed, index), f"{index:04}.png"
        PIL.Image.fromarray(chart.image).save(folder / name)
        lines.append(json.dumps({"image": name, "text": chart.caption}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
