"""Changes to JSON: values of other types and sizes, keys that go, come twice or are strange, deep nesting."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from random import Random
from typing import Any

NUMBERS = (0, -1, 1, 2, 3, 0.5, 1e-9, 1e30, 1e308, 2**31, 2**32 - 1, 2**53, 10**18, 2**63, 2**64, 10**30, 10**400,
           -(10**18),
           float("nan"), float("inf"), -float("inf"), 100_000, 1_000_000, 1_000_003, 7, 5000)
# Texts that mean something to terminals, shells, charts and paths, and impossible file names.
TEXTS = (
    "", " ", "a" * 5000, "\x00", "a\x00b", "\x1b]52;c;aGFjaw==\x07", "\x1b[2J\x1b[H", "\u202etxt.exe", "\u2028",
    "\ud800",
    "$x$", "{}", "{0.__class__}", "%s%n", "../outside/secret.txt", "/etc/passwd", "..", ".", "/", "~/x", "C:\\x",
    "; touch ran", "$(touch ran)", "|", "-", "--help", "\U0001f600" * 50, "é" * 300, "null", "nan", "1e999",
    "file:///etc/passwd", "http:/x", "\r\nX", "<image>", "<|endofchunk|>",
)
DEPTH = 3000


def value(rng: Random) -> Any:
    """A JSON value of any type, other than the old one."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    return rng.choice((None, True, False, [], {}, [[]], [1, 2, 3], {"a": {}}, [None] * 1000))


def changed(rng: Random, tree: Any, times: int | None = None) -> Any:
    """A copy of a JSON value with one to four changes at random places."""
    tree = copy.deepcopy(tree)
    for _ in range(times or rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            return value(rng)
        holder, key = rng.choice(places)
        _change(rng, holder, key)
    return tree


def mutate(rng: Random, text: bytes) -> bytes:
    """A JSON text with changes; sometimes one that no JSON value has: keys twice, numbers of any length, nesting."""
    tree = json.loads(text)
    choice = rng.random()
    if choice < 0.02:
        return b"[" * DEPTH * 40 + b"]" * DEPTH * 40
    if choice < 0.04:
        return text.rstrip()[:-1] + b"," + text.strip()[1:]  # all keys twice
    if choice < 0.05:
        return b"\xef\xbb\xbf" + text
    if choice < 0.06:
        return text.decode().encode("utf-16")
    return dumped(changed(rng, tree))


def dumped(tree: Any) -> bytes:
    """The text of a tree; half surrogate pairs are kept as escapes, NaN and infinities as Python writes them."""
    return json.dumps(tree).encode()


def _places(tree: Any) -> Any:
    """Every container in a tree with each of its keys."""
    todo = [tree]
    while todo:
        node = todo.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            yield node, key
            todo.append(node[key])


def _change(rng: Random, holder: Any, key: Any) -> None:
    kind = rng.randrange(10)
    old = holder[key]
    if kind < 4:
        holder[key] = value(rng)
    elif kind == 4:
        del holder[key]
    elif kind == 5 and isinstance(old, (int, float)) and not isinstance(old, bool):
        whole = old if abs(old) < 10**300 else 1  # too large for a float
        holder[key] = rng.choice((whole + 1, whole * 2, -old, float(whole), str(whole), whole * 1000, whole // 2 or 1))
    elif kind == 6 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = old
    elif kind == 6:
        with suppress(RecursionError):  # nested too deeply to be copied
            holder.insert(key, copy.deepcopy(old))
    elif kind == 7:
        for _ in range(rng.choice((1, 10, DEPTH // 10))):
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
    elif kind == 8 and isinstance(holder, dict) and len(holder) > 1:
        other = rng.choice([name for name in holder if name != key])
        holder[key], holder[other] = holder[other], holder[key]
    elif isinstance(old, str):
        holder[key] = rng.choice((old + rng.choice(TEXTS), rng.choice(TEXTS) + old, old[:-1], old[:2000] * 500))
    else:
        holder[key] = value(rng)
