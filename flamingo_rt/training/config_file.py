"""Options of a run from a TOML file and from the command line: defaults, then the file, then what was given.

    steps = 2000            # keys of the run and of the stage stand at the top
    vision = "runs/vision"
    [[data]]                # one table for each dataset
    source = "shards/pairs-{0000..0099}.tar"
    weight = 0.2
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from flamingo_rt.errors import UsageError
from flamingo_rt.toml_files import nearest, read_toml
from flamingo_rt.training.options import DataOptions, RunOptions

T = TypeVar("T")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
LISTS = {int: "whole numbers", str: "texts"}


@dataclass(frozen=True)
class OptionField:
    """One key: its name, the type of its value (``bool``, ``int``, ``float`` or ``str``), whether it is a list or a
    path, the values it may have, its default and its help."""

    name: str
    kind: type
    is_list: bool
    choices: tuple[str, ...]
    default: Any
    text: str
    is_path: bool = False


def option_fields(options: type) -> list[OptionField]:
    """The keys of a dataclass of options; those of `RunOptions` come first where it holds one."""
    hints = typing.get_type_hints(options)
    found: list[OptionField] = []
    for entry in fields(options):
        if entry.name == "run":
            run = _run_defaults(options)
            found = [replace(key, default=getattr(run, key.name)) for key in option_fields(RunOptions)] + found
        elif entry.name != "data":
            key = _field(entry.name, hints[entry.name], entry.default, entry.metadata["help"])
            found.append(replace(key, is_path=entry.metadata["path"]))
    return found


def _run_defaults(options: type) -> RunOptions:
    """The run's options where a stage is given none."""
    entry = next(entry for entry in fields(options) if entry.name == "run")
    assert entry.default_factory is not MISSING
    run: RunOptions = entry.default_factory()
    return run


def _field(name: str, hint: Any, default: Any, text: str) -> OptionField:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):  # an optional value
        return _field(name, next(entry for entry in arguments if entry is not type(None)), default, text)
    if origin is Literal:
        return OptionField(name, str, False, arguments, default, text)
    if origin is tuple:
        return OptionField(name, arguments[0], True, (), default, text)
    return OptionField(name, hint, False, (), default, text)


def read_options(options: type[T], file: Path | None, given: Mapping[str, Any], data: Sequence[str] = ()) -> T:
    """Options of a stage. ``given`` are keys from the command line, ``data`` datasets in the form of `parse_data`,
    which replace those of the file.

    Raises `DataError` for a file that cannot be read, `UsageError` for an unknown key, with the nearest known ones, and
    for a value that a key cannot have.
    """
    stated = read_toml(file) if file is not None else {}
    where = str(file)
    tables = stated.pop("data", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{where}: data is a list of tables: write [[data]] before each dataset's keys")
    known = {key.name: key for key in option_fields(options)}
    keys = {**_checked(stated, known, where), **given}
    datasets = tuple(_dataset(table, f"{where}, data {number}") for number, table in enumerate(tables, start=1))
    if data:
        datasets = tuple(parse_data(text) for text in data)
    run_names = {entry.name for entry in fields(RunOptions)}
    run = replace(_run_defaults(options), **{name: keys[name] for name in keys if name in run_names})
    rest = {name: value for name, value in keys.items() if name not in run_names}
    make: Any = options
    made: T = make(run=run, data=datasets, **rest)
    return made


def parse_data(text: str, where: str = "--data ") -> DataOptions:
    """A dataset from the command line: ``SOURCE`` or ``SOURCE,key=value,…``. Raises `UsageError` that begins with
    ``where`` it was given; a list's entries are joined by ``+``, since a comma begins the next key."""
    known = {key.name: key for key in option_fields(DataOptions)}
    # A comma within braces belongs to the source: pairs-{a,b}.tar.
    source, *parts = re.split(r",(?![^{}]*})", text)
    keys: dict[str, Any] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"{where}{text!r}: {part!r} is no key=value; {_after_comma(part, known, list(keys))}")
        if name not in known:
            raise UsageError(f"{where}{text!r}: there is no key {name!r}; {nearest(name, known)}")
        keys[name] = _from_text(known[name], value, f"{where}{text!r}")
    return DataOptions(source=source, **keys)


