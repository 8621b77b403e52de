"""The memory a model needs, computed before it is made: an error with the figure instead of a killed process."""

from __future__ import annotations

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError
from flamingo_rt.parameter_count import reckon_parameters
from flamingo_rt.system_memory import available_bytes, readable_bytes

WEIGHTS = 4  # bytes a parameter, in float32
TRAINING = 16  # weights, gradients and the two moments of AdamW; activations come on top


def require_memory(
    config: FlamingoConfig, bytes_a_parameter: float, purpose: str, available: int | None = None
) -> None:
    """Raise `DataError` when a model of this configuration needs more memory than this process can get, or than the
    ``available`` bytes of a GPU.

    Nothing is refused where the available memory is unknown.
    """
    parameters = reckon_parameters(config)["total"]
    made_of = f"{parameters / 1e6:,.1f}M parameters, {bytes_a_parameter:g} bytes each"
    require_bytes(int(parameters * bytes_a_parameter), purpose, made_of, available=available)


SMALLER_MODEL = "take a smaller model, or a machine with more memory"


def require_bytes(
    needed: int, purpose: str, made_of: str, remedy: str = SMALLER_MODEL, available: int | None = None
) -> None:
    """Raise `DataError` when this process cannot get ``needed`` bytes; ``made_of`` explains them in the message.
    ``available``: the bytes that there are, of a GPU; by default this host's."""
    if available is None:
        available = available_bytes()
    if available is not None and needed > available:
        raise DataError(
            f"{purpose} needs at least {readable_bytes(needed)} of memory ({made_of}), {readable_bytes(available)} are "
            f"available: {remedy}"
        )
