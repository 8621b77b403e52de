"""Named configurations: the paper's three models, OpenFlamingo's five, and "tiny", which is in this package.

Sizes follow tables 4 and 5 of the Flamingo paper (arXiv 2204.14198). The tables disagree for 9B: table 4 prints 40
language layers and 10 cross-attention layers, which gives 8.9B and 2.0B; the counts of table 5 (7.1B and 1.6B) need 32
and 8. Table 5 is followed.

OpenFlamingo's (arXiv 2308.01390, table 1) are CLIP ViT-L/14 with a resampler of its width and one of three language
models; an instruction-tuned sister has the same sizes. Their vocabulary is the GPT-NeoX tokenizer's 50,277 tokens and
three more: end of chunk, image, padding.
"""

from __future__ import annotations

from collections.abc import Callable

from flamingo_rt.config import (
    CrossAttentionConfig,
    ExternalVisionConfig,
    FlamingoConfig,
    LanguageConfig,
    NFNetConfig,
    PreprocessingConfig,
    PromptsConfig,
    ResamplerConfig,
    TokensConfig,
    ViTConfig,
)
from flamingo_rt.errors import UsageError


def _paper(name: str, width: int, heads: int, layers: int, interval: int) -> FlamingoConfig:
    """A model of the paper: NFNet-F6, 6 resampler layers of width 1536, a Chinchilla-like language model."""
    return FlamingoConfig(
        name=name,
        vision=NFNetConfig(),
        resampler=ResamplerConfig(),
        cross_attention=CrossAttentionConfig(interval=interval, heads=heads, head_width=128, media_width=width),
        language=LanguageConfig(
            width=width, layers=layers, heads=heads, kv_heads=heads, head_width=128, ff_width=4 * width,
            positions="relative",
        ),
    )


def _tiny() -> FlamingoConfig:
    """About 3.1M parameters: 64-pixel pictures, sentences about drawn scenes. With ALiBi a small decoder learns to copy
    from its prompt; pictures are squashed, since bars would take pixels, of which there are few."""
    return FlamingoConfig(
        name="tiny",
        vision=NFNetConfig(
            image_size=64, stem_widths=(16, 32, 48), stem_strides=(2, 1, 1), widths=(64, 96, 128), depths=(1, 2, 2),
            strides=(2, 2, 1), group_width=16, squeeze_excite=0.5, output_width=160,
        ),
        resampler=ResamplerConfig(
            width=128, layers=2, heads=4, head_width=32, latents=24, max_frames=8, input_norms=True, final_norm=True,
            spatial_positions=True,
        ),
        cross_attention=CrossAttentionConfig(interval=1, heads=4, head_width=32, norm="rmsnorm", norm_bias=False),
        language=LanguageConfig(
            vocab_size=768, width=128, layers=6, heads=4, kv_heads=2, head_width=32, ff_width=384, context=1024,
            activation="swiglu", positions="alibi",
        ),
        preprocessing=PreprocessingConfig(resize="squash"),
        max_visuals=40,
    )


def _photos() -> FlamingoConfig:
    """Names of real pictures (recipes/photos): a bridge of 8.65M parameters between EfficientNet-Lite2 and
    SmolLM2-135M-Instruct, as other projects trained them. What is below layer 8 needs no backward pass."""
    return FlamingoConfig(
        name="photos",
        vision=ExternalVisionConfig(
            image_size=260, features=81, width=1280, parameters=4_869_168, graph_bytes=19_578_061,
            multiply_adds=858_456_272,
        ),
        resampler=ResamplerConfig(
            width=384, layers=1, heads=6, head_width=64, latents=16, ff_multiplier=2, max_frames=0, input_norms=True,
            final_norm=True, spatial_positions=True,
        ),
        cross_attention=CrossAttentionConfig(
            interval=4, first=8, heads=4, head_width=64, ff_multiplier=1, norm="rmsnorm", norm_bias=False,
        ),
        language=LanguageConfig(
            vocab_size=49154, width=576, layers=30, heads=9, kv_heads=3, head_width=64, ff_width=1536, context=8192,
            activation="swiglu", rotary_base=100000.0,
        ),
        preprocessing=PreprocessingConfig(
            resize="crop", mean=(127 / 255,) * 3, std=(128 / 255,) * 3,
        ),
        tokens=TokensConfig(bos="", eos="<|im_end|>", pad="<|im_end|>"),
        max_visuals=40,
    )


