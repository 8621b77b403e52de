"""The code of docs/device-arrays.md, on CPU tensors, beside what the runtime does with Pillow."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from flamingo_rt.config import PreprocessingConfig
from flamingo_rt.presets import preset
from flamingo_rt.processing.preprocess import pixel_values

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "device-arrays.md"
CONFIG = preset("tiny")
FEW = {"bicubic": 0.01, "bilinear": 0.05}  # share that may differ: bilinear's round weights make ties
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def preprocess():
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[1]
    names: dict = {}
    exec(code, names)
    return names["preprocess"]


@pytest.mark.parametrize("resize", ["pad", "crop", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_documents_preprocessing_is_ours_up_to_a_level(preprocess, resize, interpolation) -> None:
    how = PreprocessingConfig(resize, interpolation, (0.48145466, 0.4578275, 0.40821073), CLIP_STD)
    levels = 255 * np.array(CLIP_STD)[:, None, None]
    rng = np.random.default_rng(0)
    for size, shape in ((64, (480, 640)), (64, (301, 200)), (61, (640, 479)), (98, (30, 41)), (64, (64, 64))):
        picture = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        config = replace(CONFIG, vision=replace(CONFIG.vision, image_size=size), preprocessing=how)
        found = preprocess(torch.from_numpy(picture), config)
        expected = pixel_values(PIL.Image.fromarray(picture), how, size)
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        apart = np.abs(found.numpy() - expected) * levels
        assert apart.max() < 1.01, (size, shape)
        assert (apart > 0.01).mean() < FEW[interpolation], (size, shape)
