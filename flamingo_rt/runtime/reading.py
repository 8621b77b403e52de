"""From the pictures and clips of prompts to their media: decoded in threads while others are encoded, each once."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext

import numpy as np

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import ENCODED_AT_ONCE, GraphSpec
from flamingo_rt.processing.media import Image, Video
from flamingo_rt.processing.visuals import visual_pixels
from flamingo_rt.runtime.engine import Engine
from flamingo_rt.runtime.media import VisualMedia, encode_frames, resample
from flamingo_rt.runtime.media_cache import MediaCache
from flamingo_rt.runtime.timing import StageTimer

# Pillow decodes without Python's lock. More threads would take the cores that the encoder works on.
THREADS = min(4, os.cpu_count() or 1)
AHEAD = 2 * THREADS  # visuals that are decoded, or being decoded, before they are asked for

# A decoder of clips has threads of its own, and an opened Pillow picture may stand in several places of a prompt.
_ONE_AT_A_TIME = threading.Lock()


class VisualReader:
    """Reads and encodes visuals; what was encoded before is taken from a cache, by content."""

    def __init__(
        self, engine: Engine, config: FlamingoConfig, specs: dict[str, GraphSpec], cache: MediaCache
    ) -> None:
        self._engine, self._config, self._specs, self._cache = engine, config, specs, cache

    def read(self, visuals: Sequence[Image | Video], timer: StageTimer) -> list[VisualMedia]:
        """The media of each visual, in order; equal ones are encoded once. Stages: images (the time that decoding is
        waited for), vision, resampler. Raises `DataError` for the first that cannot be read."""
        unique = list({id(visual): visual for visual in visuals}.values())
        keys: dict[int, bytes] = {}
        found: dict[bytes, VisualMedia] = {}
        features: dict[bytes, np.ndarray] = {}
        waiting: dict[bytes, np.ndarray] = {}  # pixel values
        with timer.stage("images"):
            pass  # a prompt without pictures has waited 0 milliseconds
        if unique:
            # So has one whose pictures are all in the cache, for the encoder.
            timer.milliseconds |= {stage: timer.milliseconds.get(stage, 0.0) for stage in ("vision", "resampler")}
        with closing(_decoded(unique, self._config)) as decoded:
            for visual in unique:
                with timer.stage("images"):
                    key, pixels = next(decoded)
                keys[id(visual)] = key
                known = self._cache.get(key)
                if known is not None:
                    found[key] = known
                elif key not in features:
                    waiting[key] = pixels
                # Batches are the same in every run: sums in another order would round differently.
                if sum(map(len, waiting.values())) >= ENCODED_AT_ONCE or visual is unique[-1]:
                    arrays = encode_frames(self._engine, self._specs, list(waiting.values()), timer)
                    features.update(zip(waiting, arrays, strict=True))
                    waiting.clear()
        media = resample(self._engine, self._specs, list(features.values()), timer)
        for key, encoded in zip(features, media, strict=True):
            self._cache.put(key, encoded)
            found[key] = encoded
        return [found[keys[id(visual)]] for visual in visuals]


def _decoded(visuals: Sequence[Image | Video], config: FlamingoConfig) -> Iterator[tuple[bytes, np.ndarray]]:
    """Each visual's key and pixel values, in order, decoded in threads. Leaves no thread behind when it is closed."""
    if len(visuals) == 1:  # a thread would only take time to start
        yield _decode(visuals[0], config)
        return
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="flamingo-rt-pictures")
    try:
        running: deque[Future[tuple[bytes, np.ndarray]]] = deque()
        for visual in visuals:
            running.append(pool.submit(_decode, visual, config))
            if len(running) == AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(visual: Image | Video, config: FlamingoConfig) -> tuple[bytes, np.ndarray]:
    """The key of a visual's content, and its pixel values float32 [F, 3, H, W]."""
    alone = isinstance(visual, Image) and isinstance(visual.source, (str, os.PathLike, bytes, np.ndarray))
    with nullcontext() if alone else _ONE_AT_A_TIME:
        pixels = visual_pixels(visual, config)
    return hashlib.blake2b(pixels, digest_size=32).digest(), pixels
