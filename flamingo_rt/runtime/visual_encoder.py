"""From the pictures and clips of prompts to their media, the keys and values that the language model attends to.

Visuals are decoded in threads while others are encoded, each once; media of pictures seen before come from a cache, by
content. A visual in device memory is read in the thread that asks: its library knows by the thread which stream makes
it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import partial
from numbers import Integral

import numpy as np

from flamingo_rt.backend import Backend
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import ENCODED_AT_ONCE, FEATURES, PIXEL_VALUES, RESAMPLER, VISION_ENCODER, GraphSpec
from flamingo_rt.device_arrays import DeviceFrames
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.processing.preprocess import lies_on_device, visual_pixels
from flamingo_rt.processing.visuals import Image, PixelValues, Visual, is_array
from flamingo_rt.runtime.timing import StageTimer

# Pillow decodes without Python's lock. More threads would take the cores that the encoder works on.
THREADS = min(4, os.cpu_count() or 1)
AHEAD = 2 * THREADS  # visuals that are decoded, or being decoded, before they are asked for

# A decoder of clips has threads of its own, and an opened Pillow picture may stand in several places of a prompt.
_ONE_AT_A_TIME = threading.Lock()

# Of its content, or, in device memory, of the array's identity: that is good for one call, and not kept in the cache.
Key = bytes | int
Decoded = tuple[Key, np.ndarray | DeviceFrames]


class VisualEncoder:
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


# One visual: a tensor [Hx, L, d] for each media input of the language model.
VisualMedia = dict[str, np.ndarray]


def encode_visuals(
    backend: Backend, specs: dict[str, GraphSpec], pixels: Sequence[np.ndarray], timer: StageTimer
) -> list[VisualMedia]:
    """Keys and values of visuals given as pixel values [F, 3, H, W] each."""
    return resample(backend, specs, encode_frames(backend, specs, pixels, timer), timer)


def encode_frames(
    backend: Backend, specs: dict[str, GraphSpec], pixels: Sequence[np.ndarray] | Sequence[DeviceFrames],
    timer: StageTimer,
) -> list[np.ndarray]:
    """Features [F, S, Dv] of visuals given as pixel values [F, 3, H, W] each: their frames one after the other,
    `ENCODED_AT_ONCE` in a run. Those of one visual, which may lie in device memory, are read where they are."""
    if not pixels:
        return []
    spec = specs[VISION_ENCODER].output(FEATURES)
    frames = pixels[0] if len(pixels) == 1 else np.concatenate(pixels)
    features = np.empty(spec.resolve({"N": len(frames)}), dtype=spec.array_dtype)
    with timer.stage("vision"):
        for start in range(0, len(frames), ENCODED_AT_ONCE):
            run = slice(start, start + ENCODED_AT_ONCE)
            backend.bind(VISION_ENCODER, {PIXEL_VALUES: frames[run]}, {FEATURES: features[run]})()
    return np.split(features, np.cumsum([len(p) for p in pixels[:-1]]))


def resample(
    backend: Backend, specs: dict[str, GraphSpec], features: Sequence[np.ndarray], timer: StageTimer
) -> list[VisualMedia]:
    """Keys and values of visuals given as features [F, S, Dv] each: those with the same number of frames together,
    `ENCODED_AT_ONCE` in a run of the resampler."""
    spec = specs[RESAMPLER]
    by_frames: dict[int, list[int]] = defaultdict(list)
    for visual, array in enumerate(features):
        by_frames[len(array)].append(visual)
    encoded: dict[int, VisualMedia] = {}
    for visuals in _runs(by_frames.values()):
        stacked = np.stack([features[visual] for visual in visuals])  # [M, F, S, Dv]
        outputs = {out.name: np.empty(out.resolve({"M": len(visuals)}), dtype=out.array_dtype) for out in spec.outputs}
        with timer.stage("resampler"):
            backend.bind(RESAMPLER, {FEATURES: stacked}, outputs)()
        for position, visual in enumerate(visuals):
            encoded[visual] = {name: array[position] for name, array in outputs.items()}
    return [encoded[visual] for visual in range(len(features))]


def _runs(groups: Iterable[list[int]]) -> Iterator[list[int]]:
    for group in groups:
        for start in range(0, len(group), ENCODED_AT_ONCE):
            yield group[start : start + ENCODED_AT_ONCE]


def stack_rows(rows: Sequence[Sequence[VisualMedia]], resampler: GraphSpec) -> dict[str, np.ndarray]:
    """Media inputs [B, Hx, V * L, d] of a batch: each row's visuals in order, zeros where a row has fewer (at least one
    slot, since a graph cannot take none)."""
    slots = max(1, max(len(row) for row in rows))
    stacked = {}
    for spec in resampler.outputs:
        _, heads, latents, width = spec.shape
        array = np.zeros((len(rows), heads, slots * latents, width), dtype=spec.array_dtype)
        for index, row in enumerate(rows):
            for slot, media in enumerate(row):
                array[index, :, slot * latents : (slot + 1) * latents] = media[spec.name]
        stacked[spec.name] = array
    return stacked


DEFAULT_BYTES = 256 * 2**20  # some 40 pictures of OpenFlamingo-3B, more than a prompt holds


class MediaCache:
    """Media by a key of their picture's content, at most so many bytes: the least recently used is dropped. May be used
    from several threads."""

    def __init__(self, most_bytes: int = DEFAULT_BYTES) -> None:
        """Raises `UsageError` when ``most_bytes`` is no integer of 0 (keep nothing) or more."""
        if not isinstance(most_bytes, Integral) or most_bytes < 0:
            raise UsageError(f"image_cache_bytes is {most_bytes!r}; it must be an integer, 0 (off) or more")
        self._most, self._held = most_bytes, 0
        self._media: OrderedDict[bytes, VisualMedia] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> VisualMedia | None:
        """The media of a picture, the same numbers that were put; not to be written to."""
        with self._lock:
            if key in self._media:
                self._media.move_to_end(key)
            return self._media.get(key)

    def put(self, key: bytes, media: VisualMedia) -> None:
        """Keep a copy: what is given may be a part of a larger array, which would be kept with it."""
        size = _bytes_of(media)
        if size > self._most:
            return
        kept = {name: array.copy() for name, array in media.items()}
        for array in kept.values():
            array.setflags(write=False)
        with self._lock:
            if key in self._media:  # another thread was faster
                return
            self._media[key] = kept
            self._held += size
            while self._held > self._most:
                _, dropped = self._media.popitem(last=False)
                self._held -= _bytes_of(dropped)


def _bytes_of(media: VisualMedia) -> int:
    return sum(array.nbytes for array in media.values())
