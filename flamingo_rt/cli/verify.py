"""``flamingo-rt verify``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flamingo_rt.cli.backend_option import BackendChoice, backend_options
from flamingo_rt.cli.paths import READ
from flamingo_rt.cli.progress_bar import ProgressBar
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.backend import Backend
    from flamingo_rt.bundle import Bundle
    from flamingo_rt.runtime.model import Model
    from flamingo_rt.runtime.verification import Verification


@click.command()
@click.option("--model", "path", type=READ, metavar="BUNDLE", help="A bundle. Default: the model in the package.")
@backend_options()
@click.option("--ckpt", type=READ, metavar="FOLDER",
              help="With --backend torch: the checkpoint that the bundle was exported from.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: deviations, tolerances, tokens.")
def command(path: Path | None, chosen: BackendChoice, ckpt: Path | None, as_json: bool) -> None:
    """Compare what a backend computes on this machine with the reference outputs in a bundle.

    The reference is what the graphs computed where they were exported, for prompts without a picture, with one, with
    several and with a clip: outputs of each graph, and greedy answers. PyTorch is not needed. The exit code is 1 when a
    graph deviates by more than its tolerance, or an answer has another token and rounding does not explain it.

    \b
    Examples:
      flamingo-rt verify
      flamingo-rt verify --model bundle --backend tensorrt
      flamingo-rt verify --model bundle --backend torch --ckpt checkpoint --device cuda
    """
    from flamingo_rt.bundle import read_description
    from flamingo_rt.loading import PACKAGED_BUNDLE

    folder = path or PACKAGED_BUNDLE
    require_reference(read_description(folder))
    model = _loaded(folder, chosen, ckpt)
    bundle = read_description(folder)  # its files were verified by now
    verification = verified(model.backend, bundle)
    if as_json:
        click.echo(json.dumps({
            "model": bundle.config.name, "bundle": str(folder), "license": bundle.license, "source": bundle.source,
            "backend": model.backend.name, **report(verification, bundle),
        }))
    else:
        for line in lines(verification, bundle, model.backend.name):
            click.echo(printable(line))
    if not verification.passed:
        raise SystemExit(1)


def _loaded(folder: Path, chosen: BackendChoice, ckpt: Path | None) -> Model:
    """The model of a bundle, or of the checkpoint that it was exported from, on the torch backend: in the type of the
    bundle's graphs, whose tolerances count."""
    if ckpt is None:
        return chosen.load(folder, image_cache_bytes=0)
    if chosen.backend != "torch":
        raise UsageError("--ckpt goes with --backend torch: the other backends run the bundle")
    from flamingo_rt.bundle import DTYPE_OPTIONS, read_bundle

    bundle = read_bundle(folder)
    on_cpu = chosen.device in (None, "cpu")
    compute = chosen.compute or (None if on_cpu else DTYPE_OPTIONS[bundle.compute])
    model = replace(chosen, compute=compute).load(ckpt, image_cache_bytes=0)
    if model.config != bundle.config:
        raise DataError(f"{ckpt} is of another configuration than {folder}: give the checkpoint it was exported from")
    return model


def require_reference(bundle: Bundle) -> None:
    """Raise `DataError` for a bundle without reference outputs."""
    if bundle.reference is None:
        raise DataError(
            f"bundle {bundle.path} has no reference outputs to compare with: export the model again (flamingo-rt "
            f"export --ckpt CHECKPOINT --out BUNDLE); bundles with random weights have none"
        )


def verified(backend: Backend, bundle: Bundle) -> Verification:
    """Compare a backend with a bundle's reference outputs."""
    from flamingo_rt.runtime.reference_outputs import read_reference
    from flamingo_rt.runtime.verification import verify

    require_reference(bundle)
    assert bundle.reference is not None
    reference = read_reference(bundle.path / bundle.reference.file, bundle.config)
    with ProgressBar()("reference prompts", len(reference.prompts)) as advance:
        return verify(backend, bundle.config, reference, bundle.reference.tolerance, advance)


def report(verification: Verification, bundle: Bundle) -> dict[str, Any]:
    """The result for JSON. A deviation that is not a number is null."""
    graphs = {
        found.graph: {
            "deviation": found.deviation if found.deviation < float("inf") else None, "tolerance": found.tolerance,
            "where": found.where, "accepted": found.accepted, "parity": bundle.parity.get(found.graph),
            "rounding": (bundle.rounding or {}).get(found.graph),
        }
        for found in verification.graphs
    }
    return {
        "passed": verification.passed, "reference": bundle.reference and bundle.reference.origin, "graphs": graphs,
        "tokens": {"equal": verification.equal_tokens, "compared": verification.compared_tokens},
        "differences": [{**asdict(one), "accepted": one.accepted} for one in verification.differences],
        "left_out": list(verification.left_out),
    }


def lines(verification: Verification, bundle: Bundle, backend: str) -> Iterator[str]:
    """The result as text."""
    about = [f"model {bundle.config.name}", f"backend {backend}"]
    about += [f"{name} {text}" for name, text in (("license", bundle.license), ("source", bundle.source)) if text]
    yield ", ".join(about)
    yield f"reference: {bundle.reference.origin if bundle.reference else 'none'}"
    exported = bundle.parity or bundle.rounding
    yield f"{'graph':<16} {'deviation':>9} {'tolerance':>9}" + (f" {'PyTorch':>9}" if exported else "")
    for found in verification.graphs:
        # In half precision PyTorch itself deviates, by more than exporting does.
        beside = max(each.get(found.graph, 0.0) for each in (bundle.parity, bundle.rounding or {}))
        yield (
            f"{found.graph:<16} {found.deviation:>9.1e} {found.tolerance:>9.1e}"
            + (f" {beside:>9.1e}" if exported else "")
            + (
                "  not compared" if found.where is None else "  ok" if found.accepted
                else f"  beyond the tolerance: {found.where}"
            )
        )
    yield f"{verification.equal_tokens} of {verification.compared_tokens} greedy tokens are the reference's"
    for one in verification.differences:
        verdict = "rounding explains it" if one.accepted else "rounding does not explain it"
        yield (
            f"{one.where}: token {one.position + 1} is {one.found}, not {one.expected}; they are {one.margin:.1e} "
            f"apart in the reference: {verdict}"
        )
    if verification.left_out:
        yield f"beyond the engines' limits, so left out: {', '.join(verification.left_out)}"
    if not verification.passed:
        yield "not verified"
    else:
        yield "verified" if all(found.where is not None for found in verification.graphs) else "verified in part"
