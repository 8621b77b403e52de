"""Files of calibration prompts: a JSON list a line."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from flamingo_rt.export.quantization.calibration import read_prompts

from ..corpus.calibration import CASES, FILE
from ..kind import Kind, Seeds, WrongAnswer
from ..mutators import json_text, raw
from ..sandbox import Sandbox


def _seeds(folder: Path) -> Seeds:
    lines = [[{"image": "a.png"}, f"Output: a star {index}<|endofchunk|>"] for index in range(5)]
    return {"prompts.jsonl": "\n".join(map(json.dumps, lines)).encode()}


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    lines = seeds["prompts.jsonl"].split(b"\n")
    place = rng.randrange(len(lines))
    lines[place] = raw.mutate(rng, lines[place]) if rng.random() < 0.3 else json_text.mutate(rng, lines[place])
    text = b"\n".join(lines)
    (sandbox.input / FILE).write_bytes(raw.mutate(rng, text) if rng.random() < 0.1 else text)


def _run(sandbox: Sandbox) -> None:
    found = read_prompts(sandbox.input / FILE)
    if not found.measure or not found.calibrate:
        raise WrongAnswer("no prompts")


CALIBRATION = Kind("calibration", _seeds, _write, _run, CASES, first=300, share=0.3)
