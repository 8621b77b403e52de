"""The way of a picture through ``flamingo-rt infer``: short, and in one direction.

A function of the project is on the way when the picture goes through it, in any of its forms (path, `Image`, opened
file, Pillow image, pixel values, features, media): it returns or yields the picture, or it is given the picture and
calls a function that is on the way. Functions that are given the picture and only look at it (checks, its name in
messages, what its header says) are not on the way. It ends where the language model has read the prompt.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import numpy as np
import PIL.Image
import pytest

from flamingo_rt.bundle import read_bundle
from flamingo_rt.cli.infer import command
from flamingo_rt.contract import FEATURES, PIXEL_VALUES, VISION_ENCODER, graph_specs
from flamingo_rt.loading import PACKAGED_BUNDLE

ROOT = Path(__file__).parent.parent
SCENE = str(ROOT / "examples" / "scene.png")
MOST_FUNCTIONS, MOST_FILES = 20, 12
DEPTH = 7  # containers inside each other that are searched: batch, prompts, visuals, sources


@dataclass
class Call:
    """A call that has not returned yet: is it given the picture, and does it hand it to a function on the way?"""

    given: bool
    hands_on: bool = False


class PictureWay:
    """A profile function that notes the functions on the way of one picture, in the order of their first call."""

    def __init__(self) -> None:
        specs = graph_specs(read_bundle(PACKAGED_BUNDLE).config)
        vision = specs[VISION_ENCODER]
        self._endings = (vision.input(PIXEL_VALUES).shape[1:], vision.output(FEATURES).shape[1:])
        self._media = {output.name for output in specs["resampler"].outputs}
        self._calls: list[Call] = []
        self._entered: dict[tuple[str, str], int] = {}
        self._on_the_way: set[tuple[str, str]] = set()

    def functions(self) -> list[tuple[str, str]]:
        """(file, function) of each function on the way."""
        return sorted(self._on_the_way, key=lambda function: self._entered[function])

    def __call__(self, frame: FrameType, event: str, result: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or code.co_name.startswith("<") or not self._is_ours(code.co_filename):
            return
        function = (str(Path(code.co_filename).relative_to(ROOT)), code.co_name)
        if event == "call":
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            self._entered.setdefault(function, len(self._entered))
            self._calls.append(
                Call(any(self._carries(frame.f_locals.get(name)) for name in names if name not in ("self", "cls")))
            )
            return
        call = self._calls.pop()
        if (call.given and call.hands_on) or (not isinstance(result, str) and self._carries(result)):
            self._on_the_way.add(function)
            if self._calls:
                self._calls[-1].hands_on = True
        if function == ("flamingo_rt/runtime/decoder.py", "prefill"):
            sys.setprofile(None)
            for caller in reversed(self._callers(frame)):
                self._on_the_way.add(caller)

    def _callers(self, frame: FrameType) -> list[tuple[str, str]]:
        """The functions that have not returned when the way ends, and are given the picture."""
        found = []
        for call in reversed(self._calls):
            frame = self._next_of_ours(frame)
            if call.given:
                found.append((str(Path(frame.f_code.co_filename).relative_to(ROOT)), frame.f_code.co_name))
        return found

    def _next_of_ours(self, frame: FrameType) -> FrameType:
        while True:
            assert frame.f_back is not None
            frame = frame.f_back
            if self._is_ours(frame.f_code.co_filename) and not frame.f_code.co_name.startswith("<"):
                return frame

    @staticmethod
    def _is_ours(file: str) -> bool:
        return any(file.startswith(f"{ROOT / folder}/") for folder in ("flamingo_rt", "engines", "export"))

    def _carries(self, value: Any, depth: int = DEPTH) -> bool:
        """Whether a value is the picture in one of its forms, or holds it."""
        if isinstance(value, str):
            return value == SCENE
        if isinstance(value, np.ndarray):
            return any(value.shape[-len(ending) :] == ending for ending in self._endings)
        if isinstance(value, PIL.Image.Image) or getattr(value, "name", None) == SCENE:
            return True
        if isinstance(value, dict) and self._media & value.keys():
            return True
        return depth > 0 and any(self._carries(part, depth - 1) for part in _parts(value))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, FunctionType):  # a bound run of a graph
        yield from vars(value).values()
    elif is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, field.name) for field in fields(value))


@pytest.fixture(scope="module")
def way() -> list[tuple[str, str]]:
    """The functions that a picture goes through in ``infer`` on ONNX Runtime."""
    way = PictureWay()
    sys.setprofile(way)
    try:
        command.main(["--image", SCENE, "--backend", "ort", "--threads", "1"], standalone_mode=False)
    finally:
        sys.setprofile(None)
    return way.functions()


def test_a_picture_goes_through_few_functions_in_few_files(way) -> None:
    listed = "\n".join(f"{file}: {function}" for file, function in way)
    assert len(way) <= MOST_FUNCTIONS, listed
    assert len({file for file, _ in way}) <= MOST_FILES, listed


def test_the_way_leads_from_the_command_to_the_language_model(way) -> None:
    assert way[0] == ("flamingo_rt/cli/infer.py", "command")
    for file, function in (
        ("flamingo_rt/processing/prompt.py", "build_prompt"), ("flamingo_rt/processing/pictures.py", "open_picture"),
        ("flamingo_rt/processing/preprocess.py", "pixel_values"), ("flamingo_rt/runtime/visual_encoder.py", "encode"),
        ("engines/ort.py", "bind"), ("flamingo_rt/runtime/decoder.py", "prefill"),
    ):
        assert (file, function) in way


def test_the_encoder_and_the_decoder_do_not_go_back_to_reading_pictures() -> None:
    """Both get decoded visuals, and may import nothing of reading but the types."""
    for file in ("visual_encoder.py", "decoder.py"):
        tree = ast.parse((ROOT / "flamingo_rt" / "runtime" / file).read_text(encoding="utf-8"))
        imported = {
            alias.name
            for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
            for alias in node.names if (node.module or "").startswith("flamingo_rt.processing")
        }
        assert imported <= {"DecodedVisual", "Key", "PixelValues", "Visual", "lies_on_device"}
