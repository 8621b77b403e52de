"""Time of commands from process start to exit.

    python -m benchmarks.startup [--runs 10]

One run of each to warm the disk cache, then ``--runs`` of each in turn; median, fastest and slowest. The last line is
JSON.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import click
import onnxruntime

from flamingo_rt.child_process import child_environment, python_command

PICTURE = Path(__file__).parent.parent / "examples" / "scene.png"
COMMANDS = {"help": ["--help"], "infer": ["infer", "--image", str(PICTURE)]}


@click.command()
@click.option("--runs", default=10, show_default=True)
def main(runs: int) -> None:
    """Print a line for each command."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repetition in range(runs + 1):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            command = python_command("flamingo_rt", *arguments)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=child_environment())
            if repetition:
                seconds[name].append(time.perf_counter() - start)
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    print(f"{machine}, Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}, {runs} runs")
    for name, values in seconds.items():
        print(f"{name:<6} median {statistics.median(values):.3f} s   {min(values):.3f} to {max(values):.3f} s")
    print(json.dumps({name: round(statistics.median(values), 4) for name, values in seconds.items()}))


if __name__ == "__main__":
    main()