# The mean and the standard deviation of CLIP's training pictures (github.com/openai/CLIP, clip.py).
CLIP_PREPROCESSING = PreprocessingConfig(
    resize="crop", interpolation="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
)
# As OpenFlamingo was trained and evaluated (its eval/ folder): no spaces around the texts.
OPENFLAMINGO_PROMPTS = PromptsConfig(caption="Output:", question="Question:{} Short answer:", answer_separator="")


def _openflamingo(name: str, interval: int, language: LanguageConfig) -> FlamingoConfig:
    return FlamingoConfig(
        name=name,
        vision=ViTConfig(),
        resampler=ResamplerConfig(
            width=1024, heads=8, head_width=64, max_frames=0, activation="gelu", input_projection=False,
            input_norms=True, final_norm=True,
        ),
        cross_attention=CrossAttentionConfig(
            interval=interval, offset="last", heads=8, head_width=64, activation="gelu",
        ),
        language=language,
        preprocessing=CLIP_PREPROCESSING,
        tokens=TokensConfig(bos="", eos="<|endoftext|>", pad="<PAD>"),
        prompts=OPENFLAMINGO_PROMPTS,
    )


def _mpt(width: int, layers: int, heads: int, query_key_norm: bool) -> LanguageConfig:
    return LanguageConfig(
        vocab_size=50280, width=width, layers=layers, heads=heads, kv_heads=heads, head_width=128, ff_width=4 * width,
        norm="layernorm", positions="alibi", query_key_norm=query_key_norm,
    )


def _redpajama() -> LanguageConfig:
    """RedPajama-INCITE-3B, a GPT-NeoX."""
    return LanguageConfig(
        vocab_size=50280, width=2560, layers=32, heads=32, kv_heads=32, head_width=80, ff_width=10240,
        norm="layernorm", norm_bias=True, attention_bias=True, attention_output_bias=True, ff_bias=True,
        tied_head=False,
    )


PRESETS: dict[str, Callable[[], FlamingoConfig]] = {
    "tiny": _tiny,
    "photos": _photos,
    "flamingo-3b": lambda: _paper("flamingo-3b", width=2048, heads=16, layers=24, interval=1),
    "flamingo-9b": lambda: _paper("flamingo-9b", width=4096, heads=32, layers=32, interval=4),
    "flamingo-80b": lambda: _paper("flamingo-80b", width=8192, heads=64, layers=80, interval=7),
    "openflamingo-3b": lambda: _openflamingo("openflamingo-3b", 1, _mpt(2048, 24, 16, True)),
    "openflamingo-3b-langinstruct": lambda: _openflamingo("openflamingo-3b-langinstruct", 1, _mpt(2048, 24, 16, True)),
    "openflamingo-4b": lambda: _openflamingo("openflamingo-4b", 2, _redpajama()),
    "openflamingo-4b-langinstruct": lambda: _openflamingo("openflamingo-4b-langinstruct", 2, _redpajama()),
    "openflamingo-9b": lambda: _openflamingo("openflamingo-9b", 4, _mpt(4096, 32, 32, False)),
}

# Billions of parameters in table 5.
PAPER_PARAMETERS: dict[str, dict[str, float]] = {
    "flamingo-3b": {"vision": 0.435, "resampler": 0.194, "cross_attention": 1.2, "language": 1.4, "total": 3.2},
    "flamingo-9b": {"vision": 0.435, "resampler": 0.194, "cross_attention": 1.6, "language": 7.1, "total": 9.3},
    "flamingo-80b": {"vision": 0.435, "resampler": 0.194, "cross_attention": 10.0, "language": 70.0, "total": 80.0},
}


def preset(name: str) -> FlamingoConfig:
    """The configuration called ``name``. Raises `UsageError` that lists the known names."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]()


def own_preset(name: str) -> FlamingoConfig:
    """The configuration called ``name``, whose parts are all this project's own. Raises `UsageError` as `preset` and
    `require_own_encoder` do."""
    config = preset(name)
    require_own_encoder(config)
    return config


def require_own_encoder(config: FlamingoConfig) -> None:
    """Raise `UsageError` where the encoder is another project's graph, of which nothing can be made without its
    file."""
    if isinstance(config.vision, ExternalVisionConfig):
        raise UsageError(f"the vision encoder of the preset {config.name} is another project's graph, which cannot be "
                         "made at random: take another preset")
