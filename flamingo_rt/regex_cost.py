"""The cost of an untrusted regular expression: patterns that a backtracking engine may never finish are refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MOST_CHARACTERS = 5_000  # DeepSeek's, the longest of a known model, has some 1,500; compiling is not linear
MOST_NESTING = 30
MOST_SIZE = 20_000  # characters and classes, with counted repeats written out
MOST_REPEATS = 1_000
MOST_WAYS = 1_000  # known patterns have below 100
FEW = 32  # a counted repeat with more choices is taken for an unbounded one


@dataclass(frozen=True)
class Atom:
    """A character, class, anchor or escape: it matches in one way."""


@dataclass(frozen=True)
class Group:
    """Alternatives, each a sequence of nodes. ``alone``: a look-around or an atomic group, which is never backtracked
    into. ``looks``: a look-around, which can fail even though it matches no characters."""

    alternatives: tuple[tuple[Node, ...], ...]
    alone: bool = False
    looks: bool = False


@dataclass(frozen=True)
class Repeat:
    """A node repeated ``low`` to ``high`` times; ``high`` None is unbounded."""

    node: Node
    low: int
    high: int | None
    possessive: bool = False


Node = Atom | Group | Repeat


def pattern_fault(pattern: str) -> str | None:
    """The reason to refuse a pattern (in Oniguruma's syntax, the tokenizers library's engine), or None.

    Refused are back-references, calls, conditions and other extensions of regular expressions; a repeat of a group that
    itself matches in several ways, such as ``(a+)+`` and ``(a|b)*``; two unbounded repeats in a row before something
    that can fail, as in ``a*b*c``; and patterns beyond the limits of this module. So matching at one place of a text of
    n characters takes at most some `MOST_WAYS` * n steps.

    Not caught: one repeat before something that can fail, as in ``\\s+(?!\\S)``, which known models have. On a text of
    n characters made for it that takes n² steps in all. Repeats of a group with
    alternatives are refused even where the alternatives exclude each other.
    """
    if len(pattern) > MOST_CHARACTERS:
        return f"it has more than {MOST_CHARACTERS} characters"
    try:
        alternatives = _Parser(pattern).whole().alternatives
        if sum(_size(node) for sequence in alternatives for node in sequence) > MOST_SIZE:
            return f"written out it has more than {MOST_SIZE} characters"
        degree, ways = _of_alternatives(alternatives, False)
    except _Refused as error:
        return str(error)
    if degree > 1:
        return "repeats in a row can share out a text in too many ways"
    return f"it can match in {ways} ways at one place" if ways > MOST_WAYS else None


class _Refused(Exception):
    """The reason why a pattern is refused."""


def _of_alternatives(alternatives: Sequence[Sequence[Node]], fallible: bool) -> tuple[int, int]:
    costs = [_of_sequence(sequence, fallible) for sequence in alternatives]
    return max(degree for degree, _ in costs), min(sum(ways for _, ways in costs), 10**9)


def _of_sequence(nodes: Sequence[Node], fallible: bool) -> tuple[int, int]:
    """(degree, ways): at one place of a text a match is tried in up to ways * n**degree ways. ``fallible``: what
    follows can fail; only then does the engine backtrack."""
    degree, ways = 0, 1
    for node in reversed(nodes):
        more, factor = _of_node(node, fallible)
        degree, ways = degree + more, min(ways * factor, 10**9)
        fallible = fallible or not _nullable(node)
    return degree, ways


def _of_node(node: Node, fallible: bool) -> tuple[int, int]:
    if isinstance(node, Atom):
        return 0, 1
    if isinstance(node, Group):
        return _of_alternatives(node.alternatives, fallible and not node.alone)
    most = node.high
    if not fallible and node.low <= 1:  # a failed round ends the repeat, without backtracking into earlier rounds
        degree, ways = _of_node(node.node, False)
        return degree * 2 if most is None else degree, ways
    degree, ways = _of_node(node.node, True)
    if (degree, ways) == (0, 1):
        if most == node.low or node.possessive or not fallible:
            return 0, 1
        return (1, 1) if most is None or most - node.low >= FEW else (0, most - node.low + 1)
    if most is None:
        raise _Refused("a repeated group holds a repeat or alternatives")
    return degree * most, min(ways**most * (most - node.low + 1), 10**9)


def _nullable(node: Node) -> bool:
    if isinstance(node, Atom):
        return False
    if isinstance(node, Group):
        return not node.looks and any(all(map(_nullable, sequence)) for sequence in node.alternatives)
    return node.low == 0 or _nullable(node.node)


def _size(node: Node) -> int:
    if isinstance(node, Atom):
        return 1
    if isinstance(node, Group):
        return 1 + sum(_size(inner) for sequence in node.alternatives for inner in sequence)
    return max(node.low, node.high or 1, 1) * _size(node.node)


_ESCAPE = re.compile(r"\\(?:[pP]\{\^?[\w ]+\}|x\{[0-9A-Fa-f ]+\}|x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4}"
                     r"|[dDwWsShHbBAzZGnrtfvaeRXNO]|[^A-Za-z0-9])", re.DOTALL)
_POSIX = re.compile(r"\[:\^?[a-z]+:\]")
_OPEN = re.compile(r"\((?:\?(?:(?P<plain>:|<[A-Za-z_]\w*>)|(?P<alone>>)|(?P<looks><?[=!])|(?P<flags>[im]*-?[im]*)"
                   r"(?P<ends>[:)]))|(?![?*]))")
_COUNT = re.compile(r"\{(?:(\d+)(,?)(\d*)|(,)(\d+))\}")


class _Parser:
    """Parses a pattern into nodes; refuses unknown syntax, so that no pattern is misread as another."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at, self._depth = pattern, 0, 0

    def whole(self) -> Group:
        group = Group(self._alternatives())
        if self._at < len(self._pattern):
            raise _Refused("it has a parenthesis too many")
        return group

    def _alternatives(self) -> tuple[tuple[Node, ...], ...]:
        self._depth += 1
        if self._depth > MOST_NESTING:
            raise _Refused(f"it is nested deeper than {MOST_NESTING} levels")
        found: list[list[Node]] = [[]]
        while self._at < len(self._pattern) and self._pattern[self._at] != ")":
            if self._pattern[self._at] == "|":
                self._at += 1
                found.append([])
            else:
                found[-1].append(self._repeated(self._node()))
        self._depth -= 1
        return tuple(map(tuple, found))

    def _node(self) -> Node:
        character = self._pattern[self._at]
        if character == "(":
            return self._group()
        if character == "[":
            self._class()
        elif character == "\\":
            self._escape()
        elif character in "*+?":
            raise _Refused(f"a {character} has nothing to repeat")
        else:
            self._at += 1
        return Atom()

    def _escape(self) -> None:
        match = _ESCAPE.match(self._pattern, self._at)
        if match is None:
            raise _Refused(f"it uses {self._pattern[self._at : self._at + 2]}, but only plain patterns are accepted")
        self._at = match.end()

    def _class(self) -> None:
        start, depth = self._at, 0
        while self._at < len(self._pattern):
            if self._pattern[self._at] == "\\":
                self._escape()
                continue
            posix = _POSIX.match(self._pattern, self._at) if depth else None
            if posix:
                self._at = posix.end()
                continue
            character = self._pattern[self._at]
            self._at += 1
            if character == "[":
                if depth and self._pattern[self._at : self._at + 1] == ":":
                    raise _Refused("a class in it has an unknown [:name:]")
                depth += 1
                if self._pattern[self._at : self._at + 1] == "^":
                    self._at += 1
                if self._pattern[self._at : self._at + 1] == "]":
                    raise _Refused("a class in it begins with ]")
            elif character == "]":
                depth -= 1
                if depth == 0:
                    return
        raise _Refused(f"the class at character {start} has no end")

    def _group(self) -> Node:
        opened = _OPEN.match(self._pattern, self._at)
        if opened is None:
            raise _Refused(f"it uses {self._pattern[self._at : self._at + 3]}, but only plain patterns are accepted")
        self._at = opened.end()
        if opened["ends"] == ")":  # an option for the rest of the group, alternatives included
            return Group(self._alternatives())
        alternatives = self._alternatives()
        if self._at >= len(self._pattern):
            raise _Refused("it has a parenthesis without an end")
        self._at += 1
        looks = opened["looks"] is not None
        return Group(alternatives, alone=looks or opened["alone"] is not None, looks=looks)

    def _repeated(self, node: Node) -> Node:
        while self._at < len(self._pattern):
            character = self._pattern[self._at]
            counted = _COUNT.match(self._pattern, self._at)
            if character in "*+?":
                self._at += 1
                low, high = int(character == "+"), 1 if character == "?" else None
                follows = self._pattern[self._at : self._at + 1]
                self._at += follows in ("?", "+") and follows != ""
                node = Repeat(node, low, high, possessive=follows == "+")
            elif counted:
                self._at = counted.end()
                node = self._counted(node, counted)
            else:
                break
        return node

    def _counted(self, node: Node, count: re.Match[str]) -> Node:
        first, comma, last, from_none, most = count.groups()
        texts = [text for text in (first, last, most) if text]
        if any(len(text) > 6 or int(text) > MOST_REPEATS for text in texts):
            raise _Refused(f"it repeats something more than {MOST_REPEATS} times")
        low = int(first or 0)
        high = int(most) if from_none else int(last) if last else None if comma else low
        low, high = (low, high) if high is None or low <= high else (high, low)
        if self._pattern[self._at : self._at + 1] == "?":  # lazy; after a fixed count the engine reads it as optional
            self._at += 1
            low = 0 if low == high else low
        return Repeat(node, low, high)
