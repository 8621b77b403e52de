"""``flamingo-rt train``: three stages, each with every key of its options as an option of the command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flamingo_rt.cli.dependencies import needs_extra
from flamingo_rt.cli.interrupts import on_interrupt
from flamingo_rt.cli.paths import PATH_TEXT, READ, WRITTEN
from flamingo_rt.cli.training_progress import TrainingProgress
from flamingo_rt.cli.training_start import start_lines
from flamingo_rt.cli.training_stop import heeded_signals, left_line, stopped_line
from flamingo_rt.errors import FlamingoError, UsageError
from flamingo_rt.printable import printable
from flamingo_rt.training.config_file import OptionField, option_fields, options_text, read_options
from flamingo_rt.training.options import FlamingoOptions, LanguageOptions, VisionOptions
from flamingo_rt.training.stop_signals import RunStopped

if TYPE_CHECKING:
    from flamingo_rt.training.run_log import StepReport
    from flamingo_rt.training.sharding import World
    from flamingo_rt.training.stage import Stage

T = TypeVar("T")
Command = Callable[..., None]
WRITTEN_KIND = {VisionOptions: "vision", LanguageOptions: "language", FlamingoOptions: "flamingo"}  # of each stage


@click.group()
def command() -> None:
    """Train a model, in three stages.

    \b
    Example:
      flamingo-rt train vision   --data pairs.tar --out runs/vision
      flamingo-rt train language --data texts.txt --out runs/language
      flamingo-rt train flamingo --vision runs/vision --language runs/language --data pairs.tar --out runs/flamingo
    """


def _training_options(options: type) -> Callable[[Command], Command]:
    """Decorator that adds an option for every key of ``options``, and those of every run."""
    shared = (
        click.option("--config", type=READ, metavar="FILE", help="TOML file of keys; options count before it."),
        click.option("--data", multiple=True, metavar="SOURCE[,KEY=VALUE…]",
                     help="A dataset of the mixture, instead of the file's; may be given several times. Keys: "
                          "--print-config; a list's entries are joined by +, as in chunks=1+4."),
        click.option("--out", type=WRITTEN, metavar="FOLDER", help="Folder to write."),
        click.option("--resume", is_flag=True,
                     help="Go on with an unfinished run for the same --out; without one, start."),
        click.option("--overwrite", is_flag=True, help="Replace --out when it exists."),
        click.option("--print-config", is_flag=True, help="Print all keys as a TOML file, and do nothing."),
    )

    def decorate(function: Command) -> Command:
        added: list[Callable[[Command], Command]] = [*shared, *(_option(key) for key in option_fields(options))]
        for decorator in reversed(added):
            function = decorator(function)
        return function

    return decorate


def _option(key: OptionField) -> Callable[[Command], Command]:
    name = "--" + key.name.replace("_", "-")
    shown = ",".join(map(str, key.default)) if isinstance(key.default, tuple) else key.default
    text = key.text if shown in (None, "", False) else f"{key.text}  [default: {shown}]"
    if key.kind is bool:
        return click.option(f"{name}/--no-{name[2:]}", default=None, help=text)
    # The options' own checks know what a number may be, and refuse those of a file in the same words.
    kind: Any = PATH_TEXT if key.is_path else click.Choice(key.choices) if key.choices else {
        int: click.INT, float: click.FLOAT, str: click.STRING,
    }[str if key.is_list else key.kind]
    return click.option(name, type=kind, help=text, metavar="A,B,…" if key.is_list else None)


def _run(
    options_type: type, open_stage: Callable[[Any, World], Stage], following: str, config: Path | None,
    data: tuple[str, ...], out: Path | None, resume: bool, overwrite: bool, print_config: bool, **keys: Any,
) -> None:
    """Read the options, train, and say what was written; ``following`` is the next command, with {out} in it. Of
    several processes one says it, and an error that all of them meet is raised in one. A run that a signal stopped ends
    with 128 and its number."""
    lists = {key.name for key in option_fields(options_type) if key.is_list}
    given = {
        name: tuple(entry for entry in value.split(",") if entry) if name in lists else value
        for name, value in keys.items() if value is not None
    }
    with needs_extra("train"):
        from flamingo_rt.training.sharding import join_world, leave_world

        world, code = join_world(), 0
        try:
            options: Any = read_options(options_type, config, given, data)
            text = (printable(options_text(options), lines=True) if print_config
                    else _result(options, open_stage, world, out, resume, overwrite, following))
        except RunStopped as stopped:
            text, code = printable(stopped_line(stopped, options.run.steps, world)) + "\n", 128 + stopped.number
        except FlamingoError as error:
            if world.says_first(str(error)):
                raise
            sys.exit(error.exit_code)
        except RuntimeError:
            if not world.hears_of_an_error():
                raise
            sys.exit(1)
        except KeyboardInterrupt:
            if world.is_first:
                raise
            sys.exit(130)
        finally:
            leave_world()
    if world.is_first:
        click.echo(text, nl=False, err=code != 0)
    if code:
        sys.exit(code)


def _result(
    options: Any, open_stage: Callable[[Any, World], Stage], world: World, out: Path | None, resume: bool,
    overwrite: bool, following: str,
) -> str:
    """Train, unless the run that ``resume`` asks for is finished; gives a line about the folder and what is next."""
    if out is None:
        raise UsageError("--out is missing: the folder to write")
    finished = resume and not overwrite and world.from_first(lambda: _is_finished(out, options))
    wrote = not finished and _train(options, open_stage, world, out, resume, overwrite)
    folder = printable(str(out))
    said = f"wrote {folder}" if wrote else f"{folder} is finished"
    return f"{said}; next: {following.format(out=folder)}\n"


def _is_finished(out: Path, options: Any) -> bool:
    """Whether ``out`` is the result of a run of this stage of as many steps, by its log, and nothing of it is left to
    do; the state of such a run that was killed before it had removed it is removed."""
    from flamingo_rt.checkpoints import is_checkpoint
    from flamingo_rt.training.run_log import finished_steps
    from flamingo_rt.training.state import has_state, remove_state, saved_step, state_path
    from flamingo_rt.training.towers import folder_kind

    steps, state = options.run.steps, state_path(out)
    if not is_checkpoint(out) or finished_steps(out) != steps or folder_kind(out) != WRITTEN_KIND[type(options)]:
        return False
    if has_state(state):
        if saved_step(state) != steps:
            return False
        remove_state(state)
    return True


def _train(
    options: Any, open_stage: Callable[[Any, World], Stage], world: World, out: Path, resume: bool, overwrite: bool,
) -> bool:
    """Train; gives whether anything was left to do."""
    from flamingo_rt.training.loop import check_run, train
    from flamingo_rt.training.run_log import RunLog
    from flamingo_rt.training.state import state_path

    if not options.data:
        raise UsageError("there is no data: give --data SOURCE, or [[data]] tables in the --config file")
    with on_interrupt(lambda: left_line(state_path(out), world)):
        world.from_first(lambda: check_run(out, resume, overwrite))
        stage = open_stage(options, world)
        unit = "pictures" if isinstance(options, VisionOptions) else "tokens"
        with RunLog(out) as log, TrainingProgress(options.run.steps, world.is_first, unit) as shown:

            def on_start(done: int) -> None:
                shown.start(start_lines(stage, options.run, state_path(out), done, resume))

            def on_step(report: StepReport) -> None:
                log.add(report)
                shown.step(report)

            return train(stage, options.run, out, world, resume=resume, overwrite=overwrite, on_start=on_start,
                         on_step=on_step, on_written=lambda: log.finish(options.run.steps), stop=heeded_signals(world))


@command.command("vision")
@_training_options(VisionOptions)
def vision(**given: Any) -> None:
    """Train an image encoder and a text encoder by contrast, on pairs of pictures and texts.

    \b
    Example:
      flamingo-rt train vision --data "pairs-{0000..0003}.tar,batch=64" --steps 2000 --out runs/vision
    """
    with needs_extra("train"):
        from flamingo_rt.training.vision_stage import open_vision_stage

    following = "flamingo-rt train flamingo --vision {out} --language FOLDER --data SOURCE --out …"
    _run(VisionOptions, open_vision_stage, following, **given)


@command.command("language")
@_training_options(LanguageOptions)
def language(**given: Any) -> None:
    """Train a decoder on text.

    \b
    Example:
      flamingo-rt train language --data texts.txt --repeats 0.25 --steps 2000 --out runs/language
    """
    with needs_extra("train"):
        from flamingo_rt.training.language_stage import open_language_stage

    following = "flamingo-rt train flamingo --vision FOLDER --language {out} --data SOURCE --out …"
    _run(LanguageOptions, open_language_stage, following, **given)


@command.command("flamingo")
@_training_options(FlamingoOptions)
def flamingo(**given: Any) -> None:
    """Train the bridge between a frozen vision encoder and a frozen language model, or fine-tune a checkpoint.

    The state is saved beside --out; after a kill the same command with --resume goes on.

    \b
    Example:
      flamingo-rt train flamingo --vision runs/vision --language runs/language \\
          --data "pairs-{0000..0003}.tar,weight=0.2" --data "pages.tar" --out runs/flamingo
      flamingo-rt train flamingo --start-from models/tiny --data my-pictures/captions.jsonl --out runs/mine
    """
    with needs_extra("train"):
        from flamingo_rt.training.flamingo_start import open_flamingo_stage

    _run(FlamingoOptions, open_flamingo_stage, "flamingo-rt export --ckpt {out} --out BUNDLE", **given)
