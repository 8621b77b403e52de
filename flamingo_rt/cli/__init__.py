"""The command line. Commands are loaded when they are called, and heavy libraries when they are needed."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys

import click

from flamingo_rt import __version__
from flamingo_rt.cli.paths import leave_gone_folder
from flamingo_rt.errors import FlamingoError
from flamingo_rt.printable import printable

# Command -> module and one line of help: `flamingo-rt --help` must not import the commands.
COMMANDS = {
    "infer": ("flamingo_rt.cli.infer", "Answer a prompt about pictures."),
    "prompt": ("flamingo_rt.cli.prompt", "Read shots once, for many queries."),
    "import": ("flamingo_rt.cli.importing", "Make a checkpoint from another project's files."),
    "bridge": ("flamingo_rt.cli.bridge", "Take a trained bridge alone, or join it with its frozen parts."),
    "export": ("flamingo_rt.cli.export", "Write a deployable bundle from a checkpoint."),
    "build": ("flamingo_rt.cli.build", "Compile a bundle's graphs for a GPU."),
    "verify": ("flamingo_rt.cli.verify", "Compare a backend's numbers with those of the export."),
    "train": ("flamingo_rt.cli.train", "Train a model."),
    "data": ("flamingo_rt.cli.data", "Make and check data for training."),
    "evaluate": ("flamingo_rt.cli.evaluate", "Measure how often a model is right."),
    "bench": ("flamingo_rt.cli.bench", "Measure a model here, against what the machine can do."),
    "describe": ("flamingo_rt.cli.describe", "Show a model's parts and parameters."),
    "doctor": ("flamingo_rt.cli.doctor", "Show what is installed and which backends work here."),
}

LONGEST_USAGE = 600  # characters of a usage error of click
LONGEST_MESSAGE = 4000  # characters of an error, which may quote an untrusted file


class _Commands(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(COMMANDS[name][0]).command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flamingo-rt")
def cli() -> None:
    """Train, export and run Flamingo vision-language models.

    \b
    Example:
      flamingo-rt infer --image photo.png
    """


def main() -> None:
    """Run the command line: errors with a remedy become one line on stderr and their exit code."""
    _prepare_process()
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        _show(error)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        said = str(error.__cause__ or error)  # click raises its own error from an interrupt
        click.echo(f"interrupted: {printable(said)}" if said else "interrupted", err=True)
        sys.exit(130)
    except FlamingoError as error:
        click.echo(f"flamingo-rt: {_shortened(printable(str(error), lines=True))}", err=True)
        sys.exit(error.exit_code)
    except MemoryError:
        click.echo("flamingo-rt: out of memory: use a smaller model, a shorter prompt or fewer pictures", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output is gone; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        click.echo(f"flamingo-rt: {printable(str(error), lines=True)}", err=True)
        sys.exit(1)


def _prepare_process() -> None:
    """Make output and signals safe for a command, show warnings, and leave a current folder that was removed."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a character shows "?" for it
            stream.reconfigure(errors="replace")
    for name in ("SIGTERM", "SIGHUP"):  # a closed terminal ends a command like Ctrl-C: nothing half-written is left
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    # Warnings are one line each on stderr; the library without this handler is silent.
    logging.getLogger("flamingo_rt").addHandler(logging.lastResort or logging.StreamHandler())
    leave_gone_folder()


def _show(error: click.ClickException) -> None:
    """Print a usage error of click, shortened and safe for a terminal: it may quote an option's value. Of several
    processes that torchrun started, the first prints it."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0":
        return
    message = _shortened(printable(error.format_message(), lines=True), LONGEST_USAGE)
    click.UsageError(message, getattr(error, "ctx", None)).show()


def _shortened(message: str, longest: int = LONGEST_MESSAGE) -> str:
    """The beginning and the end of a message that is too long for a screen."""
    return message if len(message) <= longest else f"{message[: longest // 2]} … {message[-longest // 4 :]}"
