"""Draw what each token of an interleaved prompt sees: its picture, the gates, and where in the picture it looks.

    python examples/interleaved_attention.py --out attention.png
    python examples/interleaved_attention.py a.jpg "Output: a cat<|endofchunk|>" b.jpg "Output:" --model checkpoint

An argument that is a file is a picture, the others are text. The model writes the end of the text. It is a checkpoint,
not a bundle: the attention is PyTorch's. Needs matplotlib and torch: ``pip install -e '.[cpu,train,bench]'``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:
    import matplotlib
    import torch
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch
except ModuleNotFoundError as error:
    sys.exit(f"error: there is no {error.name}: pip install -e '.[cpu,train,bench]'")
except KeyboardInterrupt:  # loading takes seconds
    sys.exit("interrupted")

import flamingo_rt
from flamingo_rt import Image, Model
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import FlamingoError, UsageError
from flamingo_rt.files import replacing_file
from flamingo_rt.model.attention_maps import AttentionMaps, GateOpening, attention_maps, gate_openings
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.printable import printable
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.processing.preprocess import pixel_values, visual_pixels
from flamingo_rt.processing.prompt import Part, build_prompt
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.processing.visuals import Visual

HERE = Path(__file__).parent
CHECKPOINT = HERE.parent / "models" / "tiny"
SHOTS = (("b.png", "a red heart and an orange heart"), ("a.png", "a dotted yellow star"))
QUERY = "e.png"

SPACE = "␣"  # a token of white space
NO_PICTURE = "#8a8a8a"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # of the pictures; Okabe and Ito's
# Transparent where attention is even or less, then darker and darker.
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffd16600", "#ffb347b0", "#e8336dd8", "#5b0a91f0"])
MAPS_TITLE = "Where the model looked before a word came: mean over heads and layers. 1×: attention spread evenly"
MAPS = 6  # of each picture
MOST_LABELS = 10  # of layers
SHOWN_SIDE = 256  # pixels of a picture, at least
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "axes.axisbelow": True, "text.parse_math": False,
}
WIDTH, MARGIN = 10.0, 0.25  # inches, of the figure
TOKENS_WIDTH, GATES_WIDTH = 6.5, 2.45
TITLE, CELL, GAP = 0.32, 1.12, 0.1  # inches: a title, a map, between two maps
TOKEN_SIZE, TOKEN_ADVANCE, LINE = 9, 0.602, 27  # points: the font, a line of tokens; ems: a character


@dataclass(frozen=True)
class Reading:
    """A prompt as a model read it.

    ``tokens`` are texts, empty for the token of a picture; ``special`` those that are no text. ``media_index`` [T]
    names the picture that each token sees, from 1 on; 0 is none. The model itself wrote the tokens from ``answer`` on.
    ``pictures`` are RGB, [side, side, 3] from 0 to 1, cut or padded as the model sees them.
    """

    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    media_index: np.ndarray
    answer: int
    pictures: tuple[np.ndarray, ...]
    maps: AttentionMaps
    gates: list[GateOpening]

    def written(self, picture: int, most: int) -> list[int]:
        """The words after a picture and the colon of "Output:", as places among the tokens: the ``most`` before which
        the model looked most at one place."""
        places = [place for place in range(1, len(self.tokens))
                  if self.media_index[place - 1] == picture + 1 and not self.special[place]]
        after = max((place for place in places if self.tokens[place].endswith(":")), default=0)
        words = [place for place in places if place > after and self.tokens[place].isalnum()]
        peaks = self.maps.on_visual(picture).amax((1, 2, 3))
        return sorted(sorted(words, key=lambda place: -float(peaks[place - 1]))[:most])


def example_prompt(model: Model) -> list[Part]:
    """Two pictures with captions, and one that is to be captioned."""
    scenes = HERE / "scenes"
    return model.caption_prompt(Image(scenes / QUERY), shots=[(Image(scenes / name), text) for name, text in SHOTS])


def read_prompt(model: Model, parts: Sequence[Part]) -> Reading:
    """Let the model end the prompt, and read it again with that end. Raises `UsageError` for a clip, and for a model
    that is not on the torch backend."""
    if not isinstance(model.backend, TorchBackend):
        raise UsageError(f"the model runs on {model.backend.name}, which keeps no attention: load a checkpoint with "
                         "backend='torch'")
    network = model.backend.model
    answer = model.generate(parts, max_new_tokens=30).result().text
    asked = len(build_prompt(parts, model.tokenizer))
    prompt = build_prompt(parts, model.tokenizer, continuation=answer)
    pixels = [torch.from_numpy(visual_pixels(visual, model.config)) for visual in prompt.visuals]
    ids, media_index = torch.from_numpy(prompt.input_ids), torch.from_numpy(prompt.media_index)
    return Reading(
        *token_texts(model.tokenizer, prompt.input_ids.tolist()), prompt.media_index, asked,
        tuple(shown_picture(visual, model.config) for visual in prompt.visuals),
        attention_maps(network, ids, media_index, pixels), gate_openings(network),
    )


def token_texts(tokenizer: TextTokenizer, ids: Sequence[int]) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """The text of each token, which is empty for a picture alone, and whether it is special."""
    names = {tokenizer.image_id: "", tokenizer.end_of_chunk_id: "end", tokenizer.bos_id: "start"}
    texts = tuple(names[token] if token in names else tokenizer.decode([token]).strip() or SPACE for token in ids)
    return texts, tuple(token in names for token in ids)


def shown_picture(picture: Visual, config: FlamingoConfig) -> np.ndarray:
    """The square that the model sees of a picture, with more pixels: [side, side, 3] from 0 to 1."""
    if not isinstance(picture, Image):
        raise UsageError(f"a {type(picture).__name__} cannot be shown here: give an Image")
    size, preprocessing = config.vision.image_size, config.preprocessing
    pixels = pixel_values(open_picture(picture.source), preprocessing, size * -(-SHOWN_SIDE // size))
    colors = pixels.transpose(1, 2, 0) * np.asarray(preprocessing.std) + np.asarray(preprocessing.mean)
    return colors.clip(0, 1)


def draw(reading: Reading) -> Figure:
    """Tokens and gates above; below a row for each picture, with its maps."""
    places, lines = _placed(reading)
    upper = TITLE + max(lines * LINE / 72, 1.3) + 0.6
    rows = len(reading.pictures) * (CELL + TITLE)
    height = 2 * MARGIN + upper + TITLE + rows
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))

        def axes(left: float, top: float, width: float, tall: float) -> Axes:
            """Axes in inches, from the upper left corner of the figure."""
            return figure.add_axes((left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height))

        _draw_tokens(axes(MARGIN, MARGIN + TITLE, TOKENS_WIDTH, lines * LINE / 72), reading, places)
        _draw_gates(axes(WIDTH - MARGIN - GATES_WIDTH, MARGIN + TITLE, GATES_WIDTH, upper - TITLE - 0.8), reading.gates)
        _draw_maps(figure, axes, MARGIN + upper, reading)
        return figure


def _placed(reading: Reading) -> tuple[list[tuple[float, int, float]], int]:
    """Left edge, line and width in points of the box of each token, and the number of lines. A line begins with a
    picture where it can."""
    places: list[tuple[float, int, float]] = []
    left, line = 0.0, 0
    for token, special, picture in zip(reading.tokens, reading.special, reading.media_index, strict=True):
        width = (max(len(token), 1) * TOKEN_ADVANCE + 0.9) * TOKEN_SIZE if token else LINE - 4.0
        starts = special and not token and picture > 1
        if left and (starts or left + width > TOKENS_WIDTH * 72 - 2):
            left, line = 0.0, line + 1
        places.append((left, line, width))
        left += width + 3
    return places, line + 1


def _draw_tokens(axes: Axes, reading: Reading, places: Sequence[tuple[float, int, float]]) -> None:
    axes.set_xlim(-1, TOKENS_WIDTH * 72 - 1)  # half of a box's line is outside of it
    axes.set_ylim((places[-1][1] + 1) * LINE, 0)
    axes.axis("off")
    axes.set_title("Each token sees the last picture before it. Dark: what the model wrote", x=0, ha="left", pad=9)
    seen = 0
    for place, (token, picture) in enumerate(zip(reading.tokens, reading.media_index, strict=True)):
        left, line, width = places[place]
        color, top, tall = color_of(int(picture)), line * LINE + 2, LINE - 4
        if not token:
            axes.imshow(reading.pictures[seen], extent=(left, left + width, top + tall, top), aspect="auto")
            seen += 1
        shade = 0.15 if place < reading.answer else 0.38
        axes.add_patch(FancyBboxPatch(
            (left, top), width, tall, boxstyle="round,pad=0,rounding_size=4" if token else "square,pad=0",
            edgecolor=color, facecolor=(color, shade) if token else "none", linewidth=0.8 if token else 1.8,
        ))
        axes.text(left + width / 2, top + tall / 2, token, ha="center", va="center_baseline", fontsize=TOKEN_SIZE,
                  family="monospace", color="#222222")


def _draw_gates(axes: Axes, gates: Sequence[GateOpening]) -> None:
    layers = np.arange(len(gates))
    for shift, color, label, values in (
        (-0.2, "#333333", "attention", [gate.attention for gate in gates]),
        (0.2, "#b0b0b0", "feed-forward", [gate.feed_forward for gate in gates]),
    ):
        axes.bar(layers + shift, values, 0.38, color=color, label=label)
    every = -(-len(gates) // MOST_LABELS)
    axes.set_xticks(layers[::every], [str(gate.layer) for gate in gates[::every]])
    axes.set_xlabel("before language layer")
    low = min(0.0, *(value for gate in gates for value in gate[1:]))
    axes.set_ylim(-1 if low < 0 else 0, 1)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.grid(axis="y", color="#e3e3e3")
    axes.set_title("Gates, tanh of them", x=0, ha="left", pad=20)
    axes.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(-0.04, 0.98), borderaxespad=0, handlelength=1,
                columnspacing=1)


def _draw_maps(figure: Figure, axes: Callable[..., Axes], top: float, reading: Reading) -> None:
    figure.text(MARGIN / WIDTH, 1 - top / figure.get_figheight(), MAPS_TITLE, fontsize=10, va="top")
    chosen = [reading.written(picture, MAPS) for picture in range(len(reading.pictures))]
    found = [[reading.maps.on_visual(picture)[place - 1, 0].numpy() for place in places]
             for picture, places in enumerate(chosen)]
    even = 1 / reading.maps.over_grid[0][0, 0].numel()
    scale = PowerNorm(0.6, 1, max(2.0, *(attention.max() / even for maps in found for attention in maps)), clip=True)
    for picture, (places, maps) in enumerate(zip(chosen, found, strict=True)):
        row, color = top + TITLE + picture * (CELL + TITLE), color_of(picture + 1)
        _framed(axes(MARGIN, row + 0.2, CELL, CELL), color, 2.5).imshow(reading.pictures[picture])
        for column, (place, attention) in enumerate(zip(places, maps, strict=True), start=1):
            cell = _framed(axes(MARGIN + column * (CELL + GAP) + 0.15, row + 0.2, CELL, CELL), color, 0.8)
            _overlay(cell, reading.pictures[picture], attention / even, scale)
            cell.set_title(reading.tokens[place], family="monospace", fontsize=TOKEN_SIZE, pad=3)
    bar = axes(WIDTH - 0.62, top + TITLE + 0.2, 0.12, CELL)
    figure.colorbar(ScalarMappable(scale, HEAT), bar, ticks=[1, (1 + scale.vmax) / 3, scale.vmax], format="%.0f×")
    bar.tick_params(labelsize=8, length=2)


def _overlay(axes: Axes, picture: np.ndarray, attention: np.ndarray, scale: PowerNorm) -> None:
    """A map over the picture in light grey."""
    side = len(picture)
    axes.imshow(0.4 + 0.6 * picture @ (0.299, 0.587, 0.114), cmap="gray", vmin=0, vmax=1)
    axes.imshow(attention, norm=scale, cmap=HEAT, extent=(-0.5, side - 0.5, side - 0.5, -0.5),
                interpolation="bilinear", interpolation_stage="data")


def _framed(axes: Axes, color: str, width: float) -> Axes:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linewidth=width)
    return axes


def color_of(picture: int) -> str:
    """The colour of a picture, counted from 1, and of the tokens that see it."""
    return COLORS[(picture - 1) % len(COLORS)] if picture else NO_PICTURE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="pictures and texts in their order; default: two captions as shots")
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="a checkpoint; default: models/tiny")
    parser.add_argument("--out", type=Path, default=Path("attention.png"), help="PNG or SVG to write; %(default)s")
    options = parser.parse_args()
    model = flamingo_rt.load(options.model, backend="torch")
    given: list[Part] = [Image(part) if Path(part).is_file() else part for part in options.parts]
    figure = draw(read_prompt(model, given or example_prompt(model)))
    with replacing_file(options.out) as beside:
        figure.savefig(beside, dpi=110)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    try:
        main()
    except FlamingoError as error:
        sys.exit(f"error: {printable(str(error))}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
