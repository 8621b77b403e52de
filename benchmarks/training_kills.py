"""Runs of ``flamingo-rt train flamingo`` that are killed again and again, and go on: are they as if nothing had been?

    python -m benchmarks.training_kills [--kills 20] [--steps 300] [--seed 0]

One run is left in peace. Another is killed (SIGKILL) at moments that the seed draws, from its first second on, and
resumed with 0, 1, 2 or 3 processes that draw data and with another time between saved states. Every line of its log,
those of steps that were lost and done again included, is compared with the unbroken run's, and the checkpoints at the
end byte by byte. Data: a folder of captions with flips and colours, few-shot documents, and scenes as they are drawn.
The last line is JSON, which is also written to ``benchmarks/results``. For POSIX systems.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.dated_result import RESULTS, write_result
from benchmarks.scene_folders import write_scene_folder
from benchmarks.starting_checkpoints import scene_tokenizer, sized, write_random_checkpoint
from flamingo_rt.child_process import child_environment, python_command
from flamingo_rt.config import ViTConfig
from flamingo_rt.training.config_file import options_text
from flamingo_rt.training.options import DataOptions, FlamingoOptions, RunOptions
from flamingo_rt.training.run_log import last_step, log_path, read_log
from flamingo_rt.training.state import state_path

WORKERS = (0, 1, 2, 3)
SAVE_SECONDS = (0.001, 0.2, 0.5, 1.0)  # 0.001: after every step
EARLY = 0.25  # share of kills that come before the first step
COMPARED = ("gradient_norm", "learning_rate", "tokens")  # of a log's line, beside losses and gates
WAIT = 600.0  # seconds after which a run that makes no step is given up


@dataclass(frozen=True)
class Attempt:
    """One part of the broken run: its processes that drew data, seconds between saved states, the step that the state
    held from which it went on, and the last step in the log when it ended."""

    workers: int
    save_seconds: float
    saved: int
    logged: int


@dataclass(frozen=True)
class Moment:
    """When to kill: ``seconds`` after the start of the process, or, with ``steps``, after its first step."""

    seconds: float
    steps: bool


def moments(kills: int, seed: int, startup: float, training: float) -> list[Moment]:
    """Moments of ``kills`` kills of a run that takes ``training`` seconds after a ``startup``. Those after the first
    step take about half of the training together, so that all of them come before its end."""
    drawn = random.Random(seed)
    early = [drawn.random() < EARLY for _ in range(kills)]
    longest = training / max(1, kills - sum(early))
    return [Moment(drawn.uniform(0, startup if each else longest), not each) for each in early]


def largest_difference(expected: Mapping[int, Mapping[str, Any]], lines: Iterable[Mapping[str, Any]]) -> float:
    """The largest relative difference of a number in ``lines`` of a log from the line ``expected`` of the same step:
    losses by dataset, gates, norm, learning rate, tokens. Infinite where a line has other entries or no partner, or a
    number that is none."""
    largest = 0.0
    for line in lines:
        other = expected.get(line["step"])
        one, two = _numbers(line), _numbers(other or {})
        if one.keys() != two.keys() or None in (*one.values(), *two.values()):
            return float("inf")
        for name, value in one.items():
            if value != two[name]:
                largest = max(largest, abs(value - two[name]) / max(abs(value), abs(two[name])))
    return largest


def _numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are compared; a number that is not finite is None in a log."""
    found = {name: line[name] for name in COMPARED if name in line}
    for group in ("loss", "scalars"):
        found |= {f"{group}.{name}": value for name, value in line.get(group, {}).items()}
    return found


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def start(config: Path, out: Path, workers: int, save_seconds: float, resume: bool) -> subprocess.Popen:
    """Start training in a process group of its own."""
    command = python_command(
        "flamingo_rt", "train", "flamingo", "--config", str(config), "--out", str(out), "--workers", str(workers),
        "--save-seconds", str(save_seconds), *(["--resume"] if resume else []),
    )
    return subprocess.Popen(command, env=child_environment(), stdout=subprocess.DEVNULL, start_new_session=True,
                            stderr=out.with_name(out.name + ".errors").open("w"))


def _log_identity(out: Path) -> tuple[int, int] | None:
    try:
        status = log_path(out).stat()
    except OSError:
        return None
    return status.st_ino, status.st_size


def kill_at(process: subprocess.Popen, out: Path, moment: Moment) -> int:
    """Kill the process and its children at the moment, or let it end before; gives its status."""
    before, begun = _log_identity(out), time.monotonic()
    if moment.steps:  # the log is replaced or grows with the first step
        while process.poll() is None and _log_identity(out) in (before, None):
            if time.monotonic() - begun > WAIT:
                break
            time.sleep(0.01)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment.seconds)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    status = process.wait()
    with contextlib.suppress(ProcessLookupError):  # processes that draw data end when they find that they are alone
        os.killpg(process.pid, signal.SIGKILL)
    return status


