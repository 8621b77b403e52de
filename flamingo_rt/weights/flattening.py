"""The nested mappings of a checkpoint, flattened to tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

WRAPPERS = ("state_dict", "model_state_dict")
PREFIX = "module."

Leaf = TypeVar("Leaf")


def unwrapped(content: object) -> object:
    """The state dict within a training checkpoint, which has epoch and optimizer beside it; else ``content`` itself."""
    for _ in WRAPPERS:  # one inside the other at most
        if isinstance(content, Mapping):
            inner = (content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping))
            content = next(inner, content)
    return content


# A mapping that occurs in several places is followed in each, so a few bytes could stand for billions of names.
MOST_NODES, MOST_LEVELS = 1_000_000, 64
MOST_NAME = 1_000  # characters of a tensor's full name; real ones have some 100
MOST_TEXT = 20_000_000  # characters of all names: a prefix is stored once but repeated in every name below it
MOST_NUMBER = 1 << 63  # a number as a key, as optimizers use them


def flattened(content: object, leaf: type[Leaf]) -> dict[str, Leaf]:
    """Every ``leaf`` in nested mappings by its dotted name, in order. Anything else is left out.

    Raises `ValueError` for structures that no model has: too deep, too many or too long names, or tensors under keys
    that are neither text nor numbers.
    """
    found: dict[str, Leaf] = {}
    left, text = MOST_NODES, 0

    def visit(node: object, prefix: str, above: tuple[int, ...]) -> None:
        nonlocal left, text
        left -= 1
        if left < 0 or len(above) > MOST_LEVELS:
            raise ValueError(f"more than {MOST_NODES} entries, or more than {MOST_LEVELS} levels of them")
        if isinstance(node, leaf):
            text += len(prefix)
            if text > MOST_TEXT:
                raise ValueError(f"the names of its tensors have more than {MOST_TEXT} characters")
            found.setdefault(prefix, node)
        elif isinstance(node, Mapping) and id(node) not in above:  # pickles can contain themselves
            for key, value in node.items():
                if isinstance(value, (leaf, Mapping)):  # other keys name nothing
                    visit(value, _joined(prefix, key), (*above, id(node)))

    visit(content, "", ())
    found.pop("", None)  # a bare tensor has no name
    return found


def _joined(prefix: str, key: object) -> str:
    """Append ``key`` to a name. Its type is checked before it becomes text: a tuple could expand to gigabytes."""
    if not isinstance(key, str) and not (isinstance(key, int) and -MOST_NUMBER <= key < MOST_NUMBER):
        raise ValueError(f"a key of type {type(key).__name__} that is neither a text nor a 64-bit number")
    if isinstance(key, str) and len(prefix) + len(key) >= MOST_NAME:
        raise ValueError(f"a name of {MOST_NAME} characters or more")
    return f"{prefix}.{key}" if prefix else str(key)


def without_shared_prefix(tensors: dict[str, Leaf]) -> dict[str, Leaf]:
    """Remove the ``module.`` that DataParallel puts before every name."""
    if all(name.startswith(PREFIX) for name in tensors):
        return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    return tensors
