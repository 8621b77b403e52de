"""Commands that ended in a traceback, hung, or answered what was not asked."""

from __future__ import annotations

import json
import os

from ..kind import Case, Seeds
from ..sandbox import Sandbox

ARGUMENTS = "arguments.json"


def write_arguments(sandbox: Sandbox, seeds: Seeds, arguments: list[str]) -> None:
    """Arguments, and what they may name: a picture, a clip, a compiled prompt, and things that are no such files."""
    top = sandbox.input
    for name, content in seeds.items():
        (top / name).write_bytes(content)
    (top / "text.txt").write_text("just text\n")
    (top / "empty").touch()
    (top / "folder").mkdir()
    (top / "folder" / "photo.png").write_bytes(b"")  # a folder of the user's, which nothing replaces
    (top / "loop").symlink_to("loop")
    os.mkfifo(top / "pipe")
    (top / ARGUMENTS).write_text(json.dumps(arguments))


def _case(name: str, *arguments: str, refused: bool | None = True, files: dict[str, bytes] | None = None) -> Case:
    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        write_arguments(sandbox, seeds, list(arguments))
        for file, content in (files or {}).items():
            (sandbox.work / file).parent.mkdir(parents=True, exist_ok=True)
            (sandbox.work / file).write_bytes(content)

    return Case(name, write, refused)


_PICTURE = ("--image", "input/picture.png")
_ASK = ("infer", *_PICTURE, "--threads", "1", "--max-new-tokens", "2")
_COMPILE = ("prompt", "compile", "--shot", "input/picture.png", "x", "--threads", "1")
_SOURCES = ("import", "openflamingo", "--checkpoint", "x", "--vision", "x", "--language", "x", "--out", "out")
_PATH_OPTIONS = (
    ("image", ("infer", "--image")), ("video", ("infer", "--video")), ("prompt file", (*_ASK, "--prompt-file")),
    ("model", (*_ASK, "--model")), ("out of prompt", (*_COMPILE, "--out")), ("checkpoint", (*_SOURCES, "--checkpoint")),
    ("vision", (*_SOURCES, "--vision")), ("language", (*_SOURCES, "--language")),
    ("out of import", (*_SOURCES, "--out")),
    ("tokenizer", (*_SOURCES, "--tokenizer")), ("ckpt", ("export", "--out", "out", "--ckpt")),
    ("out of export", ("export", "--ckpt", "x", "--out")), ("out of train",
                                                            ("train", "flamingo", "--steps", "1", "--out")),
    ("start from", ("train", "flamingo", "--steps", "1", "--out", "out", "--start-from")),
    ("plot", ("bench", "--runs", "1", "--plot")), ("work", ("bench", "--preset", "tiny", "--work")),
    ("model of bench", ("bench", "--model")), ("model of build", ("build", "--model")),
    ("calibration", ("export", "--ckpt", "x", "--out", "out", "--quantize", "int4", "--calibration")),
)
CASES = (
    *(_case(f"NUL in {name}", *arguments, "a\x00b") for name, arguments in _PATH_OPTIONS),
    *(_case(f"name of 300 characters in {name}", *arguments, "a" * 300) for name, arguments in _PATH_OPTIONS
      if name not in ("plot", "work")),
    _case("question without a picture", "infer", "--question", "Is it red?", "--threads", "1", refused=None),  # a hint
    _case("choices with semicolons", *_ASK, "--choices", "yes;no"),
    _case("200 threads", *_ASK[:3], "--threads", "200", "--max-new-tokens", "2", refused=None),
    _case("training that does not fit into memory", "train", "flamingo", "--preset", "flamingo-3b", "--out", "out"),
    _case("thousand questions about each picture", "train", "flamingo", "--questions", "1000", "--steps", "1", "--out",
          "out"),
    _case("picture that never ends", "infer", "--image", "/dev/zero"),
    _case("pipe as a picture", "infer", "--image", "input/pipe"),
    _case("pipe as a clip", "infer", "--video", "input/pipe"),
    *(_case(f"{what} as an output", "prompt", "compile", "--shot", "input/picture.png", "x", "--out", f"input/{what}",
            "--threads", "1", "--overwrite") for what in ("pipe", "loop")),
    _case("pipe as a prompt", *_ASK, "--prompt-file", "input/pipe"),
    _case("pipe as a model", *_ASK, "--model", "input/pipe"), _case("link to itself", "infer", "--image", "input/loop"),
    _case("request as a clip", "infer", "--video", "http://127.0.0.1:9/clip.mp4"),
    _case("name that a terminal obeys", "infer", "--image", "\x1b]52;c;aGFjaw==\x07"),
    _case("name that is not UTF-8", "infer", "--image", "\udcff"),
    _case("prompt that a terminal obeys", *_ASK, "--choices", "\x1b[2J,\x1b]52;c;aGFjaw==\x07", refused=None),
    _case("numpy of the current folder", *_ASK, refused=False,
          files={"numpy/__init__.py": b"open('../outside/ran', 'w')\n"}),
    _case("partial file of the user's own", *_COMPILE, "--out", "out", refused=False,
          files={".out.partial": b"of the user's own\n"}),
)
