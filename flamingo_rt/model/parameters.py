"""Parameter counts by part, without allocating the model."""

from __future__ import annotations

from flamingo_rt.config import ExternalVisionConfig, FlamingoConfig
from flamingo_rt.model.flamingo import Flamingo, on_meta_device


def count_parameters(config: FlamingoConfig) -> dict[str, int]:
    """Parameters of each part, ``total``, and ``trainable`` with vision encoder and language model frozen (§3)."""
    with on_meta_device():
        model = Flamingo(config)
    parts = ("vision", "resampler", "cross_attention", "language")
    counts = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in parts}
    if isinstance(config.vision, ExternalVisionConfig):
        counts["vision"] = config.vision.parameters  # they are in its graph
    counts["total"] = sum(counts.values())
    model.freeze()
    counts["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return counts
