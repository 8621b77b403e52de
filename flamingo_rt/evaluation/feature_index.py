"""Features of pictures by a bundle's own vision encoder, kept in a file: what RICES compares, on a device too.

A picture's feature is the mean of what the encoder gives for it, float32 [D] of length 1. The file is a numpy archive
(``.npz``) of features, of digests of the files that they are of, and of the identity of the bundle that gave them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.evaluation.task import Item
from flamingo_rt.evaluation.task_digest import file_digest
from flamingo_rt.evaluation.task_prompts import visual_of
from flamingo_rt.files import replacing_file
from flamingo_rt.processing.preprocess import decode_visuals
from flamingo_rt.runtime.model import Model
from flamingo_rt.runtime.timing import StageTimer
from flamingo_rt.runtime.visual_encoder import encode_frames

AT_ONCE = 16  # pictures that are decoded and encoded together
# The index is written again when a quarter and so many features were added to it: a run that is killed loses no more.
GROWTH, KEPT_AT_ONCE = 1.25, 1000


def encoder_features(
    model: Model, items: Sequence[Item], index: Path | None = None, on_batch: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """Features float32 [N, D] of the items' pictures, in their order.

    With ``index``, features that are in that file are taken from it, and the others are added to it. ``on_batch`` gets
    the number of items done since the last call. Raises `UsageError` for an item without a picture, and for an
    ``index`` with a model that is no bundle; `DataError` for an index that is damaged or another bundle's.
    """
    without = next((item.name for item in items if item.file is None), None)
    if without is not None:
        raise UsageError(f"item {without} has no picture to compare: choose shots in another way than rices")
    if index is not None and model.identity is None:
        raise UsageError("an index of features belongs to a bundle, and this is a checkpoint: export it, or leave the "
                         "index out")
    known = _read(index, model.identity, model.config.vision.width) if index is not None and index.exists() else {}
    written, content = len(known), cache(file_digest)
    digests = [content(item.file) for item in items if item.file is not None]
    missing = {digest: item for digest, item in zip(digests, items, strict=True) if digest not in known}
    on_batch(len(items) - len(missing))
    todo = list(missing.items())
    try:
        for start in range(0, len(todo), AT_ONCE):
            batch = todo[start : start + AT_ONCE]
            visuals = [visual for _, item in batch if (visual := visual_of(item)) is not None]
            pixels = [decoded.pixels for decoded in decode_visuals(visuals, model.config)]
            for (name, _), features in zip(batch, encode_frames(model.backend, pixels, StageTimer()), strict=True):
                mean = features.astype(np.float32).mean(axis=(0, 1))
                known[name] = mean / max(float(np.linalg.norm(mean)), 1e-12)
            on_batch(len(batch))
            if index is not None and len(known) > GROWTH * written + KEPT_AT_ONCE:
                _write(index, known, model.identity)
                written = len(known)
    finally:  # an interrupt, too, leaves what was computed
        if index is not None and len(known) > written:
            _write(index, known, model.identity)
    return np.stack([known[name] for name in digests])


def _read(path: Path, identity: str | None, width: int) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            features, digests, owner = archive["features"], archive["digests"], str(archive["identity"])
        sound = features.shape == (*digests.shape, width) and features.dtype == np.float32 and digests.ndim == 1
    except Exception as error:  # numpy raises anything at all for damaged bytes
        raise DataError(f"{path} is no index of features: {' '.join(str(error).split())[:200]}; delete it") from error
    if not sound or not np.isfinite(features).all():
        raise DataError(f"{path} is no index of features: its arrays do not fit together; delete it")
    if owner != identity:
        raise DataError(f"{path} has the features of another bundle's encoder: give another --index, or delete it")
    return dict(zip(map(str, digests), features, strict=True))


def _write(path: Path, known: dict[str, np.ndarray], identity: str | None) -> None:
    with replacing_file(path) as beside, beside.open("wb") as file:
        np.savez(file, features=np.stack(list(known.values())), digests=np.array(list(known)),
                 identity=np.array(identity or ""))
