"""Sources of training data opened for tests, and what they hold in words."""

from __future__ import annotations

from pathlib import Path

from flamingo_rt.training.data.samples import DamagedSample, Said
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.options import DataOptions


def opened(source: object, **options):
    return open_source(DataOptions(str(source), **options))


def said(sample) -> list[str]:
    """Texts as they are, pictures and clips by their name in angle brackets, questions in brackets."""
    return [(part.text if part.learnt else f"[{part.text}]") if isinstance(part, Said) else f"<{part.name}>"
            for part in sample.segments]


def every(source) -> list[list[str]]:
    return [said(source.sample(index)) for index in range(len(source))]


def faults(source) -> list[str]:
    """Fault of each damaged sample."""
    found = []
    for index in range(len(source)):
        try:
            source.sample(index)
        except DamagedSample as error:
            found.append(str(error))
    return found


def every_whole(source) -> list[list[str]]:
    found = []
    for index in range(len(source)):
        try:
            found.append(said(source.sample(index)))
        except DamagedSample:
            continue
    return found


def shards(folder: Path, *contents: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        (folder / f"s-{number:02}.tar").write_bytes(content)
    return folder
