"""flamingo-rt: train, export and run Flamingo vision-language models.

    import flamingo_rt
    from flamingo_rt import Image

    model = flamingo_rt.load()
    for piece in model.generate([Image("photo.png"), "Output:"]):
        print(piece, end="")

Importing this package loads nothing heavy: names are resolved on first use. It logs under the name "flamingo_rt", and
an application that sets up no logging sees nothing of it.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flamingo_rt.errors import DataError, DependencyError, FlamingoError, ParityError, UsageError
    from flamingo_rt.loading import load
    from flamingo_rt.processing.visuals import Image, PixelValues, Video
    from flamingo_rt.runtime.generation_options import GenerationOptions, GenerationResult, Score
    from flamingo_rt.runtime.model import Model, PromptState

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    "DataError": "errors",
    "DependencyError": "errors",
    "FlamingoError": "errors",
    "GenerationOptions": "runtime.generation_options",
    "GenerationResult": "runtime.generation_options",
    "Image": "processing.visuals",
    "Model": "runtime.model",
    "ParityError": "errors",
    "PixelValues": "processing.visuals",
    "PromptState": "runtime.model",
    "Score": "runtime.generation_options",
    "UsageError": "errors",
    "Video": "processing.visuals",
    "load": "loading",
}

__all__ = [
    "DataError", "DependencyError", "FlamingoError", "GenerationOptions", "GenerationResult", "Image", "Model",
    "ParityError", "PixelValues", "PromptState", "Score", "UsageError", "Video", "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
