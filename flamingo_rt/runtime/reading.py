"""From the pictures and clips of prompts to their media: decoded in threads while others are encoded, each once.

What lies in device memory is read in the thread that asks: its library knows by the thread which stream makes it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import partial

import numpy as np

from flamingo_rt.backend import Backend
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import ENCODED_AT_ONCE, GraphSpec
from flamingo_rt.device_arrays import DeviceFrames
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.processing.media import Image, PixelValues, Visual, is_array
from flamingo_rt.processing.visuals import lies_on_device, visual_pixels
from flamingo_rt.runtime.media import VisualMedia, encode_frames, resample
from flamingo_rt.runtime.media_cache import MediaCache
from flamingo_rt.runtime.timing import StageTimer

# Pillow decodes without Python's lock. More threads would take the cores that the encoder works on.
THREADS = min(4, os.cpu_count() or 1)
AHEAD = 2 * THREADS  # visuals that are decoded, or being decoded, before they are asked for

# A decoder of clips has threads of its own, and an opened Pillow picture may stand in several places of a prompt.
_ONE_AT_A_TIME = threading.Lock()

# Of its content, or, in device memory, of the array's identity: that is good for one call, and not kept in the cache.
Key = bytes | int
Decoded = tuple[Key, np.ndarray | DeviceFrames]


class VisualReader:
    """Reads and encodes visuals; what was encoded before is taken from a cache, by content."""

    def __init__(
        self, backend: Backend, config: FlamingoConfig, specs: dict[str, GraphSpec], cache: MediaCache
    ) -> None:
        self._backend, self._config, self._specs, self._cache = backend, config, specs, cache

    def read(self, visuals: Sequence[Visual], timer: StageTimer) -> list[VisualMedia]:
        """The media of each visual, in order; equal ones are encoded once. Stages: images (the time that decoding is
        waited for), vision, resampler. Raises `DataError` for the first that cannot be read, `UsageError` for pixel
        values in device memory where the backend reads none."""
        unique = list({id(visual): visual for visual in visuals}.values())
        self._check_places(unique)
        keys: dict[int, Key] = {}
        found: dict[Key, VisualMedia] = {}
        features: dict[Key, np.ndarray] = {}
        waiting: dict[Key, np.ndarray] = {}  # pixel values
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
                known = self._cache.get(key) if isinstance(key, bytes) else None
                if known is not None:
                    found[key] = known
                elif key not in features:
                    if isinstance(pixels, DeviceFrames):
                        features[key] = self._encode_in_place(visual, pixels, timer)
                    else:
                        waiting[key] = pixels
                # Batches are the same in every run: sums in another order would round differently.
                if sum(map(len, waiting.values())) >= ENCODED_AT_ONCE or visual is unique[-1]:
                    arrays = encode_frames(self._backend, self._specs, list(waiting.values()), timer)
                    features.update(zip(waiting, arrays, strict=True))
                    waiting.clear()
        media = resample(self._backend, self._specs, list(features.values()), timer)
        for key, encoded in zip(features, media, strict=True):
            if isinstance(key, bytes):
                self._cache.put(key, encoded)
            found[key] = encoded
        return [found[keys[id(visual)]] for visual in visuals]

    def _check_places(self, visuals: Sequence[Visual]) -> None:
        for visual in visuals:
            if isinstance(visual, PixelValues) and lies_on_device(visual) and not self._backend.reads_device_arrays:
                raise UsageError(
                    f"{visual.label} cannot be read by the {self._backend.name} backend, which computes in host memory:"
                    " give PixelValues(array.cpu()) (CuPy: array.get()), or load a backend that computes on the GPU "
                    "(flamingo-rt doctor says which work here)"
                )

    def _encode_in_place(self, visual: Visual, frames: DeviceFrames, timer: StageTimer) -> np.ndarray:
        """Features [F, S, Dv] of frames in device memory: alone, as others are not in the same piece of it."""
        try:
            return encode_frames(self._backend, self._specs, [frames], timer)[0]
        except ValueError as error:  # what a backend cannot read where it is
            raise DataError(f"{visual.label}: {error}; copy it to memory of its own (torch: clone())") from error


def _decoded(visuals: Sequence[Visual], config: FlamingoConfig) -> Iterator[Decoded]:
    """Each visual's key and pixel values, in order, decoded in threads. Leaves no thread behind when it is closed."""
    if len(visuals) == 1:  # a thread would only take time to start
        yield _decode(visuals[0], config)
        return
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="flamingo-rt-pictures")
    try:
        running: deque[Callable[[], Decoded]] = deque()
        for visual in visuals:
            work = partial(_decode, visual, config)
            running.append(work if lies_on_device(visual) else pool.submit(work).result)
            if len(running) == AHEAD:
                yield running.popleft()()
        while running:
            yield running.popleft()()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(visual: Visual, config: FlamingoConfig) -> Decoded:
    """The key of a visual, and its pixel values [F, 3, H, W]."""
    with nullcontext() if _may_run_beside(visual) else _ONE_AT_A_TIME:
        pixels = visual_pixels(visual, config)
    if isinstance(pixels, DeviceFrames):
        return id(pixels.array), pixels
    return hashlib.blake2b(pixels, digest_size=32).digest(), pixels


def _may_run_beside(visual: Visual) -> bool:
    if isinstance(visual, Image):
        return isinstance(visual.source, (str, os.PathLike, bytes)) or is_array(visual.source)
    return isinstance(visual, PixelValues)
