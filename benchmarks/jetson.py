"""Everything about a Jetson in one command, and one dated file to send back.

    python -m benchmarks.jetson --model BUNDLE             # on the board; exported elsewhere, as docs/jetson.md says

Each step is a process: ``flamingo-rt doctor``; then for each bundle ``describe`` (the memory planned), ``build``,
``verify``, ``bench``, and decoding for some seconds, whose tokens are set beside the energy that the board's own
sensors (INA3221) show: tokens per joule, of all that the board takes, and of what it takes beyond its rest. Power is
sampled during every step. A bundle for ONNX Runtime runs on the CPU.

Power mode (``nvpmodel -q``), clocks, temperatures, memory and swap are read before and after. A sensor or a program
that is missing, cannot be read or gives nonsense is named, and the rest runs; a step that crashes is a row. The file
is ``benchmarks/results/DATE-BOARD-jetson.jsonl``: a line about the board and one for each step, as `benchmarks.gpu_run`
writes. ``--root`` is where sysfs and procfs are, for a dry run elsewhere.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.comparison.machine_names import about_machine, slug
from benchmarks.gpu_run import Session
from benchmarks.gpu_steps.gpu_plan import DOCTOR, Step
from benchmarks.jetson_steps.board import about_board, power_mode
from benchmarks.jetson_steps.power import PowerLog, find_rails, whole_board
from flamingo_rt.bundle import Bundle, read_description
from flamingo_rt.child_process import python_command
from flamingo_rt.contract import LANGUAGE_MODEL
from flamingo_rt.engines.gpu.nvidia_driver import find_gpu
from flamingo_rt.errors import FlamingoError

HERE = Path(__file__).parent
CAPACITY, TOKENS = 1024, 512  # of the engines that are built: of a cache, and of a prefill
LEAST_ABOVE = 0.01  # share of the energy: less than that above rest is noise


class BoardSession(Session):
    """A session whose outcomes have the power of each rail meanwhile, and the tokens per joule of those that decoded.
    ``at_rest`` are watts by rail before anything runs."""

    def __init__(self, path: Path, about: dict[str, Any], seconds: float, power: PowerLog) -> None:
        super().__init__(path, about, seconds)
        self._power, self._began = power, time.monotonic()
        self.at_rest: dict[str, float] = {}

    def run(self, step: Step) -> dict[str, Any]:
        """See `Session.run`."""
        self._began = time.monotonic()
        return super().run(step)

    def add(self, step: str, system: str, records: Sequence[dict[str, Any]] = (), **more: Any) -> dict[str, Any]:
        """See `Session.add`."""
        if self._power.rails and "skipped" not in more:
            more["power"] = self._power.summary(self._began, time.monotonic())
        for record in records:
            if "decoded" in record:
                more["tokens_per_joule"] = tokens_per_joule(record["decoded"], self._power, self.at_rest)
        return super().add(step, system, records, **more)

    def rest(self, seconds: float) -> None:
        """Measure the power at rest."""
        if not self._power.rails:
            self.add("at rest", "", skipped="there are no power sensors")
            return
        self._began = time.monotonic()
        time.sleep(seconds)
        self.at_rest = self.add("at rest", "", seconds=seconds)["power"]["watts"]


def tokens_per_joule(decoded: Mapping[str, Any], power: PowerLog, at_rest: Mapping[str, float]) -> dict[str, Any]:
    """Tokens per joule of each rail while they were decoded, and of the whole board; ``above_rest`` without what it
    takes at rest. Raises nothing: where there is no figure, it says why."""
    seconds = decoded["end"] - decoded["start"]
    joules = power.joules(decoded["start"], decoded["end"])
    found: dict[str, Any] = {
        "tokens_per_second": decoded["tokens"] / seconds,
        "rails": {label: decoded["tokens"] / energy for label, energy in joules.items() if energy > 0},
    }
    label = whole_board(list(joules))
    if label is None or joules[label] <= 0:
        found["why_not"] = "no rail carries all that the board takes" if joules else "power was not read meanwhile"
        return found
    above = joules[label] - at_rest.get(label, 0.0) * seconds
    found |= {"rail": label, "watts": joules[label] / seconds, "whole": found["rails"].get(label)}
    known = label in at_rest and above > LEAST_ABOVE * joules[label]
    found["above_rest"] = decoded["tokens"] / above if known else None
    return found


def backend_of(bundle: Bundle, doctor: Mapping[str, Any]) -> tuple[str, str]:
    """The backend that runs a bundle here; or an empty name, and the reason."""
    lowering, backends = bundle.graphs[LANGUAGE_MODEL].lowering, doctor["backends"]
    wanted = ("ort-cuda", "ort") if lowering == "ort" else ("tensorrt",)
    for name in wanted:
        if backends[name]["works"] and not (name == "ort-cuda" and bundle.compute == "float32"):
            return name, ""
    return "", f"{lowering} graphs need the backend {wanted[-1]}: {backends[wanted[-1]]['detail']}"


def steps_of(
    path: Path, bundle: Bundle, backend: str, available: int | None, seconds: float, share: float
) -> list[Step]:
    """The steps of a bundle, each with its part of ``share`` percent of the budget."""
    model, run, context = ("--model", str(path)), ("--backend", backend), bundle.config.language.context
    limits = ("--max-batch", "1", "--capacity", str(min(CAPACITY, context)), "--max-tokens", str(min(TOKENS, context)))
    memory = ("--memory", f"{available}B") if available else ()
    device = ("--device", "cpu" if backend == "ort" else "jetson")
    amounts = ("--runs", "3", "--seconds", "15", "--batch", "1")
    commands = {
        "describe": (0.05, python_command("flamingo_rt", "describe", "--json", *model, *device, *memory)),
        "build": (0.4, python_command("flamingo_rt", "build", "--json", *model, "--target", "tensorrt", *limits)),
        "verify": (0.15, python_command("flamingo_rt", "verify", "--json", *model, *run)),
        "bench": (0.25, python_command("flamingo_rt", "bench", "--json", *model, *run, *amounts)),
        "decode": (0.15, python_command("benchmarks.jetson_steps.decoding", "--seconds", f"{seconds:g}", *model, *run)),
    }
    if backend != "tensorrt" or any(path.glob("engines/tensorrt-*/engine.json")):
        del commands["build"]
    return [Step(name, f"{path.name}, {backend}", command, part * share) for name, (part, command) in commands.items()]


def printed(outcomes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each step: what came of it, power and tokens per joule."""
    for each in outcomes:
        parts = [each["error"]] if "error" in each else [f"skipped: {each['skipped']}"] if "skipped" in each else []
        watts = each.get("power", {}).get("watts", {})
        parts += [f"{label} {value:.2f} W" for label, value in watts.items()]
        energy = each.get("tokens_per_joule")
        if energy:
            parts.append(f"{energy['tokens_per_second']:.1f} tokens/s")
            parts.append(f"no tokens per joule: {energy['why_not']}" if "why_not" in energy
                         else f"{energy['whole']:.2f} tokens per joule of {energy['rail']}")
        yield f"{each['step']}{', ' if each['system'] else ''}{each['system']}: {'; '.join(parts) or 'done'}"


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", required=True, metavar="BUNDLE", help="repeatable")
    parser.add_argument("--minutes", type=float, default=30.0, help="the whole budget; default %(default)s")
    parser.add_argument("--decode-seconds", type=float, default=20.0, help="default %(default)s")
    parser.add_argument("--rest-seconds", type=float, default=10.0, help="default %(default)s")
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="FOLDER", help="of sys, proc, etc; default /")
    parser.add_argument("--results", type=Path, metavar="FOLDER", default=HERE / "results", help="default: %(default)s")
    options = parser.parse_args(arguments)
    for name in ("minutes", "decode_seconds", "rest_seconds"):
        if not 0 < getattr(options, name) < 1e5:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}: give a number above 0")
    options.bundles = {}
    for path in options.model:
        try:
            options.bundles[path.resolve()] = read_description(path)
        except FlamingoError as error:
            parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    board, (rails, problems), gpu = about_board(options.root), find_rails(options.root), find_gpu()
    board["problems"] += problems
    board["rails"] = [rail.label for rail in rails]
    board["mode"] = power_mode(board.get("power_mode", ""))
    for problem in board["problems"]:
        print(f"not known: {problem}", flush=True)
    date, name = datetime.date.today().isoformat(), slug(board.get("board") or "unknown board")
    about = {"format": 1, "date": date, "machine": about_machine(), "gpu": asdict(gpu) if gpu else None, "board": board,
             "minutes": options.minutes}
    with PowerLog(rails) as power:
        session = BoardSession(options.results / f"{date}-{name}-jetson.jsonl", about, options.minutes * 60, power)
        session.rest(options.rest_seconds)
        doctors = session.run(DOCTOR)["records"]
        for path, bundle in options.bundles.items():
            backend, why = backend_of(bundle, doctors[0]) if doctors else ("", "doctor told nothing")
            if not backend:
                session.add("bundle", path.name, skipped=why)
                continue
            available = board.get("memory", {}).get("available")
            share = (100.0 - DOCTOR.share) / len(options.bundles)
            for step in steps_of(path, bundle, backend, available, options.decode_seconds, share):
                session.run(step)
        session.add("board after", "", [about_board(options.root)])
    print("\n".join(["", *printed(session.outcomes)]))
    failed = sum("error" in outcome for outcome in session.outcomes)
    print(json.dumps({"results": str(session.path), "steps": len(session.outcomes), "errors": failed,
                      "seconds": round(session.elapsed())}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
