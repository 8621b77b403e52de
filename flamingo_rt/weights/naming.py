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


def flattened(content: object, leaf: type[Leaf]) -> dict[str, Leaf]:
    """Every ``leaf`` in nested mappings by its dotted name, in their order. Anything else is left out.

    Raises `ValueError` for a structure that is no model's: too deep, or with too many names for few things.
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
                visit(value, f"{prefix}.{key}" if prefix else str(key), (*above, id(node)))

    visit(content, "", ())
    found.pop("", None)  # a bare tensor has no name
    return found


def without_shared_prefix(tensors: dict[str, Leaf]) -> dict[str, Leaf]:
    """Names without the ``module.`` that DataParallel puts before every one of them."""
    if all(name.startswith(PREFIX) for name in tensors):
        return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    return tensors
