"""Probabilities of answers as a sign that a picture is of the kind that the model knows.

    python -m benchmarks.confidence [--model BUNDLE] [--scenes 300] [--photographs FOLDER] [--results FOLDER]

Drawn scenes, from a seed of their own, beside photographs (scikit-learn's two and crops of them; those of scikit-image,
if it is installed; those of a folder), drawings of other things, noise and plain colours. For captions, with no shot
and with one, and for answers to questions: the area under the ROC curve (1 separates them, 0.5 is chance), and the
share of each kind that is below the 5th percentile of the drawn scenes. Prints them, and writes a dated result to
``benchmarks/results``, with the number of each kind that is below the probability which the bundle records.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL.Image
import PIL.ImageDraw

from benchmarks.dated_result import RESULTS, write_result
from flamingo_rt import GenerationResult, Image, Model, load
from flamingo_rt.processing.prompt import Part
from flamingo_rt.training import scenes

SEED = 91
BATCH = 16
OWN = "drawn scenes"
# Measures of an answer, from its tokens' log-probabilities without the stop token and their sum with it.
MEASURES = {
    "sum": lambda tokens, whole: math.exp(sum(tokens)),
    "sum with stop": lambda tokens, whole: math.exp(whole),
    "mean": lambda tokens, whole: math.exp(sum(tokens) / max(1, len(tokens))),
    "mean with stop": lambda tokens, whole: math.exp(whole / (len(tokens) + 1)),
    "least likely token": lambda tokens, whole: math.exp(min(tokens, default=0.0)),
}
VALIDATED = "sum with stop"  # the measure whose 5th percentile an export with --validation records
Pictures = Mapping[str, Sequence[np.ndarray]]


def photographs(folder: Path | None) -> dict[str, np.ndarray]:
    """Photographs by name, uint8 [H, W, 3]."""
    from sklearn.datasets import load_sample_images

    found = dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    package = find_spec("skimage")
    folders = [Path(package.origin).parent / "data"] if package is not None and package.origin else []
    for each in [*folders, *([folder] if folder is not None else [])]:
        for file in sorted(file for kind in ("png", "jpg", "gif") for file in each.glob(f"*.{kind}")):
            found[file.name] = np.asarray(PIL.Image.open(file).convert("RGB"))
    return found


def other_pictures(rng: np.random.Generator, photos: Mapping[str, np.ndarray], count: int = 20) -> Pictures:
    """Kinds of pictures that are no drawn scenes."""
    def crop(picture: np.ndarray) -> np.ndarray:
        side = int(rng.integers(100, 420))
        top, left = (int(rng.integers(0, extent - side + 1)) for extent in picture.shape[:2])
        return np.ascontiguousarray(picture[top : top + side, left : left + side])

    return {
        "photographs": list(photos.values()),
        "crops of photographs": [crop(photos[name]) for name in ("china", "flower") for _ in range(count)],
        "lines and texts": [_drawing(rng, texts=bool(index % 2)) for index in range(count)],
        "noise": [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(count)],
        "plain colours": [np.full((64, 64, 3), rng.integers(0, 256, 3), dtype=np.uint8) for _ in range(count)],
    }


def _drawing(rng: np.random.Generator, texts: bool) -> np.ndarray:
    def color() -> tuple[int, ...]:
        return tuple(rng.integers(0, 256, 3).tolist())

    picture = PIL.Image.new("RGB", (320, 240), color())
    draw = PIL.ImageDraw.Draw(picture)
    for row in range(10):
        if texts:
            draw.text((5, 5 + 23 * row), "File Edit View the quick brown fox"[int(rng.integers(8)) :], fill=color())
        else:
            draw.line(rng.integers(0, 240, 4).tolist(), fill=color(), width=int(rng.integers(1, 8)))
    return np.asarray(picture)


def asked(model: Model, prompts: Sequence[list[Part]]) -> dict[str, np.ndarray]:
    """Each measure of each prompt's greedy answer, [prompts]."""
    results: list[GenerationResult] = []
    for start in range(0, len(prompts), BATCH):
        results += model.generate_batch(prompts[start : start + BATCH], max_new_tokens=40)
    return {
        name: np.array([measure(result.logprobs, math.log(max(result.probability, 1e-300))) for result in results])
        for name, measure in MEASURES.items()
    }


