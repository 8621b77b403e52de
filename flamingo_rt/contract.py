"""The three graphs: names, dtypes and shapes of their inputs and outputs, and the size limits of compiled ones.

The exporter, the engines and the runtime read this table; no other file spells the name of a graph's tensor.

Dimensions: N pictures and frames in one run of the vision encoder, M visuals (a picture or a clip each) in one run of
the resampler, F frames of a visual, B rows of a batch, T new tokens of a row, K positions of a row whose logits are
wanted, C the capacity of the cache in tokens, S the latents that a row attends to: those of its visuals, one visual
after the other.

A graph has its cache in one of two forms. ``in-place``: past and present are the whole cache [B, Hk, C, d] and may
share memory. ``appended``: the past [C, B, Hk, d] is read, and present [T, B, Hk, d] holds the new tokens alone, which
the backend puts into the cache. d is `cached_head_width`; values beyond a head's own width are 0.

Beside its logits the language model outputs the likeliest token at each of those positions and its log-probability: a
greedy loop needs no more, and on a device the logits stay where they are.

A compiled engine accepts only sizes within its `Limits`; `size_ranges` turns them into a range for each letter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flamingo_rt.config import FlamingoConfig, LanguageConfig
from flamingo_rt.errors import UsageError

VISION_ENCODER, RESAMPLER, LANGUAGE_MODEL = "vision_encoder", "resampler", "language_model"
GRAPHS = (VISION_ENCODER, RESAMPLER, LANGUAGE_MODEL)

IN_PLACE, APPENDED = "in-place", "appended"
CACHE_FORMS = {"ort": IN_PLACE, "tensorrt": IN_PLACE, "tensorrt-classic": APPENDED}  # by lowering

# Pictures and frames in one run of the vision encoder, and visuals in one run of the resampler. A few already fill the
# matrix products; more would only take memory, and delay answers that decode at the same time.
ENCODED_AT_ONCE = 4

# Head widths in the self-attention cache are multiples of this. ONNX Runtime's GroupQueryAttention refuses others, and
# TensorRT-RTX 1.7.1 has no kernel for them: it compiles heads of 40 and 104 numbers, and refuses 36 and 100.
HEAD_WIDTH_STEP = 8

Dimension = int | str
FLOAT_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output; a dimension is a number, or the letter of a size known only at run time."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]

    @property
    def array_dtype(self) -> str:
        """numpy's dtype for this tensor. numpy has no bfloat16: its bits are kept as uint16."""
        return "uint16" if self.dtype == "bfloat16" else self.dtype

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with every letter replaced by its size."""
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)


@dataclass(frozen=True)
class GraphSpec:
    """Inputs and outputs of one graph, in order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        """The input called ``name``."""
        return next(spec for spec in self.inputs if spec.name == name)

    def output(self, name: str) -> TensorSpec:
        """The output called ``name``."""
        return next(spec for spec in self.outputs if spec.name == name)


# Names of the tensors, in every file and every runtime.
PIXEL_VALUES, FEATURES = "pixel_values", "features"
INPUT_IDS, CACHE_LENGTH, MEDIA_INDEX, LOGITS_INDEX = "input_ids", "cache_length", "media_index", "logits_index"
LOGITS = "logits"

# The greedy choice: the likeliest token (the first one of equals) and the natural logarithm of its probability.
NEXT_TOKEN, NEXT_LOGPROB = "next_token", "next_logprob"

# In the names of weights that hold relative positions, projected for every distance between tokens, in chunks
# `relative_keys.0`, `relative_keys.1` and so on: a run reads as many as its context reaches.
RELATIVE_KEYS = "relative_keys"


def media_name(layer: int, part: str) -> str:
    """Name of the media keys or values of the ``layer``-th cross-attention layer; ``part`` is ``key`` or ``value``."""
    return f"media_key_values.{layer}.{part}"


def past_name(layer: int, part: str) -> str:
    """Name of the input with the self-attention cache of language layer ``layer``."""
    return f"past_key_values.{layer}.{part}"


