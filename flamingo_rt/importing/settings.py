"""The ``config.json`` of another project, read key by key: a value that is not supported is an error, not a guess."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from flamingo_rt.config import Activation
from flamingo_rt.errors import DataError

# The transformers library's names of activations -> ours.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"
}

# Settings that no family supports, with the value that changes nothing. The transformers library knows these keys for
# every model, or for models whose files may claim to be of one of our families.
NOWHERE: dict[str, object] = {
    "per_layer_config": None, "quantization_config": None, "pruned_heads": {}, "sliding_window": None,
    "attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": None,
    "attention_multiplier": None, "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
    "qk_norm": False, "use_qk_norm": False, "qk_layernorm": False,
}

SQUARES = ("image_size", "patch_size")  # written as one number, or as two equal ones

LARGEST = 10_000_000  # no size of a model is above it

Triple = tuple[float, float, float]
Text = TypeVar("Text", bound=str)


class Settings:
    """A JSON object with the file it came from. Every method raises `DataError` that names file, key and value."""

    def __init__(self, path: Path, data: Any, where: str = "") -> None:
        if not isinstance(data, dict):
            raise DataError(f"{path}: {where.rstrip('.') or 'the file'} is {data!r}, not an object")
        self.path, self._data, self._where = path, data, where

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or ``default`` when it is missing or null."""
        value = self._data.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 to `LARGEST`."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
            raise DataError(f"{self._name(key)} is {value!r}, a whole number from 1 to {LARGEST} was expected")
        return value

    def number(self, key: str, default: float) -> float:
        """A number of a usable size, not NaN."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
            raise DataError(f"{self._name(key)} is {value!r}, a number was expected")
        return float(value)

    def triple(self, key: str, default: Triple) -> Triple:
        """Three numbers, one for each colour."""
        value = self.get(key, list(default))
        if not isinstance(value, list) or len(value) != 3 or None in value:
            raise DataError(f"{self._name(key)} is {value!r}, three numbers were expected")
        first, second, third = (Settings(self.path, {key: part}, self._where).number(key, 0.0) for part in value)
        return first, second, third

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false; required where there is no default."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise DataError(f"{self._name(key)} is {value!r}, true or false was expected")
        return value

    def section(self, key: str) -> Settings:
        """An object inside this one; empty when it is missing."""
        return Settings(self.path, self.get(key, {}), f"{self._where}{key}.")

    def activation(self, key: str, default: str) -> Activation:
        """An activation, under our name."""
        return ACTIVATIONS[self.choice(key, default, tuple(ACTIVATIONS))]

    def choice(self, key: str, default: Text, known: tuple[Text, ...]) -> Text:
        """One of the texts in ``known``."""
        value = self.get(key, default)
        if value not in known:
            raise DataError(f"{self._name(key)} is {value!r}; known: {', '.join(known)}")
        return value

    def plain_rotary(self) -> Settings:
        """Parameters of rotary embeddings, in ``rope_scaling``, which the library prefers, or ``rope_parameters``.

        Refuses scaled rotary embeddings, and parameters that differ between layers.
        """
        for key in ("rope_scaling", "rope_parameters"):
            section = self.section(key)
            section.must({"rope_type": "default", "type": "default"})
            for name, value in section._data.items():
                if isinstance(value, dict):
                    raise section.refused(name, "rotary embeddings that differ between layers cannot be imported")
        return self.section("rope_scaling" if self.get("rope_scaling") else "rope_parameters")

    def only(self, known: Collection[str]) -> None:
        """Refuse unknown keys, unless their value is null or false, which changes nothing."""
        for key, value in self._data.items():
            if key not in known and value is not None and value is not False:
                raise self.refused(key, "this key is not known: take it out if the result does not depend on it")

    def refused(self, key: str, why: str) -> DataError:
        """An error with the value of ``key`` and ``why`` it is refused."""
        return DataError(f"{self._name(key)} is {self.get(key)!r}; {why}")

    def agree(self, found: Mapping[str, int]) -> None:
        """Refuse sizes that differ from those ``found`` in the tensors: a library would drop layers, or make new
        positions."""
        for key, value in found.items():
            stated = self.get(key, value)
            if stated != value and not (key in SQUARES and stated == [value, value]):
                raise self.refused(key, f"the tensors have {value}")

    def must(self, supported: Mapping[str, Any]) -> None:
        """Refuse settings with another value than ``supported``: they would change the computation."""
        for key, value in supported.items():
            found = self.get(key, value)
            if found != value:
                raise DataError(f"{self._name(key)} is {found!r}; only {value!r} can be imported")

    def _name(self, key: str) -> str:
        return f"{self.path}: {self._where}{key}"