def finish(process: subprocess.Popen, out: Path) -> None:
    """Wait for a run's end. Ends the program with what the run said when it failed."""
    if process.wait() != 0:
        sys.exit(f"the run failed: {out.with_name(out.name + '.errors').read_text()[-2000:]}")


def prepare(work: Path, steps: int, pictures: int) -> Path:
    """Write checkpoint, data and the TOML file of the runs; gives the file."""
    config = sized("small", 64, 2, ViTConfig(image_size=32, patch_size=8, width=64, layers=2, heads=2, ff_width=128),
                   latents=8, resampler_layers=1)
    start_from = write_random_checkpoint(work / "start", config, scene_tokenizer(config, count=200).to_str())
    folder = write_scene_folder(work / "scenes", pictures, ("captions", "questions"))
    options = FlamingoOptions(
        run=RunOptions(steps=steps, learning_rate=1e-3, warmup_steps=10, schedule="cosine"),
        start_from=str(start_from), data=(
            DataOptions(str(folder), "captions", batch=8, augment=True, leading_space=0.5),
            DataOptions(str(folder), "few-shot", batch=4, weight=0.5, chunks=(2, 3)),
            DataOptions("scenes", batch=4, weight=0.2),
        ),
    )
    file = work / "train.toml"
    file.write_text(options_text(options))
    return file


def unbroken(config: Path, out: Path) -> tuple[float, float]:
    """Train without a kill; gives seconds before the first step's end, and from there to the end."""
    begun = time.monotonic()
    process = start(config, out, workers=1, save_seconds=1e6, resume=False)
    while process.poll() is None and not last_step(out):
        time.sleep(0.02)
    first = time.monotonic()
    finish(process, out)
    return first - begun, time.monotonic() - first


def broken(
    config: Path, out: Path, planned: Sequence[Moment], expected: Mapping[int, Mapping[str, Any]], seed: int
) -> tuple[list[Attempt], float]:
    """Train through all kills; gives its parts, and the largest difference of any line that was ever in the log."""
    drawn, attempts, largest = random.Random(seed + 1), [], 0.0
    for number, moment in enumerate([*planned, None]):
        workers, save_seconds = WORKERS[number % len(WORKERS)], drawn.choice(SAVE_SECONDS)
        saved = _saved_step(out)
        process = start(config, out, workers, save_seconds, resume=number > 0)
        if moment is None:
            finish(process, out)
        elif (status := kill_at(process, out, moment)) != -signal.SIGKILL:
            said = out.with_name(out.name + ".errors").read_text()[-2000:]
            sys.exit(f"the run ended with {status} before kill {number + 1}: take more --steps. {said}")
        lines = list(read_log(log_path(out))) if log_path(out).exists() else []
        difference = largest_difference(expected, lines)
        largest = max(largest, difference)
        logged = max((line["step"] for line in lines), default=0)
        attempts.append(Attempt(workers, save_seconds, saved, logged))
        what = "killed" if moment is not None else "ended"
        print(f"{number + 1:3}  workers {workers}  saved every {save_seconds:g} s  from step {saved}  {what} at "
              f"{logged}  difference {difference:.1e}", flush=True)
    return attempts, largest


def _saved_step(out: Path) -> int:
    try:
        return int(json.loads((state_path(out) / "run.json").read_text())["step"])
    except (OSError, ValueError, KeyError):
        return 0


def measure(work: Path, kills: int, steps: int, seed: int, pictures: int) -> dict[str, Any]:
    """Both runs, and how they differ."""
    config = prepare(work, steps, pictures)
    startup, training = unbroken(config, work / "unbroken")
    print(f"unbroken: {startup:.1f} s to the first step, {training:.1f} s for {steps} steps", flush=True)
    expected = {line["step"]: line for line in read_log(log_path(work / "unbroken"))}
    planned = moments(kills, seed, startup, training)
    attempts, difference = broken(config, work / "broken", planned, expected, seed)
    lines = list(read_log(log_path(work / "broken")))
    return {
        "largest_relative_difference": difference,
        "each_step_once": [line["step"] for line in lines] == list(range(1, steps + 1)),
        "checkpoints_equal": digests(work / "broken") == digests(work / "unbroken"),
        "startup_seconds": round(startup, 2), "training_seconds": round(training, 2),
        "attempts": [asdict(attempt) for attempt in attempts],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="default %(default)s")
    parser.add_argument("--steps", type=int, default=300, help="of the whole run; default %(default)s")
    parser.add_argument("--pictures", type=int, default=200, help="in the folder; default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = measure(Path(work), options.kills, options.steps, options.seed, options.pictures)
    settings = {"kills": options.kills, "steps": options.steps, "pictures": options.pictures, "seed": options.seed}
    print(f"{options.kills} kills: largest relative difference {found['largest_relative_difference']:.1e}, checkpoints "
          f"{'equal' if found['checkpoints_equal'] else 'DIFFERENT'}")
    path = write_result(options.results.absolute(), "training-kills", settings, found)
    print(json.dumps({"result": str(path), **{key: value for key, value in found.items() if key != "attempts"}}))


if __name__ == "__main__":
    main()
