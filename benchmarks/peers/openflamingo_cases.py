"""The small models that the peer is built as."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ROWS, RESIZED = 60, 64  # rows of the language model's embedding, before and after OpenFlamingo resizes it
END_OF_CHUNK, MEDIA, PAD = 60, 61, 62
CONTEXT = 128
VISION = {"image_size": 28, "patch_size": 7, "width": 64, "layers": 3, "head_width": 16, "mlp_ratio": 4.0}
PLAIN, WRAPPED = "plain", "model_state_dict with module."


@dataclass(frozen=True)
class Case:
    """One model.

    ``naming`` of the checkpoint's gated layers: "list" (``lang_encoder.gated_cross_attn_layers.N``), "layers" (what
    OpenFlamingo's own filter leaves, ``lang_encoder.<decoder layers>.N.gated_cross_attn_layer``), "all" (the whole
    state dict without the vision encoder, every alias). ``text_tower`` and ``buffers`` add tensors that files of that
    kind hold and that mean nothing here: CLIP's text side, and what older releases of transformers saved. ``rows`` of
    the embedding before OpenFlamingo resizes it; those of ``silent`` tokens are zero in the checkpoint, and so are
    their logits: such a token is never among the likeliest.
    """

    family: str
    interval: int
    seed: int
    naming: str
    wrapping: str = PLAIN
    vision: str = "open_clip"
    activation: str = "quick_gelu"
    post_norm: bool = False
    text_tower: bool = False
    buffers: bool = False
    tied_head_in_file: bool = False
    language: dict[str, Any] = field(default_factory=dict)
    rows: int = ROWS
    context: int = CONTEXT
    silent: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.family}-interval{self.interval}" + ("-post_norm" if self.post_norm else "")

    @property
    def end_of_chunk(self) -> int:
        return self.rows

    @property
    def media(self) -> int:
        return self.rows + 1

    @property
    def resized(self) -> int:
        return self.rows + RESIZED - ROWS


CASES = (
    Case("mpt", 1, 161, "layers", WRAPPED),
    Case("mpt", 1, 122, "layers", post_norm=True),
    Case("mpt", 2, 163, "list", text_tower=True),
    Case("mpt", 4, 124, "layers", vision="transformers"),
    Case("mosaic_gpt", 1, 151, "layers"),
    Case("mosaic_gpt", 2, 112, "layers", activation="gelu"),
    Case("mosaic_gpt", 4, 153, "list"),
    Case("gpt_neox", 1, 121, "list", buffers=True),
    Case("gpt_neox", 2, 122, "layers", WRAPPED, vision="transformers", activation="gelu", buffers=True,
         language={"use_parallel_residual": False}),
    Case("gpt_neox", 4, 123, "layers", language={"rotary_pct": 0.25}),
    Case("llama", 1, 131, "layers", WRAPPED, buffers=True),
    Case("llama", 2, 132, "all", vision="transformers", text_tower=True, language={"rope_theta": 500.0}),
    Case("llama", 4, 133, "list", activation="gelu", language={"rms_norm_eps": 1e-5}),
    Case("opt", 1, 141, "list"),
    Case("opt", 2, 142, "layers", tied_head_in_file=True),
    Case("opt", 4, 143, "layers", WRAPPED, activation="gelu"),
)
