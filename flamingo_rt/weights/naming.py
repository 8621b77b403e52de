"""From what a checkpoint holds to its tensors' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

WRAPPERS = ("state_dict", "model_state_dict")
PREFIX = "module."

Leaf = TypeVar("Leaf")


def unwrapped(content: object) -> object:
    """The state dict in a training checkpoint that keeps it beside its epoch and optimizer, else ``content``."""
    for _ in WRAPPERS:  # one inside the other at most
        if isinstance(content, Mapping):
            inner = (content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping))
            content = next(inner, content)
    return content


# A mapping that stands in several places is followed in each; a few bytes could so hold billions of names.
MOST_NODES, MOST_LEVELS = 1_000_000, 64
MOST_NAME = 2_000  # characters of a whole name; keys of another kind than text or a number are no names


def flattened(content: object, leaf: type[Leaf]) -> dict[str, Leaf]:
    """Every ``leaf`` in nested mappings by its dotted name, in their order. Anything else is left out.

    Raises `ValueError` for a structure that is no model's: too deep, with too many names for few things, or with names
    of more than `MOST_NAME` characters.
    """
    found: dict[str, Leaf] = {}
    left = MOST_NODES

    def visit(node: object, prefix: str, above: tuple[int, ...]) -> None:
        nonlocal left
        left -= 1
        if left < 0 or len(above) > MOST_LEVELS:
            raise ValueError(f"more than {MOST_NODES} entries, or more than {MOST_LEVELS} levels of them")
        if isinstance(node, leaf):
            found.setdefault(prefix, node)
        elif isinstance(node, Mapping) and id(node) not in above:  # pickles can hold themselves
            for key, value in node.items():
                name = _name(prefix, key)
                if name is not None:
                    visit(value, name, (*above, id(node)))

    visit(content, "", ())
    found.pop("", None)  # a bare tensor has no name
    return found


def _name(prefix: str, key: object) -> str | None:
    """The name of what stands under ``key``, or None where the key is none that a tensor has."""
    if isinstance(key, bool) or not isinstance(key, (str, int)) or (isinstance(key, int) and abs(key) > 10**9):
        return None
    if isinstance(key, str) and len(prefix) + len(key) > MOST_NAME:
        raise ValueError(f"a name of more than {MOST_NAME} characters")
    return f"{prefix}.{key}" if prefix else str(key)


def without_shared_prefix(tensors: dict[str, Leaf]) -> dict[str, Leaf]:
    """Names without the ``module.`` that DataParallel puts before every one of them."""
    if all(name.startswith(PREFIX) for name in tensors):
        return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    return tensors
