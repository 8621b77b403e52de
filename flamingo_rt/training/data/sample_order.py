"""The order of samples: a new permutation in each epoch, a function of the seed that needs no memory.

The permutation is a Feistel network with SplitMix64's finaliser as its round function, on the smallest square power of
two that holds all samples; a value beyond the last sample is permuted again until it falls inside.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

ROUNDS = 8
_64_BITS = (1 << 64) - 1


@dataclass(frozen=True)
class SampleOrder:
    """Which of ``count`` samples stands at a position, for the dataset with number ``dataset`` of a run.

    Positions 0 to count-1 are the first epoch, and hold each sample once; so do the next ``count`` ones.
    """

    count: int
    seed: int
    dataset: int = 0

    def index(self, position: int, attempt: int = 0) -> int:
        """The sample at ``position``, from 0. Further attempts give others of the same epoch, from far away in it, for
        a sample that cannot be used; ``count`` attempts give each sample once."""
        epoch, within = divmod(position, self.count)
        value = (within + attempt * _stride(self.count)) % self.count
        half = max(1, -(-(self.count - 1).bit_length() // 2))
        keys = self._keys(epoch)
        while True:
            value = _permuted(value, half, keys)
            if value < self.count:
                return value

    def _keys(self, epoch: int) -> list[int]:
        digest = hashlib.blake2b(f"{self.seed},{self.dataset},{epoch}".encode(), digest_size=8 * ROUNDS).digest()
        return [int.from_bytes(digest[start : start + 8], "little") for start in range(0, len(digest), 8)]


def _stride(count: int) -> int:
    """A step of about 0.6 of ``count`` that has no divisor in common with it: it reaches every place."""
    stride = max(1, count * 618 // 1000)
    while math.gcd(stride, count) > 1:
        stride += 1
    return stride


def _permuted(value: int, half: int, keys: list[int]) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return left << half | right


def _mixed(value: int) -> int:
    """SplitMix64's finaliser: each bit of the result depends on each bit of ``value``, an integer of 64 bits."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return value ^ (value >> 31)