def present_name(layer: int, part: str) -> str:
    """Name of the output with the self-attention cache of language layer ``layer``."""
    return f"present.{layer}.{part}"


def present_of(past: str) -> str:
    """Name of the cache output that belongs to the input ``past``."""
    return past.replace("past_key_values", "present", 1)


def past_of(present: str) -> str:
    """Name of the cache input that belongs to the output ``present``."""
    return present.replace("present", "past_key_values", 1)


def layer_parts(layers: int) -> list[tuple[int, str]]:
    """(layer, ``key``) and (layer, ``value``) for each layer, in the order of the graphs."""
    return [(layer, part) for layer in range(layers) for part in ("key", "value")]


def cached_head_width(language: LanguageConfig) -> int:
    """Width of a head in the self-attention cache: the model's, rounded up to a multiple of `HEAD_WIDTH_STEP`."""
    return -(-language.head_width // HEAD_WIDTH_STEP) * HEAD_WIDTH_STEP


def graph_specs(config: FlamingoConfig, dtype: str = "float32", cache: str = IN_PLACE) -> dict[str, GraphSpec]:
    """The three graphs of a model, by name.

    ``dtype``, one of `FLOAT_DTYPES`, is the one they compute in, and the one of features, media and cache; pixel values
    and logits are always float32. ``cache`` is `IN_PLACE` or `APPENDED`.
    """
    graphs = (_vision_encoder(config, dtype), _resampler(config, dtype), _language_model(config, dtype, cache))
    return {spec.name: spec for spec in graphs}


def _vision_encoder(config: FlamingoConfig, dtype: str) -> GraphSpec:
    vision = config.vision
    return GraphSpec(
        VISION_ENCODER,
        (TensorSpec(PIXEL_VALUES, "float32", ("N", 3, vision.image_size, vision.image_size)),),
        (TensorSpec(FEATURES, dtype, ("N", vision.feature_count, vision.width)),),
    )


def _media(config: FlamingoConfig, dtype: str, leading: Dimension, latents: Dimension) -> tuple[TensorSpec, ...]:
    cross = config.cross_attention
    shape = (leading, cross.heads, latents, cross.head_width)
    return tuple(
        TensorSpec(media_name(layer, part), dtype, shape) for layer, part in layer_parts(len(config.cross_layers))
    )


def _resampler(config: FlamingoConfig, dtype: str) -> GraphSpec:
    features = ("M", "F", config.vision.feature_count, config.vision.width)
    media = _media(config, dtype, "M", config.resampler.latents)
    return GraphSpec(RESAMPLER, (TensorSpec(FEATURES, dtype, features),), media)


def _language_model(config: FlamingoConfig, dtype: str, cache: str) -> GraphSpec:
    language = config.language
    heads, width = language.kv_heads, cached_head_width(language)
    past: tuple[Dimension, ...] = ("B", heads, "C", width)
    present = past
    if cache == APPENDED:
        past, present = ("C", "B", heads, width), ("T", "B", heads, width)
    parts = layer_parts(language.layers)
    return GraphSpec(
        LANGUAGE_MODEL,
        (
            TensorSpec(INPUT_IDS, "int64", ("B", "T")),
            TensorSpec(CACHE_LENGTH, "int64", ("B",)),
            TensorSpec(MEDIA_INDEX, "int64", ("B", "T")),
            TensorSpec(LOGITS_INDEX, "int64", ("B", "K")),
            *_media(config, dtype, "B", "S"),
            *(TensorSpec(past_name(layer, part), dtype, past) for layer, part in parts),
        ),
        (
            TensorSpec(LOGITS, "float32", ("B", "K", language.vocab_size)),
            TensorSpec(NEXT_TOKEN, "int64", ("B", "K")),
            TensorSpec(NEXT_LOGPROB, "float32", ("B", "K")),
            *(TensorSpec(present_name(layer, part), dtype, present) for layer, part in parts),
        ),
    )


# The sizes that a compiled engine accepts.

PREFILL, DECODE = "prefill", "decode"
CLIP_FRAMES = 8  # frames of a clip, at most, where the resampler has no time embeddings to bound them
LOGITS_AT_ONCE = 64  # positions of a row whose logits are wanted at once, at most
# TensorRT-RTX 1.7 reads the cache in place where a row always takes exactly one new token; where it may take several,
# it copies the whole cache in each step. And where all sizes are fixed, it keeps a second copy of the weights, in
# another layout: so decoding accepts two rows, even where one was asked for.
DECODE_ROWS = 2


@dataclass(frozen=True)
class Limits:
    """The largest sizes of a run: rows of a ``batch``, new ``tokens`` of a row, ``visuals`` of a row, ``frames`` of a
    visual, and ``capacity`` of the cache in tokens."""

    batch: int
    tokens: int
    visuals: int
    frames: int
    capacity: int

    @staticmethod
    def of(
        config: FlamingoConfig, batch: int | None = None, tokens: int | None = None, visuals: int | None = None,
        frames: int | None = None, capacity: int | None = None,
    ) -> Limits:
        """The given limits; where none is given, the model's own, with 4 rows of at most 1024 new tokens.

        Raises `UsageError` for a limit below 1 or above the model's own.
        """
        context, most_frames = config.language.context, config.resampler.max_frames
        capacity = context if capacity is None else capacity
        limits = Limits(
            4 if batch is None else batch, min(1024, capacity) if tokens is None else tokens,
            config.max_visuals if visuals is None else visuals,
            most_frames or CLIP_FRAMES if frames is None else frames, capacity,
        )
        most = {"tokens": capacity, "visuals": config.max_visuals, "frames": most_frames or None, "capacity": context}
        for name, value in vars(limits).items():
            upper = most.get(name)
            if value < 1 or (upper is not None and value > upper):
                bound = "1 or more" if upper is None else f"from 1 to {upper:,}"
                raise UsageError(f"the limit of {name} is {value:,}; it must be {bound} for this model")
        return limits


@dataclass(frozen=True)
class SizeRange:
    """Smallest, most frequent (``opt``) and largest size of a dimension."""

    min: int
    opt: int
    max: int


# Ranges by letter, by the name of the case: an engine has one set of kernels (an optimization profile) for each case.
Cases = dict[str, dict[str, SizeRange]]


def size_ranges(config: FlamingoConfig, limits: Limits, cache: str = IN_PLACE) -> dict[str, Cases]:
    """Sizes that the engine of each graph accepts.

    The language model has two cases, `PREFILL` and `DECODE` (one token of each row; verifying several guessed tokens is
    a small prefill). An in-place cache always has its full capacity.
    """
    latents, attends_to_all = config.resampler.latents, config.cross_attention.attend == "all"
    at_once = min(ENCODED_AT_ONCE, limits.batch * limits.visuals * limits.frames)
    visuals = min(ENCODED_AT_ONCE, limits.batch * limits.visuals)
    rows, one = SizeRange(1, 1, limits.batch), SizeRange(1, 1, 1)
    whole = SizeRange(limits.capacity, limits.capacity, limits.capacity)
    cached = whole if cache == IN_PLACE else SizeRange(1, max(1, limits.capacity // 2), limits.capacity)
    seen = SizeRange(latents, latents, limits.visuals * latents)
    return {
        VISION_ENCODER: {PREFILL: {"N": SizeRange(1, 1, at_once)}},
        RESAMPLER: {PREFILL: {"M": SizeRange(1, 1, visuals), "F": SizeRange(1, 1, limits.frames)}},
        LANGUAGE_MODEL: {
            PREFILL: {
                "B": rows, "T": SizeRange(1, min(64, limits.tokens), limits.tokens),
                "K": SizeRange(1, 1, min(LOGITS_AT_ONCE, limits.tokens)), "S": seen, "C": cached,
            },
            # After prefill a token attends to the last visual only, unless the model attends to all.
            DECODE: {
                "B": replace(rows, max=max(DECODE_ROWS, limits.batch)), "T": one, "K": one,
                "S": seen if attends_to_all else SizeRange(latents, latents, latents), "C": cached,
            },
        },
    }
