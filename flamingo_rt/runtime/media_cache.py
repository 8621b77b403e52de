"""What has been computed of pictures, kept for when the same picture comes again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from numbers import Integral

from flamingo_rt.errors import UsageError
from flamingo_rt.runtime.media import VisualMedia

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
