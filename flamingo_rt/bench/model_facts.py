"""Facts about a model before it runs: its files, types and bytes of weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flamingo_rt.bench import ceilings
from flamingo_rt.bench.results import ModelFacts
from flamingo_rt.bundle import WeightBytes, is_bundle, read_description
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL, RESAMPLER, VISION_ENCODER
from flamingo_rt.runtime.model import Model


@dataclass(frozen=True)
class Measured:
    """The facts that are reported, and the bytes that each graph reads."""

    facts: ModelFacts
    weights: dict[str, WeightBytes]


def model_facts(model: Model, folder: Path | None, threads: int | None) -> Measured:
    """Facts of a loaded model. ``folder`` is what it was loaded from; without one, or for a checkpoint, the weights are
    counted from the configuration, in the type that the backend computes in. Raises `DataError` for a bundle that is
    damaged."""
    cached = next(spec for spec in model.backend.specs[LANGUAGE_MODEL].inputs if "C" in spec.shape)
    dtype: dict[str, str] = dict.fromkeys(GRAPHS, cached.dtype)
    quantization: dict[str, str | None] = dict.fromkeys(GRAPHS)
    if folder is not None and is_bundle(folder):
        graphs = read_description(folder).graphs
        dtype = {name: entry.dtype for name, entry in graphs.items()}
        quantization = {name: entry.quantization for name, entry in graphs.items()}
        weights = {name: entry.weight_bytes for name, entry in graphs.items()}
    else:
        weights = counted_weights(model.config, np.dtype(cached.array_dtype).itemsize)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder is not None else None
    facts = ModelFacts(
        name=model.config.name, identity=model.identity, folder=str(folder) if folder is not None else None,
        backend=model.backend.name, threads=threads, dtype=dtype, quantization=quantization,
        weight_bytes={name: weights[name].stored for name in GRAPHS}, bytes=size,
    )
    return Measured(facts, weights)


def counted_weights(config: FlamingoConfig, number: int = ceilings.FLOAT) -> dict[str, WeightBytes]:
    """Matrices of numbers of ``number`` bytes, from the configuration."""
    products = {
        VISION_ENCODER: ceilings.vision_products(config), RESAMPLER: ceilings.resampler_products(config),
        LANGUAGE_MODEL: ceilings.language_products(config),
    }
    read = {name: ceilings.parameter_bytes(each) * number // ceilings.FLOAT for name, each in products.items()}
    row = config.language.width * number
    table = 0 if config.language.tied_head else config.language.vocab_size * row
    found = {name: WeightBytes(size, size, 0) for name, size in read.items()}
    return found | {LANGUAGE_MODEL: WeightBytes(read[LANGUAGE_MODEL] + table, read[LANGUAGE_MODEL], row)}
