"""``flamingo-rt prompt``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import click

from flamingo_rt.cli.backend_option import BackendChoice, backend_options
from flamingo_rt.cli.interrupts import saying_what_was_written
from flamingo_rt.cli.paths import READ, WRITTEN
from flamingo_rt.cli.shot_options import shot_options, shot_parts, split_shots
from flamingo_rt.errors import DataError
from flamingo_rt.printable import printable


@click.group()
def command() -> None:
    """Read shots once, for many queries.

    \b
    Example:
      flamingo-rt prompt compile --task caption --shot a.png "a red star" --out shots.prompt
    """


@command.command("compile")
@click.option("--model", "path", type=READ, metavar="FOLDER", help="A bundle. Default: the model in the package.")
@shot_options(required=True)
@click.option("--out", required=True, type=WRITTEN, metavar="FILE", help="The file to write.")
@backend_options()
@click.option("--overwrite", is_flag=True, help="Replace --out when it exists.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: file, bytes, tokens, pictures.")
def compile_shots(
    path: Path | None, shots: tuple[tuple[str, str], ...], task: str | None, out: Path,
    chosen: BackendChoice, overwrite: bool, as_json: bool,
) -> None:
    """Run a model over shots and keep what it remembers; infer --prompt-file then runs the query alone.

    The file belongs to one bundle: a bundle of another model, export or precision refuses it.

    \b
    Example:
      flamingo-rt prompt compile --task caption --shot a.png "a red star" --shot b.png "a heart" --out shots.prompt
    """
    examples = split_shots(shots, task)
    from flamingo_rt.files import check_file

    check_file(out, overwrite)
    with saying_what_was_written(out):
        model = chosen.load(path)
        state = model.prompt(shot_parts(model, examples, task))
        state.save(out, {
            "shots": [{"file": file, "sha256": _sha256(file), "text": text} for file, text in shots], "task": task,
        })
    size = out.stat().st_size
    if as_json:
        click.echo(json.dumps({"file": str(out), "bytes": size, "tokens": len(state), "pictures": len(shots)}))
        return
    count = f"{len(shots)} shot" + ("s" if len(shots) > 1 else "")
    click.echo(f"wrote {printable(str(out))}: {count}, {len(state)} tokens, {size / 1e6:.1f} MB")


def _sha256(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
