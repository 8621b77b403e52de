"""From pixel values to media: the keys and values that the language model's cross-attention reads.

Visuals come decoded, one after the other (`flamingo_rt.processing.preprocess.decode_visuals`), and are encoded in
batches while the next ones are decoded. Each content is encoded once; the media of content seen before come from a
cache.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import cast

import numpy as np

from flamingo_rt.backend import Backend
from flamingo_rt.contract import ENCODED_AT_ONCE, FEATURES, PIXEL_VALUES, RESAMPLER, VISION_ENCODER, GraphSpec
from flamingo_rt.device_arrays import DeviceFrames
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.processing.preprocess import DecodedVisual, Key, lies_on_device
from flamingo_rt.processing.visuals import PixelValues, Visual
from flamingo_rt.runtime.timing import StageTimer

# One visual: a tensor [Hx, L, d] for each media input of the language model.
VisualMedia = dict[str, np.ndarray]


class VisualEncoder:
    """Encodes decoded visuals; media of content that was encoded before are taken from a cache."""

    def __init__(self, backend: Backend, cache: MediaCache) -> None:
        self._backend, self._cache = backend, cache

    def check_places(self, visuals: Iterable[Visual]) -> None:
        """Raise `UsageError` for pixel values in device memory when the backend reads host memory."""
        if self._backend.reads_device_arrays:
            return
        for visual in visuals:
            if isinstance(visual, PixelValues) and lies_on_device(visual):
                raise UsageError(
                    f"{visual.label} cannot be read by the {self._backend.name} backend, which reads host memory:"
                    " give PixelValues(array.cpu()) (CuPy: array.get()), or load a backend that computes on the GPU "
                    "(flamingo-rt doctor says which work here)"
                )

    def encode(self, visuals: Iterator[DecodedVisual], timer: StageTimer) -> list[VisualMedia]:
        """The media of each visual, in order; equal ones are encoded once.

        Stages: images (the time spent waiting for decoded visuals), vision, resampler. Raises `DataError` for frames in
        device memory that the backend cannot read, and what ``visuals`` raises.
        """
        keys: list[Key] = []
        found: dict[Key, VisualMedia] = {}
        features: dict[Key, np.ndarray] = {}
        batch: dict[Key, np.ndarray] = {}  # pixel values
        while True:
            with timer.stage("images"):
                visual = next(visuals, None)
            if visual is not None:
                keys.append(visual.key)
                cached = self._cache.get(visual.key)
                if cached is not None:
                    found[visual.key] = cached
                elif visual.key not in features:
                    if isinstance(visual.pixels, DeviceFrames):
                        features[visual.key] = self._encode_in_place(visual, timer)
                    else:
                        batch[visual.key] = visual.pixels
            # Batches depend on the visuals and the cache, not on time: sums in another order would round differently.
            if sum(map(len, batch.values())) >= ENCODED_AT_ONCE or visual is None:
                features.update(zip(batch, encode_frames(self._backend, list(batch.values()), timer), strict=True))
                batch.clear()
            if visual is None:
                break
        if keys:  # an encoder that had nothing to do, because the cache had all, took no time
            timer.milliseconds |= {stage: timer.milliseconds.get(stage, 0.0) for stage in ("vision", "resampler")}
        for key, media in zip(features, resample(self._backend, list(features.values()), timer), strict=True):
            self._cache.put(key, media)
            found[key] = media
        return [found[key] for key in keys]

    def _encode_in_place(self, visual: DecodedVisual, timer: StageTimer) -> np.ndarray:
        """Features [F, S, Dv] of frames in device memory, in runs of their own, without other frames."""
        try:
            return encode_frames(self._backend, [visual.pixels], timer)[0]
        except ValueError as error:  # the backend cannot read this array where it is
            raise DataError(f"{visual.visual.label}: {error}; copy it to memory of its own (torch: clone())") from error


def encode_visuals(backend: Backend, pixels: Sequence[np.ndarray], timer: StageTimer) -> list[VisualMedia]:
    """Media of visuals given as pixel values [F, 3, H, W] each."""
    return resample(backend, encode_frames(backend, pixels, timer), timer)


def encode_frames(
    backend: Backend, pixels: Sequence[np.ndarray | DeviceFrames], timer: StageTimer
) -> list[np.ndarray]:
    """Features [F, S, Dv] of visuals given as pixel values [F, 3, H, W] each; their frames run one after the other,
    `ENCODED_AT_ONCE` at a time. Frames in device memory are given alone, and read where they are."""
    if not pixels:
        return []
    spec = backend.specs[VISION_ENCODER].output(FEATURES)
    frames = pixels[0] if len(pixels) == 1 else np.concatenate(cast("Sequence[np.ndarray]", pixels))
    features = np.empty(spec.resolve({"N": len(frames)}), dtype=spec.array_dtype)
    with timer.stage("vision"):
        for start in range(0, len(frames), ENCODED_AT_ONCE):
            run = slice(start, start + ENCODED_AT_ONCE)
            backend.bind(VISION_ENCODER, {PIXEL_VALUES: frames[run]}, {FEATURES: features[run]})()
    return np.split(features, np.cumsum([len(visual) for visual in pixels[:-1]]))


def resample(backend: Backend, features: Sequence[np.ndarray], timer: StageTimer) -> list[VisualMedia]:
    """Media of visuals given as features [F, S, Dv] each. Visuals with the same number of frames run together,
    `ENCODED_AT_ONCE` at a time."""
    spec = backend.specs[RESAMPLER]
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
        heads, latents, width = spec.resolve({"M": 1})[1:]
        array = np.zeros((len(rows), heads, slots * latents, width), dtype=spec.array_dtype)
        for index, row in enumerate(rows):
            for slot, media in enumerate(row):
                array[index, :, slot * latents : (slot + 1) * latents] = media[spec.name]
        stacked[spec.name] = array
    return stacked


DEFAULT_BYTES = 256 * 2**20  # some 40 pictures of OpenFlamingo-3B


class MediaCache:
    """Media by the key of their visual, up to ``most_bytes``; the least recently used are dropped first. Media of
    arrays in device memory, whose key is an identity, are not kept. May be used from several threads."""

    def __init__(self, most_bytes: int = DEFAULT_BYTES) -> None:
        """Raises `UsageError` unless ``most_bytes`` is an integer of 0 (keep nothing) or more."""
        given: object = most_bytes
        if not isinstance(given, Integral) or int(given) < 0:
            raise UsageError(f"image_cache_bytes is {most_bytes!r}; it must be an integer, 0 (off) or more")
        self._most = int(given)
        self._held = 0  # bytes
        self._media: OrderedDict[Key, VisualMedia] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> VisualMedia | None:
        """The media of a visual, read-only arrays with the numbers that were put; None when they are not there."""
        with self._lock:
            if key in self._media:
                self._media.move_to_end(key)
            return self._media.get(key)

    def put(self, key: Key, media: VisualMedia) -> None:
        """Keep a copy: the given arrays may be views that would keep a larger array alive."""
        size = _bytes_of(media)
        if size > self._most or not isinstance(key, bytes):
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
