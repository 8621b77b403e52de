"""The command line: combinations of options that the commands themselves list, with hostile values."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import click

from flamingo_rt.cli import cli, main

from ..corpus.command_line import ARGUMENTS, CASES, write_arguments
from ..kind import MEGABYTE, Kind, Seeds
from ..mutators import json_text
from ..sandbox import OUTPUT, Sandbox

NUMBERS = ("0", "-1", "1", "2", "nan", "inf", "-inf", "1e400", "9" * 30, "", "x", "1.5", "0x10", "1_000", "٣", "\x00",
           "1e-320")
# Inputs, among them devices that never end, a pipe that nobody writes to, and links in a circle.
READ = ("input/picture.png", "input/clip.avi", "input/bundle", "input/empty", "input/folder", "input/text.txt",
        "input/pipe",
        "input/loop", "input/missing", "/dev/zero", "/dev/null", "/dev/full", "", ".", "/", "a" * 300, "a/" * 3000,
        "\x00",
        "input/picture.png\x00", "\udcff", "input/picture.png/x", "\x1b]52;c;aGFjaw==\x07", "\u202egnp.exe", "-", "--",
        "~",
        "http://127.0.0.1:9/x.mp4", "input/\x1b[2J.png", "$x$", "\n")
# Data to train on. No folder is so large that looking for pictures in it takes long.
SOURCES = ("input/picture.png", "input/folder", "input/empty", "input/text.txt", "input/pipe", "input/loop", "scenes",
           "input/missing", "input/missing-{0..3}.tar", "input/folder,kind=pages", "input/text.txt,tokens=9",
           "input/folder,tokens=0", "a,b=c", "", ",", "\x00", "\x1b[2J", "\udcff", "a" * 300 + ".tar",
           "{0..99999999}.tar", "/dev/zero")
# Outputs. None is outside the working folder, where a command may well write what it is asked to.
WRITTEN = (OUTPUT, f"{OUTPUT}/deep/er", f"{OUTPUT}.svg", f"{OUTPUT}.html", "", ".", "out\x00", "o" * 300,
           "out/" * 2000, "out\udcff",
           "out\x1b[2J", "input/text.txt/out", "input/folder", "input/loop", "input/pipe", "out\n")
CHEAP = {"bench": ["--runs", "1", "--warmup", "0", "--tokens", "1", "--seconds", "0.01", "--shots", "0", "--batch", "1",
                   "--context", "64"], "train": ["--steps", "1"]}


def _commands(group: click.Group, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*names, name))
        elif command is not None:
            yield (*names, name), command


def _seeds(folder: Path) -> Seeds:
    import PIL.Image

    from .clips import CLIPS
    from .models import PICTURE
    from .prompts import PROMPTS

    (folder / "prompts").mkdir()
    PIL.Image.fromarray(PICTURE).save(folder / "picture.png")
    return {
        "picture.png": (folder / "picture.png").read_bytes(), "clip.avi": CLIPS.seeds(folder)["still.avi"],
        "shots.prompt": PROMPTS.seeds(folder / "prompts")["shot"],
    }


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    found = dict(_commands(cli))
    names = rng.choice([name for name in sorted(found) for _ in range(6 if name[0] in ("infer", "prompt") else 2)])
    if names[0] in ("bench", "doctor") and rng.random() < 0.6:  # the slow ones
        names = ("infer",)
    command = found[names]
    options = [option for option in command.params if isinstance(option, click.Option) and not option.is_eager]
    arguments: list[str] = []
    if names == ("infer",) and rng.random() < 0.7:
        arguments += rng.choice((["--image", "input/picture.png"], ["--prompt", "Output:"],
                                 ["--video", "input/clip.avi"]))
        arguments += ["--max-new-tokens", "2", "--threads", "1"]
    if names == ("prompt", "compile") and rng.random() < 0.7:
        arguments += ["--shot", "input/picture.png", "x", "--out", OUTPUT, "--threads", "1"]
    if names == ("data", "check") and rng.random() < 0.9:
        arguments.append(rng.choice(SOURCES))
    for option in rng.sample(options, min(len(options), rng.choice((0, 1, 1, 2, 3, 6)))):
        arguments.append(rng.choice((*option.opts, *option.secondary_opts)))
        if not option.is_flag:
            arguments += [_value(rng, option, names) for _ in range(option.nargs)]
    required = [option for option in options if option.required and not set(option.opts) & set(arguments)]
    for option in required if rng.random() < 0.8 else ():
        arguments += [option.opts[0], *(_value(rng, option, names) for _ in range(option.nargs))]
    if rng.random() < 0.05:
        arguments.insert(rng.randrange(len(arguments) + 1), rng.choice(("--nonsense", "\x00", "\x1b[2J", "", "--",
                                                                        "-h", "x" * 9999)))
    write_arguments(sandbox, seeds, [*names, *arguments, *CHEAP.get(names[0], [])])


def _value(rng: Random, option: click.Option, names: tuple[str, ...]) -> str:
    kind, about = option.type, f"{option.name} {option.metavar or ''}"
    if isinstance(kind, click.Choice) and rng.random() < 0.7:
        return rng.choice(list(kind.choices))
    if "out" in option.name or option.name in ("plot", "work", "sheet"):
        return rng.choice(WRITTEN)
    if any(word in about for word in ("FILE", "FOLDER", "BUNDLE", "path")):
        valid = "input/shots.prompt" if option.name == "prompt_file" else "input/picture.png"
        return rng.choice(READ) if rng.random() < 0.85 else valid
    if isinstance(kind, (click.types.IntParamType, click.types.FloatParamType)):
        if option.name in ("steps", "scenes"):
            return rng.choice(("1", "0", "-1", "x", ""))
        if names[0] == "bench":
            return rng.choice([number for number in NUMBERS if not number.startswith("9")])
        return rng.choice(NUMBERS)
    return rng.choice((*json_text.TEXTS, *NUMBERS, "yes,no", ",", "yes;no", "tiny", "ort", "auto", "x|y"))


def _run(sandbox: Sandbox) -> None:
    arguments = json.loads((sandbox.input / ARGUMENTS).read_text())
    (sandbox.work / "input").symlink_to(sandbox.input)
    kept = sys.argv
    sys.argv = ["flamingo-rt", *arguments]
    try:
        main()
        raise SystemExit(0)
    finally:
        sys.argv = kept
        os.unlink(sandbox.work / "input")


COMMAND_LINE = Kind(
    "command line", _seeds, _write, _run, CASES, commands=True, memory=1600 * MEGABYTE, seconds=30, first=70, share=2.0
)