def captions(model: Model, pictures: Sequence[np.ndarray], shots: int) -> Iterator[list[Part]]:
    """Prompts for captions, with that many drawn scenes before each."""
    for index, picture in enumerate(pictures):
        shown = [scenes.sample(SEED + 1, shots * index + shot, "heldout") for shot in range(shots)]
        yield model.caption_prompt(Image(picture), shots=[(Image(each.image), each.caption) for each in shown])


def questions(model: Model, samples: Sequence[scenes.Sample], pictures: Pictures) -> dict[str, list[list[Part]]]:
    """Three questions about each picture; of other pictures, questions that were asked about scenes."""
    rng = np.random.default_rng(SEED)
    own = [(each.image, asked.text) for each in samples for asked in scenes.questions(each.scene, rng, 3)]
    texts = [text for _, text in own]
    others = {
        kind: [(picture, text) for picture in some for text in rng.choice(texts, 3)] for kind, some in pictures.items()
    }
    return {
        kind: [model.question_prompt(Image(picture), str(text)) for picture, text in pairs]
        for kind, pairs in {OWN: own, **others}.items()
    }


def separation(own: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """The area under the ROC curve, and the share of ``other`` below the 5th percentile of ``own``."""
    above = (own[:, None] > other).mean() + 0.5 * (own[:, None] == other).mean()
    return {"auc": round(float(above), 3), "below": round(float((other < np.quantile(own, 0.05)).mean()), 3)}


def separations(measured: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The 5th percentile and median of drawn scenes, and how far each other kind is from them, by one measure."""
    own = measured[OWN]
    low, median = np.quantile(own, (0.05, 0.5)).round(4).tolist()
    others = {kind: separation(own, values) for kind, values in measured.items() if kind != OWN}
    return {"percentile_5": low, "median": median, "kinds": others}


def below(measured: Mapping[str, np.ndarray], probability: float) -> dict[str, tuple[int, int]]:
    """Answers of each kind that are less likely than ``probability``, and all."""
    return {kind: (int((values < probability).sum()), len(values)) for kind, values in measured.items()}


def print_separations(title: str, found: Mapping[str, Any]) -> None:
    """Print a line about drawn scenes, and one for each other kind."""
    print(f"{title}: of drawn scenes {found['percentile_5']} (5th percentile), {found['median']} (median)")
    for kind, each in found["kinds"].items():
        print(f"  {kind:<22} area {each['auc']:.3f}  below the 5th percentile {each['below']:.0%}")


def measure(model: Model, name: str, prompts: Mapping[str, Sequence[list[Part]]]) -> dict[str, Any]:
    """Measure one form of prompt about every kind of picture, and print what was found."""
    answers = {kind: asked(model, some) for kind, some in prompts.items()}
    found: dict[str, Any] = {}
    for each in MEASURES:
        found[each] = separations({kind: values[each] for kind, values in answers.items()})
        print_separations(f"{name}, {each}", found[each])
    if model.usual_probability is not None:
        counts = below({kind: values[VALIDATED] for kind, values in answers.items()}, model.usual_probability)
        found["below the recorded"] = counts
        print(f"{name}, below the recorded {model.usual_probability}: "
              + ", ".join(f"{kind} {low} of {count}" for kind, (low, count) in counts.items()), flush=True)
    return found


@click.command()
@click.option("--model", "path", help="A bundle. Default: the model in the package.")
@click.option("--scenes", "count", default=300, show_default=True)
@click.option("--photographs", "folder", type=click.Path(path_type=Path), help="A folder with more of them.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, metavar="FOLDER")
def main(path: str | None, count: int, folder: Path | None, results: Path) -> None:
    """Print how well each measure separates, by kind of prompt and of picture, and write the dated result."""
    model, photos = load(path), photographs(folder)
    samples = [scenes.sample(SEED, index, "heldout") for index in range(count)]
    pictures = other_pictures(np.random.default_rng(SEED), photos)
    shown = {OWN: [sample.image for sample in samples], **pictures}
    prompts = {
        f"captions, {shots} shots": {kind: list(captions(model, some, shots)) for kind, some in shown.items()}
        for shots in (0, 1)
    }
    prompts["answers"] = questions(model, samples, pictures)
    settings = {"model": model.config.name, "scenes": count, "seed": SEED, "recorded": model.usual_probability,
                "photographs": list(photos)}
    measured = {name: measure(model, name, kinds) for name, kinds in prompts.items()}
    print(f"wrote {write_result(results, 'confidence', settings, measured)}", file=sys.stderr)


if __name__ == "__main__":
    main()
