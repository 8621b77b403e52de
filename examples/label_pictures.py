"""Sort pictures into labels, with examples that the model reads once and keeps in a file.

    python examples/label_pictures.py examples/scenes/*.png --keep labels.prompt

The first run reads the examples ("shots") and writes the compiled prompt; later runs open it and pay for their pictures
alone. A label is chosen by its likelihood after the prompt: the model cannot answer anything else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import flamingo_rt
from flamingo_rt import Image, Model, PromptState
from flamingo_rt.errors import FlamingoError
from flamingo_rt.printable import printable
from flamingo_rt.processing.tasks import question_shot

SCENES = Path(__file__).parent / "scenes"
QUESTION = "How many objects are there?"
LABELS = ("one", "two", "three")
SHOTS = (("a.png", "one"), ("b.png", "two"))  # pictures with their labels


def compiled_prompt(model: Model, file: Path) -> PromptState:
    """The shots as the model remembers them, from ``file`` if it is there."""
    if file.is_file():
        return model.load_prompt(file)
    examples = [question_shot(model.config, Image(SCENES / name), QUESTION, label) for name, label in SHOTS]
    shots = model.prompt([part for shot in examples for part in shot])
    shots.save(file)
    return shots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", help="a bundle; default: the model in the package")
    parser.add_argument("--keep", type=Path, default=Path("labels.prompt"), help="the compiled prompt; %(default)s")
    options = parser.parse_args()
    model = flamingo_rt.load(options.model)
    shots = compiled_prompt(model, options.keep)
    for file in options.pictures:
        scores = model.score(model.question_prompt(Image(file), QUESTION), LABELS, prefix=shots)
        print(f"{file.name}: {scores[0].text} ({scores[0].probability:.0%})")


if __name__ == "__main__":
    try:
        main()
    except FlamingoError as error:
        sys.exit(f"error: {printable(str(error))}")