def _after_comma(part: str, known: Mapping[str, OptionField], before: Sequence[str]) -> str:
    """Say what to write instead of ``part``, which follows a comma and the keys ``before`` without being key=value."""
    if part in known:
        return f"give it a value: {part}=…"
    if before and known[before[-1]].is_list:
        return f"the entries of a list are joined by +: {before[-1]}=1+4"
    near = difflib.get_close_matches(part, known, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}=…? A" if near else "another dataset is another --data, and a"
    return f"{meant} value that holds a comma goes into a [[data]] table of a TOML file, which --config takes"


def options_text(options: Any) -> str:
    """Options as the TOML file that gives them, with every key: one without a value stands in a comment, and so does a
    dataset where there is none."""
    keys = option_fields(type(options))
    lines = [_line(key, getattr(options.run if hasattr(options.run, key.name) else options, key.name)) for key in keys]
    for entry in options.data:
        lines += ["\n[[data]]\n", *(_line(key, getattr(entry, key.name)) for key in option_fields(DataOptions))]
    if not options.data:
        lines += ["\n# [[data]]  # a table for each dataset\n", *map(_comment, option_fields(DataOptions))]
    return "".join(lines)


def _line(key: OptionField, value: Any) -> str:
    """The line of a TOML file that gives a key this value; a comment for a key without one."""
    if value is None:
        return _comment(key)
    import tomli_w  # here: the command line's help needs no libraries

    return tomli_w.dumps({key.name: _plain(value)})


def _comment(key: OptionField) -> str:
    """A key with its default and its help, as a comment."""
    if key.default in (None, ""):
        return f"# {key.name} = …  # {key.text}\n"
    return f"# {key.name} = {json.dumps(_plain(key.default))}  # {key.text}\n"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _dataset(table: Mapping[str, Any], where: str) -> DataOptions:
    return DataOptions(**_checked(table, {key.name: key for key in option_fields(DataOptions)}, where))


def _checked(stated: Mapping[str, Any], known: Mapping[str, OptionField], where: str) -> dict[str, Any]:
    found = {}
    for name, value in stated.items():
        if name not in known:
            raise UsageError(f"{where}: there is no key {name!r}; {nearest(name, known)}")
        key = known[name]
        values = value if key.is_list and isinstance(value, list) else [value]
        wanted = (int, float) if key.kind is float else (key.kind,)
        sound = isinstance(value, list) == key.is_list and all(
            isinstance(entry, wanted) and (key.kind is bool or not isinstance(entry, bool)) for entry in values
        )
        if not sound or (key.choices and value not in key.choices):
            wish = " or ".join(key.choices) or (f"a list of {LISTS[key.kind]}" if key.is_list else KINDS[key.kind])
            raise UsageError(f"{where}: {name} is {value!r}; it must be {wish}")
        try:
            found[name] = tuple(values) if key.is_list else key.kind(value)
        except OverflowError:  # an integer of hundreds of digits as a float
            raise UsageError(f"{where}: {name} is {value}, above the largest that is accepted") from None
    return found


def _from_text(key: OptionField, text: str, where: str) -> Any:
    """A value as it stands behind ``key=``; the entries of a list are divided by ``+``."""
    try:
        if key.is_list:
            return tuple(key.kind(entry) for entry in text.split("+"))
        if key.kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value = key.kind(text)
    except (ValueError, KeyError):
        wish = f"{LISTS[key.kind]} joined by +: {key.name}=1+4" if key.is_list else KINDS[key.kind]
        raise UsageError(f"{where}: {key.name} is {text!r}; it must be {wish}") from None
    if key.choices and value not in key.choices:
        raise UsageError(f"{where}: {key.name} is {text!r}; it must be {' or '.join(key.choices)}")
    return value
