"""ONNX files of other people's image encoders, with weights inside or beside them, as ``import encoder`` reads them."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from made_encoders import FORMS, PREPROCESSING, SIDE, Encoder, encoder_graph, with_weights_beside, written

from flamingo_rt.config import ExternalVisionConfig
from flamingo_rt.importing.external_encoder import import_encoder
from flamingo_rt.training.parts import open_vision_part

from ..kind import MEGABYTE, Kind, Seeds, WrongAnswer
from ..mutators import protobuf, raw
from ..sandbox import Sandbox

GRAPH, WEIGHTS, OUT = "encoder.onnx", "weights.bin", "out"
PLACES = (b"../outside/x", b"/etc/passwd", b"..", b"", b"encoder.onnx", b"weights.bin\0")


def _seeds(folder: Path) -> Seeds:
    seeds = {}
    for form in FORMS:
        seeds[form] = written(folder / f"{form}.onnx", encoder_graph(Encoder(form))).read_bytes()
    seeds["beside"] = with_weights_beside(folder / "beside.onnx", encoder_graph(Encoder()), WEIGHTS).read_bytes()
    seeds[WEIGHTS] = (folder / WEIGHTS).read_bytes()
    return seeds


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    content, weights = seeds[rng.choice((*FORMS, "beside", "beside"))], seeds[WEIGHTS]
    chance = rng.random()
    if chance < 0.15:
        content = raw.splice(rng, content, seeds[rng.choice(FORMS)])
    elif chance < 0.25:
        content = protobuf.replaced(content, WEIGHTS.encode(), rng.choice(PLACES))
    elif chance < 0.3:
        weights = raw.cut(rng, weights)
    else:
        content = protobuf.mutate(rng, content)
    (sandbox.input / GRAPH).write_bytes(content)
    (sandbox.input / WEIGHTS).write_bytes(weights)


def _run(sandbox: Sandbox) -> ExternalVisionConfig:
    out = sandbox.input / OUT
    try:
        config = import_encoder(sandbox.input / GRAPH, out, SIDE, PREPROCESSING)
    except BaseException:
        if out.exists():
            raise WrongAnswer(f"{OUT} was written of a graph that is refused") from None
        raise
    if open_vision_part(out).config != config:
        raise WrongAnswer("what was written is read as another encoder")
    shutil.rmtree(out)  # nothing else may be left
    return config


ENCODERS = Kind("encoders", _seeds, _write, _run, memory=900 * MEGABYTE, seconds=20, first=60)
