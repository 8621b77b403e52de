"""The families of language models, by the ``model_type`` of their ``config.json``."""

from __future__ import annotations

from flamingo_rt.errors import DataError
from flamingo_rt.importing.family import Family
from flamingo_rt.importing.gpt_neox import GPT_NEOX
from flamingo_rt.importing.llama import LLAMA
from flamingo_rt.importing.mpt import MPT
from flamingo_rt.importing.opt import OPT
from flamingo_rt.importing.settings import NOWHERE, Settings

FAMILIES: dict[str, Family] = {"mpt": MPT, "mosaic_gpt": MPT, "gpt_neox": GPT_NEOX, "llama": LLAMA, "opt": OPT}


def family_of(settings: Settings) -> Family:
    """The family that a ``config.json`` names. Raises `DataError` that lists the known ones, and for keys that no
    family supports."""
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise DataError(f"{settings.path}: model_type is {kind!r}; language models known: {', '.join(FAMILIES)}")
    settings.must(NOWHERE)
    return FAMILIES[kind]
