"""From a weight in a graph back to the model's tensors it was made of."""

from __future__ import annotations

from typing import Any

# From an initializer's name in a graph to the tensor's name in the model: what the wrappers put in front.
WRAPPER = "model."
TRANSPOSED = ".transposed"
PARTS = "parts"  # in the metadata of a weight that was changed: what `parts_of` gives


def tensor_name(initializer: str) -> str:
    """The model's name of the tensor that an initializer holds."""
    return initializer.removeprefix(WRAPPER).removesuffix(TRANSPOSED)


def parts_of(weight: Any) -> list[tuple[str, float]]:
    """The model's tensors that stand side by side in a weight, each with the factor it is multiplied by."""
    return weight.meta.get(PARTS) or [(tensor_name(weight.name), 1.0)]
