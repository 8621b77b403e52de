"""What a pickle would make, found out before it is unpickled: an opcode of a few bytes can ask for gigabytes.

The pickle's stack is followed with stand-ins that know how large a value is when written out. Refused are memo indices
beyond the number of opcodes (the memo is an array), tuples that hold one another or a long text over and over (to hash
one takes 2^depth steps, to write it out as much memory), byte arrays of a stated
length, and storages that are longer than the file they are in.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import BinaryIO

MOST_OPCODES = 1_000_000  # of all pickles of a file; one of 80B parameters and its optimizer has some 100,000
MOST_STACK = 200_000  # values on the stack; Python's pickler has some 2,000 there, TorchScript's a whole list
MOST_INSIDE = 1_000_000  # values in a value, counted as often as they stand there
CHARACTERS_A_VALUE = 8  # so many characters of a text, or bytes, count like a value
MOST_DEPTH = 200
_GLOBALS_REFUSED = {"builtins bytearray", "__builtin__ bytearray"}
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}


@dataclass(frozen=True, slots=True)
class _Value:
    """A value on the stack: how many values it consists of, how deeply they are nested, and itself or its entries."""

    inside: int = 1
    depth: int = 0
    atom: object = None
    entries: tuple[_Value, ...] = ()


_MARK = _Value()
_PLAIN = _Value()  # every value without content: there may be a million


class PickleScan:
    """The scan of one or several pickles in a row; ``most_values`` is what all their storages may have together."""

    def __init__(self, most_values: int | None = None) -> None:
        self._most_values, self._storages, self._values = most_values, set[str](), 0
        self._opcodes = 0

    def scan(self, file: BinaryIO) -> None:
        """Follow one pickle to its end; ``file`` is left behind it. Raises `ValueError` for one that is not read."""
        stack: list[_Value] = []
        memo: dict[int, _Value] = {}
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            name = opcode.name
            self._opcodes += 1
            if self._opcodes > MOST_OPCODES:
                raise ValueError(f"it has more than {MOST_OPCODES} opcodes")
            if len(stack) > MOST_STACK:
                raise ValueError(f"it has more than {MOST_STACK} values on its stack")
            if name in _PUTS or name == "MEMOIZE":
                index = len(memo) if name == "MEMOIZE" else argument
                if not 0 <= index <= count:
                    raise ValueError(f"its memo begins at {index}, after {count} opcodes")
                memo[index] = _top(stack)
            elif name in _GETS:
                if argument not in memo:
                    raise ValueError(f"it takes {argument} from its memo, where nothing was put")
                stack.append(memo[argument])
            elif name == "DUP":
                stack.append(_top(stack))
            elif name == "MARK":
                stack.append(_MARK)
            else:
                if name in ("GLOBAL", "INST") and argument in _GLOBALS_REFUSED:
                    raise ValueError(f"it asks for {argument.replace(' ', '.')}, which is no weight")
                taken = _take(stack, opcode)
                if name in ("BINPERSID", "PERSID"):
                    self._count(taken)
                if name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD", "ADDITEMS") and taken:
                    # The container itself stays; what the memo holds of it is the same, so it is not counted again.
                    stack.append(taken[0])
                else:
                    made = _made(taken, argument, name in _TUPLES and self._most_values is not None)
                    stack.extend(made for after in opcode.stack_after if after is not pickletools.markobject)

    def _count(self, taken: tuple[_Value, ...]) -> None:
        """Add up the storages of a file from before PyTorch 1.6: torch makes them as long as the pickle says."""
        reference = taken[0].entries if taken else ()
        if self._most_values is None or len(reference) < 5:
            return
        key, values = reference[2].atom, reference[4].atom
        if not isinstance(key, str) or not isinstance(values, int) or values < 0:
            raise ValueError("it refers to a storage without a name or a length")
        if key not in self._storages:  # torch makes each once, where it first stands
            self._storages.add(key)
            self._values += values
        if self._values > self._most_values:
            raise ValueError(f"its storages have more than the {self._most_values} bytes of the file")


def _top(stack: list[_Value]) -> _Value:
    if not stack or stack[-1] is _MARK:
        raise ValueError("it takes a value where there is none")
    return stack[-1]


def _take(stack: list[_Value], opcode: pickletools.OpcodeInfo) -> tuple[_Value, ...]:
    """Pop what an opcode takes; what lies above a mark is all of it."""
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
    """What an opcode makes of what it took and its argument; ``keep`` says whether its entries are looked at later."""
    if not taken:
        return _atom(argument)
    inside, depth = 1 + sum(value.inside for value in taken), 1 + max((value.depth for value in taken), default=-1)
    if inside > MOST_INSIDE or depth > MOST_DEPTH:
        raise ValueError(f"a value in it has more than {MOST_INSIDE} values, or more than {MOST_DEPTH} levels of them")
    return _Value(inside, depth, None, taken[:8] if keep else ())


def _atom(argument: object) -> _Value:
    """A value that is made of nothing on the stack. A text may be long: it stands in the pickle itself."""
    if isinstance(argument, (str, bytes)):
        inside = 1 + len(argument) // CHARACTERS_A_VALUE
        return _Value(inside, 0, argument if isinstance(argument, str) else None)
    return _PLAIN if not isinstance(argument, int) else _Value(atom=argument)
