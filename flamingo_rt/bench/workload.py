"""Inputs of a measurement: generated pictures, prompts with shots, caches filled to a length."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import PIL.Image

from flamingo_rt.processing.preprocess import visual_pixels
from flamingo_rt.processing.prompt import Part, build_prompt
from flamingo_rt.processing.tasks import caption_prompt, caption_shot
from flamingo_rt.processing.visuals import Image
from flamingo_rt.runtime.batch_memory import Prefill, check_memory
from flamingo_rt.runtime.decoder import Decoder, Row
from flamingo_rt.runtime.model import Model
from flamingo_rt.runtime.timing import StageTimer
from flamingo_rt.runtime.visual_encoder import VisualMedia, encode_visuals

WIDTH, HEIGHT, QUALITY = 640, 480, 90
CAPTION = "a red star"


class Pictures:
    """JPEG files in memory, 640x480, no two alike, so that no cache of features has any of them. Without a ``seed``
    they differ each time, since the model may have been measured before."""

    def __init__(self, seed: int | None = None) -> None:
        self._rng = np.random.default_rng(seed)
        small = self._rng.integers(0, 256, (HEIGHT // 20, WIDTH // 20, 3), dtype=np.uint8)
        smooth = PIL.Image.fromarray(small).resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC)
        self._base = np.asarray(smooth)  # compresses as a photograph does; noise would not

    def take(self, count: int) -> list[Image]:
        """``count`` new pictures."""
        return [self._picture() for _ in range(count)]

    def _picture(self) -> Image:
        pixels = np.roll(self._base, tuple(self._rng.integers(1, (HEIGHT, WIDTH))), axis=(0, 1))
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, format="JPEG", quality=QUALITY)
        return Image(file.getvalue())


def shot_parts(model: Model, pictures: Sequence[Image]) -> list[Part]:
    """Examples in the model's form, one for each picture."""
    return [part for picture in pictures for part in caption_shot(model.config, picture, CAPTION)]


def query_parts(model: Model, picture: Image) -> list[Part]:
    """The query in the model's form."""
    return caption_prompt(model.config, picture)


def caption_tokens(model: Model, shots: int) -> int:
    """Tokens of a prompt with ``shots`` examples and the query."""
    blank = Image(b"")  # not opened while a prompt is built
    parts = shot_parts(model, [blank] * shots) + query_parts(model, blank)
    return len(build_prompt(parts, model.tokenizer))


class CacheFilling:
    """Decoders whose cache holds a picture and random text."""

    def __init__(self, model: Model, picture: Image, seed: int = 0) -> None:
        self._model, self._specs = model, model.backend.specs
        self._rng = np.random.default_rng(seed)
        self._media = _encode(model, picture)

    def decoder(self, batch: int, capacity: int) -> Decoder:
        """An empty decoder for ``batch`` rows of ``capacity`` tokens; the caller closes it. Raises `DataError` when it
        does not fit into memory."""
        check_memory(self._model.backend, batch, capacity, 1, prefill=Prefill(self._model.config, capacity))
        return Decoder(self._model.backend, self._model.config, batch, capacity)

    def rows(self, batch: int, tokens: int) -> list[Row]:
        """Rows of ``tokens`` tokens: the picture's, then text."""
        index = np.ones(tokens, dtype=np.int64)
        found = []
        for _ in range(batch):
            ids = self.text_ids(tokens)
            ids[0] = self._model.tokenizer.image_id
            found.append(Row(ids, index, [self._media]))
        return found

    def text_ids(self, count: int) -> np.ndarray:
        """Random token ids int64 [count], without the image token."""
        image = self._model.tokenizer.image_id
        ids = self._rng.integers(0, self._model.config.language.vocab_size - 1, count)
        return np.where(ids >= image, ids + 1, ids).astype(np.int64)


def _encode(model: Model, picture: Image) -> VisualMedia:
    return encode_visuals(model.backend, [visual_pixels(picture, model.config)], StageTimer())[0]
