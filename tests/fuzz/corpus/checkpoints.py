"""Checkpoints whose configuration asks for more than there is: each took gigabytes, minutes or ended in an overflow."""

from __future__ import annotations

import json

from ..kind import Case, Seeds
from ..sandbox import Sandbox

FOLDER = "checkpoint"


def write_checkpoint(sandbox: Sandbox, files: dict[str, bytes]) -> None:
    """A checkpoint folder of files."""
    folder = sandbox.input / FOLDER
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _config(name: str, part: str, **changes: object) -> Case:
    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        config = json.loads(seeds["config.json"])
        if part:
            config[part] |= changes
        else:
            config |= changes
        write_checkpoint(sandbox, {**seeds, "config.json": json.dumps(config).encode()})

    return Case(name, write)


_HUGE = 10**18
CASES = (
    _config("language width of 10^18", "language", width=_HUGE),
    _config("head width of 10^18", "language", head_width=_HUGE),
    _config("vocabulary of 10^18", "language", vocab_size=_HUGE),
    _config("context of 10^18", "language", context=_HUGE),
    _config("pictures of 5,000 pixels a side", "vision", image_size=5000),
    _config("learnt positions of 10^10", "language", positions="learnt", context=10**10),
    _config("a million language layers", "language", layers=10**6),
    _config("a billion language layers", "language", layers=10**9),
    _config("a million resampler layers", "resampler", layers=10**6),
    _config("latents of 10^18", "resampler", latents=_HUGE), _config("frames of 10^18", "resampler", max_frames=_HUGE),
    _config("feed-forward of 10^18", "resampler", ff_multiplier=_HUGE),
    _config("a million blocks of a stage", "vision", depths=[10**6, 1]),
    _config("picture of 10^9 pixels a side", "vision", image_size=10**9),
    _config("a thousand stages", "vision", widths=[16] * 1000, depths=[1] * 1000, strides=[1] * 1000),
    _config("visuals of 10^18", "", max_visuals=_HUGE), _config("a number of 400 digits", "language", ff_width=10**400),
    _config("name that a terminal obeys", "language", norm="\x1b]52;c;aGFjaw==\x07"),
    _config("key that a terminal obeys", "language", **{"\x1b[2J": 1}),
)
