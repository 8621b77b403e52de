"""Documents in memory as a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flamingo_rt.training.data.samples import DamagedSample, FilePrint, Said, Sample


@dataclass(frozen=True)
class TextList:
    """A `SampleSource` of texts; those that are None are damaged."""

    texts: Sequence[str | None]
    kind: Literal["text"] = "text"
    files: tuple[FilePrint, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def sample(self, index: int) -> Sample:
        text = self.texts[index]
        if text is None:
            raise DamagedSample(f"text {index}", "is damaged")
        return Sample(f"text {index}", (Said(text),))

    def fingerprint(self) -> str:
        return repr(list(self.texts))
