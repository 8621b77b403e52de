"""Picture files of every format that is read."""

from __future__ import annotations

import io
from pathlib import Path
from random import Random

import numpy as np
import PIL.Image

from flamingo_rt.processing.pictures import MAX_PIXELS, open_picture

from ..corpus.pictures import CASES
from ..kind import MEGABYTE, Kind, Seeds, WrongAnswer
from ..mutators import containers
from ..sandbox import Sandbox

WIDTH, HEIGHT = 24, 18
NAME = "picture"


def _pixels(*shape: int, dtype: str = "uint8") -> np.ndarray:
    """A gradient with some noise: every value matters, and it compresses a little."""
    rng = np.random.default_rng(0)
    top = 65535 if dtype == "uint16" else 255
    steps = np.linspace(0, top / 2, int(np.prod(shape))).reshape(shape)
    return (steps + rng.integers(0, top // 2, shape)).astype(dtype)


def _seeds(folder: Path) -> Seeds:
    image = PIL.Image.fromarray
    rgb, rgba = image(_pixels(HEIGHT, WIDTH, 3)), image(_pixels(HEIGHT, WIDTH, 4), "RGBA")
    grey, deep = image(_pixels(HEIGHT, WIDTH)), image(_pixels(HEIGHT, WIDTH, dtype="uint16"))
    real = image(_pixels(HEIGHT, WIDTH).astype(np.float32) / 255)
    few, line = rgb.quantize(16), grey.convert("1")
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    profile = b"\0" * 128  # a colour profile that is none
    made = {
        "rgb.png": (rgb, {}), "rgba.png": (rgba, {}), "grey.png": (grey, {}), "deep.png": (deep, {}),
        "few.png": (few, {}),
        "line.png": (line, {}), "la.png": (rgba.convert("LA"), {}), "one.png": (rgb, {"transparency": (1, 2, 3)}),
        "moving.png": (rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}),
        "text.png": (rgb, {"exif": turned, "icc_profile": profile}), "fewtrns.png": (few, {"transparency": 3}),
        "rgb.jpg": (rgb, {"exif": turned, "icc_profile": profile}), "grey.jpg": (grey, {}),
        "steps.jpg": (rgb, {"progressive": True}), "ink.jpg": (rgb.convert("CMYK"), {}),
        "lossy.webp": (rgb, {}), "exact.webp": (rgba, {"lossless": True}),
        "moving.webp": (rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}),
        "still.gif": (few, {}), "moving.gif": (few, {"save_all": True, "append_images": [few.rotate(180)]}),
        "rgb.tif": (rgb, {}), "lzw.tif": (rgb, {"compression": "tiff_lzw"}),
        "zip.tif": (grey, {"compression": "tiff_deflate"}),
        "jpeg.tif": (rgb, {"compression": "jpeg"}), "fax.tif": (line, {"compression": "group4"}),
        "runs.tif": (few, {"compression": "packbits"}), "deep.tif": (deep, {}),
        "real.tif": (real, {"compression": "tiff_lzw"}),
        "alpha.tif": (rgba, {"compression": "tiff_lzw"}), "rgb.bmp": (rgb, {}), "few.bmp": (few, {}),
        "line.bmp": (line, {}),
        "rgb.ppm": (rgb, {}), "grey.pgm": (grey, {}), "line.pbm": (line, {}), "real.pfm": (real, {}),
        "deep.ppm": (deep.convert("I"), {}), "rgb.jp2": (rgb, {}), "rgba.jp2": (rgba, {}), "rgb.avif": (rgb, {}),
        "exact.avif": (rgba, {"quality": 100}),
    }
    formats = {".pgm": "PPM", ".pbm": "PPM", ".pfm": "PPM"}
    seeds = {}
    for name, (picture, options) in made.items():
        file = io.BytesIO()
        suffix = Path(name).suffix
        picture.save(file, formats.get(suffix, PIL.Image.registered_extensions()[suffix]), **options)
        seeds[name] = file.getvalue()
    return seeds


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    name, other = rng.choice(sorted(seeds)), rng.choice(sorted(seeds))
    (sandbox.input / NAME).write_bytes(containers.mutate(rng, seeds[name], seeds[other]))


def _run(sandbox: Sandbox) -> PIL.Image.Image:
    picture = open_picture(sandbox.input / NAME)
    if picture.mode != "RGB" or not 1 <= picture.width * picture.height <= MAX_PIXELS:
        raise WrongAnswer(f"{picture.mode} {picture.size}")
    return picture


PICTURES = Kind("pictures", _seeds, _write, _run, CASES, memory=900 * MEGABYTE, first=700)
