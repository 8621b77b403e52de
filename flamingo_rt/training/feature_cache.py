"""Cache of what a frozen vision encoder gave for each picture and clip, on disk: a second epoch need not run it.

    DIR/<encoder, 16 hex digits>/<first two of the key>/<key>.npy    float16 [F, S, Dv], then a checksum of 4 bytes

The key is a hash of what was seen, the encoder's name one of its weights and settings, of the precision and of the kind
of device, so nothing stale is ever read. A file that is damaged or of another shape counts as missing, and is written
anew.

Which pictures are encoded together depends on what is in the cache already, and can change the last bit of a feature:
two runs that fill it in another order, for one with another number of workers, are the same up to rounding.
"""

from __future__ import annotations

import hashlib
import io
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError
from flamingo_rt.files import replacing_file
from flamingo_rt.training.data.samples import DamagedSample, Visual

_CHECKSUM_BYTES = 4
_HEADER_BYTES = 1000  # more than the header of any array of three dimensions takes


def as_stored(features: Tensor) -> Tensor:
    """Features as they come back from the cache: float16. A run that uses these also where the encoder has just run
    computes the same, up to rounding, when it is resumed with a fuller cache."""
    largest = torch.finfo(torch.float16).max
    return features.clamp(-largest, largest).to(torch.float16)


def content_key(visual: Visual, frames: int, fps: float) -> str:
    """A hash of what the encoder sees of a visual: its content and, of a clip, which frames are taken.

    Raises `DamagedSample` for a file that cannot be read.
    """
    digest = hashlib.sha256(f"{visual.kind} {frames} {fps!r} ".encode() if visual.kind == "video" else b"image ")
    content = visual.content
    if isinstance(content, np.ndarray):
        digest.update(f"{content.dtype} {content.shape} ".encode())
        digest.update(np.ascontiguousarray(content).data)
    elif isinstance(content, bytes):
        digest.update(content)
    else:
        try:
            with content.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise DamagedSample(visual.name, f"{content} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def encoder_identity(tensors: Mapping[str, Tensor], config: FlamingoConfig, computed: str) -> str:
    """A hash of the vision encoder's weights ``tensors``, its configuration and the preprocessing: 16 hex digits.

    Weights in another precision give other features, and another hash. ``computed`` says what else decides about the
    features: in which precision, and on which kind of device, the encoder runs.
    """
    return tensors_digest(tensors, f"{asdict(config.vision)} {asdict(config.preprocessing)} {computed}")


def tensors_digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """A hash of tensors, with their names, and of a text: 16 hex digits. The tensors' order does not count."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)} ".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


class FeatureCache:
    """Features of one encoder in a folder, which may hold those of others too.

    ``feature_shape``: the S features of a frame and their width Dv. At most ``most_bytes`` are in the folder, those of
    other encoders included; each of ``writers`` processes may add its share of what is free when it adds the first.
    ``say`` is told, once, when no more is added.
    """

    def __init__(
        self, folder: Path, identity: str, feature_shape: tuple[int, int], most_bytes: int, writers: int = 1,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Raises `DataError` where the folder cannot be made."""
        self.folder, self._own, self._feature_shape = folder, folder / identity, feature_shape
        self._most, self._writers, self._say = most_bytes, writers, say
        self._free: int | None = None  # bytes that this process may still add; not counted yet
        self._closed = False
        try:
            self._own.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot keep features in {folder}: {error.strerror or error}; choose another folder"
            ) from error

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self._own / key[:2] / f"{key}.npy"

    def read(self, key: str, frames: int) -> np.ndarray | None:
        """Features float16 [frames, S, Dv] of a key; None where there are none, or none that can be used."""
        shape = (frames, *self._feature_shape)
        most = _HEADER_BYTES + 2 * math.prod(shape) + _CHECKSUM_BYTES
        try:
            with self.path(key).open("rb") as file:
                content = file.read(most + 1)
        except OSError:
            return None
        return _parsed(content, shape) if len(content) <= most else None

    def write(self, key: str, features: Tensor) -> None:
        """Keep features [F, S, Dv] of a key, in place of what may be there. Those that hold NaN are not kept.

        A full disk is no error: as at the bound, no more is added, and `say` is told.
        """
        stored = as_stored(features.detach())
        if self._closed or bool(stored.isnan().any()):
            return
        content, path = _content(stored.cpu().numpy()), self.path(key)
        if self._free is None:
            self._free = (self._most - sum(map(_size, self.folder.rglob("*.npy")))) // self._writers
        more = len(content) - _size(path)
        if more > self._free:
            self._close(f"{self.folder} has its {self._most / 1e9:.3g} GB of features")
            return
        try:
            with replacing_file(path) as beside:
                beside.write_bytes(content)
        except DataError as error:
            self._close(str(error))
        else:
            self._free -= more

    def _close(self, reason: str) -> None:
        self._closed = True
        if self._say is not None:
            self._say(f"no more features are kept: {reason}")


def _content(features: np.ndarray) -> bytes:
    """A file's content, with its checksum."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(features), allow_pickle=False)  # an NFNet's are transposed
    return file.getvalue() + zlib.crc32(file.getvalue()).to_bytes(_CHECKSUM_BYTES, "little")


def _parsed(content: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array in a file's content, None unless it is whole and has this shape."""
    array, checksum = memoryview(content)[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if zlib.crc32(array).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        return None
    file = io.BytesIO(array)
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0(file) if version == (1, 0) else None
    except ValueError:
        return None
    if header != (shape, False, np.dtype(np.float16)) or len(array) - file.tell() != 2 * math.prod(shape):
        return None
    return np.frombuffer(array, np.float16, offset=file.tell()).reshape(shape).copy()


def _size(path: Path) -> int:
    """Bytes of a file, 0 where there is none: another process may be replacing it."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
