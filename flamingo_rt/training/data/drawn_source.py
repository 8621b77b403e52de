"""The base of sources that are drawn when they are read: no file, and no end."""

from __future__ import annotations

from dataclasses import dataclass

from flamingo_rt.training.data.samples import FilePrint

COUNT = 1_000_000  # samples: an epoch that no run completes


@dataclass(frozen=True)
class DrawnSource:
    """A base of `SampleSource` classes whose samples are functions of the seed and their number."""

    seed: int

    def __len__(self) -> int:
        return COUNT

    @property
    def files(self) -> tuple[FilePrint, ...]:
        """See `SampleSource.files`: none."""
        return ()
