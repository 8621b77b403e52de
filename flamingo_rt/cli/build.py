"""``flamingo-rt build``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flamingo_rt.cli.interrupts import on_interrupt
from flamingo_rt.cli.numbers import count
from flamingo_rt.cli.paths import READ
from flamingo_rt.cli.progress_bar import ProgressBar
from flamingo_rt.cli.verify import lines, report, verified
from flamingo_rt.errors import DataError, DependencyError
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.bundle import Bundle
    from flamingo_rt.engines.tensorrt.builder import Destination
    from flamingo_rt.engines.tensorrt.engine_files import EngineFolder
    from flamingo_rt.engines.tensorrt.versions import TensorRT
    from flamingo_rt.runtime.verification import Verification

COUNT = count()


def _numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Read ``86,89`` or ``8.6,8.9`` as numbers without a point."""
    numbers = tuple(part.strip().replace(".", "") for part in text.split(",")) if text is not None else ()
    if any(not re.fullmatch(r"\d{2,3}", number) for number in numbers):
        raise click.BadParameter(f"{text!r} is not a list of compute capabilities, such as 86,89,120")
    return numbers


@click.command()
@click.option("--model", required=True, type=READ, metavar="BUNDLE",
              help="A bundle exported with --lowering tensorrt or tensorrt-classic.")
@click.option("--target", required=True, type=click.Choice(["tensorrt", "tensorrt-rtx"]),
              help="The library that runs the engines.")
@click.option("--compute-capability", "numbers", callback=_numbers, metavar="LIST",
              help="Ahead of time, on a machine without these GPUs: such as 86,89,120 (tensorrt-rtx).")
@click.option("--max-batch", type=COUNT, help="Rows of a batch, or beams, at most. Default: 4.")
@click.option("--max-tokens", type=COUNT,
              help="New tokens of a row at once, at most: a longer prompt is refused. Default: 1024, or the capacity.")
@click.option("--max-visuals", type=COUNT, help="Pictures and clips of a row, at most. Default: the model's limit.")
@click.option("--max-frames", type=COUNT, help="Frames of a clip, at most. Default: the model's limit, or 8.")
@click.option("--capacity", type=COUNT, help="Tokens that a row's cache holds. Default: the model's context.")
@click.option("--version-compatible", is_flag=True,
              help="Build engines that later versions with the same major number can run too.")
@click.option("--weight-stripped", is_flag=True,
              help="Build engines without weights, which are then read from the graphs.")
@click.option("--estimate", is_flag=True, help="Say how much memory it takes, and build nothing.")
@click.option("--verify/--no-verify", "verifying", default=True, show_default=True,
              help="Compare the engines' outputs with the reference outputs in the bundle, where they run here.")
@click.option("--force", is_flag=True, help="Build even when there seems to be too little memory.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: folder, bytes, what the engines are for.")
def command(
    model: Path, target: str, numbers: tuple[str, ...], max_batch: int | None, max_tokens: int | None,
    max_visuals: int | None, max_frames: int | None, capacity: int | None, version_compatible: bool,
    weight_stripped: bool, estimate: bool, verifying: bool, force: bool, as_json: bool,
) -> None:
    """Compile a bundle's graphs into engines, which are kept in the bundle.

    TensorRT compiles for the GPU of the machine it runs on; TensorRT-RTX also for others, without any GPU. Limits cost
    memory: the engines reserve room for the largest run. Engines that were there are replaced when all new ones are
    done. Those for the GPU of this machine are then verified, as by flamingo-rt verify; the exit code is 1 when their
    outputs deviate.

    \b
    Examples:
      flamingo-rt build --model bundle --target tensorrt --max-batch 1 --capacity 1024
      flamingo-rt build --model bundle --target tensorrt-rtx --compute-capability 86,89,120
    """
    from flamingo_rt.bundle import read_bundle
    from flamingo_rt.contract import GRAPHS, Limits
    from flamingo_rt.engines.gpu.nvidia_driver import find_gpu
    from flamingo_rt.engines.tensorrt.builder import Build, Destination
    from flamingo_rt.engines.tensorrt.engine_files import BuildOptions
    from flamingo_rt.engines.tensorrt.versions import import_tensorrt
    from flamingo_rt.system_memory import available_bytes, readable_bytes

    runtime = import_tensorrt(target)
    bundle = read_bundle(model)
    limits = Limits.of(bundle.config, max_batch, max_tokens, max_visuals, max_frames, capacity)
    destination = Destination.of(runtime, find_gpu(), numbers)
    build = Build(bundle, runtime, destination, limits, BuildOptions(version_compatible, weight_stripped))
    needs, available = build.memory(), available_bytes()
    click.echo(
        f"{runtime.title}: compiling takes about {readable_bytes(needs.building)} of memory"
        + (f", {readable_bytes(available)} are available" if available is not None else "")
        + f"; running, {readable_bytes(needs.running)}, of which the cache {readable_bytes(needs.cache)}, and what "
        "layers compute",
        err=True,
    )
    if estimate:
        if as_json:
            click.echo(json.dumps({"memory": vars(needs), "available": available}))
        return
    with on_interrupt(lambda: "no engine was written; those that were there are unchanged"):
        engines = build.run(ProgressBar(), force)
    sizes = {name: engines.engine_path(name).stat().st_size for name in GRAPHS}
    made_for = engines.device or f"compute capability {', '.join(engines.capabilities)}"
    if not as_json:
        size = sum(sizes.values()) / 1e6
        click.echo(f"wrote {printable(str(engines.path))} ({size:.1f} MB) for {printable(made_for)}")
    verification = _verified(bundle, engines, runtime, destination) if verifying else None
    if as_json:
        click.echo(json.dumps({
            "engines": str(engines.path), "bytes": sizes, "target": target, "version": runtime.version,
            "device": engines.device, "capabilities": engines.capabilities, "limits": vars(limits),
            "memory": vars(needs), "verification": verification and report(verification, bundle),
        }))
    else:
        for line in lines(verification, bundle, "tensorrt") if verification else ():
            click.echo(printable(line))
    if verification is not None and not verification.passed:
        other_type = "" if bundle.compute == "float32" else ", or export with --compute fp32 and build that bundle"
        click.echo(printable(
            f"the engines in {engines.path} do not compute what the exported graphs do; their answers may be wrong: "
            f"remove that folder, or build again with another version than {runtime.title}{other_type}"
        ), err=True)
        raise SystemExit(1)


def _verified(
    bundle: Bundle, engines: EngineFolder, runtime: TensorRT, destination: Destination
) -> Verification | None:
    """Compare engines that were just built with the bundle's reference outputs; None, and a line that says why, where
    that cannot be done here."""
    from flamingo_rt.engines.tensorrt.runner import TensorRtBackend

    command = f"flamingo-rt verify --model {bundle.path} --backend tensorrt"
    if bundle.reference is None:
        why = "the bundle has no reference outputs"
    elif destination.gpu is None:
        why = f"the engines are for another machine; there, run {command}"
    else:
        try:
            return verified(TensorRtBackend(bundle, engines, runtime), bundle)
        except (DataError, DependencyError) as error:  # the engines were written, even if they do not run here
            why = f"{error}; then run {command}"
    click.echo(printable(f"not verified: {why}"), err=True)
    return None
