"""A check of pickles before they are unpickled: an opcode of a few bytes can ask for gigabytes.

The pickle is followed with stand-ins on its stack, which count the values that each value consists of. Refused are memo
indices beyond the number of opcodes (the memo is an array), tuples that repeat one another or a long text over and over
(hashing one takes 2^depth steps, printing it as much memory), byte arrays of a stated length, and storages longer than
their file.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from typing import Any, BinaryIO, cast

MOST_OPCODES = 1_000_000  # of all pickles of a file; 80B parameters and their optimizer take some 100,000
MOST_STACK = 200_000  # values on the stack; Python's pickler puts some 2,000 there, TorchScript's a whole list
MOST_INSIDE = 1_000_000  # values within a value, counted as often as they occur
CHARACTERS_A_VALUE = 8  # characters of a text, or bytes, that count as one value
MOST_DEPTH = 200
_GLOBALS_REFUSED = {"builtins bytearray", "__builtin__ bytearray"}
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_CHANGES = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD", "ADDITEMS"}  # of a container that was made before


@dataclass(frozen=True, slots=True)
class _Value:
    """A value on the stack: the number of values it consists of, their depth, and the value itself or its entries."""

    inside: int = 1
    depth: int = 0
    atom: object = None
    entries: tuple[_Value, ...] = ()


_MARK = _Value()
_PLAIN = _Value()  # shared by all values without content: there may be a million


class PickleScan:
    """The scan of one or several pickles in a row; ``most_values`` limits the values of all their storages together."""

    def __init__(self, most_values: int | None = None) -> None:
        self._most_values, self._storages, self._values = most_values, set[str](), 0
        self._opcodes = 0

    def scan(self, file: BinaryIO | mmap) -> None:
        """Follow one pickle and leave ``file`` at its end. Raises `ValueError` for a pickle to refuse."""
        stack: list[_Value] = []
        memo: dict[int, _Value] = {}
        opcodes: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(cast(BinaryIO, file))
        for count, (opcode, argument, _) in enumerate(opcodes):
            self._opcodes += 1
            if self._opcodes > MOST_OPCODES:
                raise ValueError(f"it has more than {MOST_OPCODES} opcodes")
            if len(stack) > MOST_STACK:
                raise ValueError(f"it has more than {MOST_STACK} values on its stack")
            if opcode.name in _PUTS or opcode.name == "MEMOIZE":
                index = len(memo) if opcode.name == "MEMOIZE" else argument
                if not 0 <= index <= count:
                    raise ValueError(f"its memo begins at {index}, after {count} opcodes")
                memo[index] = _top(stack)
            elif opcode.name in _GETS:
                if argument not in memo:
                    raise ValueError(f"it takes {argument} from its memo, where nothing was put")
                stack.append(memo[argument])
            elif opcode.name == "DUP":
                stack.append(_top(stack))
            elif opcode.name == "MARK":
                stack.append(_MARK)
            else:
                self._compute(stack, opcode, argument)

    def _compute(self, stack: list[_Value], opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Replace the values that an opcode takes from the stack by the ones that it makes from them."""
        name = opcode.name
        if name in ("GLOBAL", "INST") and argument in _GLOBALS_REFUSED:
            raise ValueError(f"it asks for {argument.replace(' ', '.')}, which is not a weight")
        taken = _take(stack, opcode)
        if name in ("BINPERSID", "PERSID"):
            self._count(taken)
        if name in _CHANGES and taken:
            # The container stays on the stack. The memo shares it, so its entries are not counted again.
            stack.append(taken[0])
        else:
            made = _made(taken, argument, name in _TUPLES and self._most_values is not None)
            stack.extend(made for after in opcode.stack_after if after is not pickletools.markobject)

    def _count(self, taken: tuple[_Value, ...]) -> None:
        """Add up the storages of a file from before PyTorch 1.6: torch allocates as much as the pickle states."""
        reference = taken[0].entries if taken else ()
        if self._most_values is None or len(reference) < 5:
            return
        key, values = reference[2].atom, reference[4].atom
        if not isinstance(key, str) or not isinstance(values, int) or values < 0:
            raise ValueError("it refers to a storage without a name or a length")
        if key not in self._storages:  # torch allocates each once, where it occurs first
            self._storages.add(key)
            self._values += values
        if self._values > self._most_values:
            raise ValueError(f"its storages have more than the {self._most_values} bytes of the file")


def _top(stack: list[_Value]) -> _Value:
    if not stack or stack[-1] is _MARK:
        raise ValueError("it takes a value where there is none")
    return stack[-1]


def _take(stack: list[_Value], opcode: pickletools.OpcodeInfo) -> tuple[_Value, ...]:
    """Pop the values that an opcode takes; with a mark, all that lie above it."""
    before = opcode.stack_before
    if pickletools.markobject in before:
        place = next((index for index in range(len(stack) - 1, -1, -1) if stack[index] is _MARK), None)
        below = before.index(pickletools.markobject)
        if place is None or place < below:
            raise ValueError("it takes values up to a mark that is not there")
        taken = [*stack[place - below : place], *stack[place + 1 :]]
        del stack[place - below :]
        return tuple(taken)
    if len(stack) < len(before):
        raise ValueError("it takes a value where there is none")
    taken = stack[len(stack) - len(before) :]
    del stack[len(stack) - len(before) :]
    return tuple(taken)


def _made(taken: tuple[_Value, ...], argument: object, keep: bool) -> _Value:
    """The value that an opcode makes from the values it took and its argument; ``keep``: with its entries."""
    if not taken:
        return _atom(argument)
    inside, depth = 1 + sum(value.inside for value in taken), 1 + max((value.depth for value in taken), default=-1)
    if inside > MOST_INSIDE or depth > MOST_DEPTH:
        raise ValueError(f"a value in it has more than {MOST_INSIDE} values, or more than {MOST_DEPTH} levels of them")
    return _Value(inside, depth, None, taken[:8] if keep else ())


def _atom(argument: object) -> _Value:
    """A value made from an opcode's argument alone. Its length counts: the memo can repeat a long text cheaply."""
    if isinstance(argument, (str, bytes)):
        inside = 1 + len(argument) // CHARACTERS_A_VALUE
        return _Value(inside, 0, argument if isinstance(argument, str) else None)
    return _PLAIN if not isinstance(argument, int) else _Value(atom=argument)
