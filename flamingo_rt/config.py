"""The configuration of a Flamingo model: frozen dataclasses, checked once, stored as JSON beside the weights.

No torch and no onnx here: the runtime on a device reads the same file.
Sizes are in elements, widths are feature dimensions. Section numbers refer to the Flamingo paper (arXiv 2204.14198).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union

from flamingo_rt.errors import DataError
from flamingo_rt.json_files import read_json
from flamingo_rt.parameter_count import reckon_parameters

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "squared_relu", "swiglu"]
ViTActivation = Literal["gelu", "quick_gelu"]
Resize = Literal["pad", "crop", "squash"]


def require(condition: bool, message: str) -> None:
    """Raise `DataError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise DataError(f"invalid configuration: {message}")


# The largest value of each size, by its name. All are far beyond existing models (flamingo-80b: width 8192, 80 layers,
# ff_width 32768), and small enough that nothing computed from them overflows or takes long before it is refused.
LARGEST = {
    "image_size": 2048,  # SAM's 1024 are the largest known; a picture is then 50 MB of numbers
    "layers": 1024, "first": 1024, "depths": 1024,  # each becomes a module
    "heads": 4096, "kv_heads": 4096, "head_width": 4096, "ff_multiplier": 64,
    "ff_width": 1 << 20, "vocab_size": 1 << 22,  # the largest vocabularies have 256,000 tokens
    "context": 1 << 24, "position_offset": 1 << 20,  # contexts of 10 million tokens were announced
    "latents": 1 << 16, "max_frames": 1 << 16, "max_visuals": 1 << 20,
    "stem_strides": 64, "strides": 64,
    "features": 1 << 16, "graph_bytes": (1 << 31) - 1,  # the most that a graph with its weights inside can have
    "parameters": 1 << 31, "multiply_adds": 1 << 50,
}
LARGEST_WIDTH = 1 << 18  # for every other size
MOST_STAGES = 16
MOST_PARAMETERS = 4 * 10**12  # fifty times flamingo-80b


def require_sizes(config: Any, may_be_zero: tuple[str, ...] = ()) -> None:
    """Raise `DataError` for an integer of ``config`` below 1 (0 for names in ``may_be_zero``) or above its `LARGEST`, a
    float that is negative or not finite, and a list of more than `MOST_STAGES` entries."""
    for name in (entry.name for entry in dataclasses.fields(config)):
        value, least = getattr(config, name), 0 if name in may_be_zero else 1
        most = LARGEST.get(name, LARGEST_WIDTH)
        require(not isinstance(value, tuple) or len(value) <= MOST_STAGES,
                f"{type(config).__name__}.{name} has {len(value) if isinstance(value, tuple) else 1} entries, more "
                f"than {MOST_STAGES}")
        for number in value if isinstance(value, tuple) else (value,):
            require(not isinstance(number, float) or 0 <= number < 1e30,
                    f"{type(config).__name__}.{name} is {value}, not a finite number of at least 0")
            require(not isinstance(number, int) or number <= most,
                    f"{type(config).__name__}.{name} is above {most}, the largest that is accepted")
            require(not isinstance(number, int) or isinstance(number, bool) or number >= least,
                    f"{type(config).__name__}.{name} is {value}, below {least}")


@dataclass(frozen=True)
class NFNetConfig:
    """A normaliser-free ResNet, NFNet-F (Brock et al., arXiv 2102.06171); the default is F6 without a classifier."""

    kind: Literal["nfnet"] = "nfnet"
    image_size: int = 320
    stem_widths: tuple[int, ...] = (16, 32, 64, 128)
    stem_strides: tuple[int, ...] = (2, 1, 1, 2)
    widths: tuple[int, ...] = (256, 512, 1536, 1536)
    depths: tuple[int, ...] = (7, 14, 42, 21)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    group_width: int = 128
    bottleneck: float = 0.5
    squeeze_excite: float = 0.5
    residual_scale: float = 0.2
    stochastic_depth: float = 0.0
    output_width: int = 3072

    def __post_init__(self) -> None:
        require_sizes(self)
        require(len(self.widths) == len(self.depths) == len(self.strides) > 0, "vision stages differ in number")
        require(len(self.stem_widths) == len(self.stem_strides) > 0, "stem_widths and stem_strides differ in length")
        for width in self.widths:
            inner = int(width * self.bottleneck)
            require(inner > 0 and inner % self.group_width == 0,
                    f"vision width {width}: its bottleneck width {inner} is not a multiple of group_width")
            require(inner <= LARGEST_WIDTH and 1 <= int(width * self.squeeze_excite) <= LARGEST_WIDTH,
                    f"vision width {width}: bottleneck {self.bottleneck} or squeeze_excite {self.squeeze_excite} gives "
                    f"a width outside 1 to {LARGEST_WIDTH}")

    @property
    def width(self) -> int:
        """Width of one feature."""
        return self.output_width

    @property
    def feature_count(self) -> int:
        """Number of features S of one picture: the cells of the last stage's grid."""
        side = self.image_size
        for stride in (*self.stem_strides, *self.strides):
            side = -(-side // stride)
        return side * side


@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer in CLIP's form (Radford et al., arXiv 2103.00020): class token, pre-norm; default ViT-L/14.

    ``post_norm`` applies the final norm to the patch tokens. OpenFlamingo was trained on the tokens before it.
    """

    kind: Literal["vit"] = "vit"
    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    ff_width: int = 4096
    activation: ViTActivation = "quick_gelu"
    norm_eps: float = 1e-5
    keep_class_token: bool = False
    post_norm: bool = False

    def __post_init__(self) -> None:
        require_sizes(self)
        require(self.image_size % self.patch_size == 0, f"image_size {self.image_size} is not a multiple of patch_size")
        require(self.width % self.heads == 0, f"vision width {self.width} is not a multiple of {self.heads} heads")

    @property
    def feature_count(self) -> int:
        """Number of features S of one picture: its patches, and the class token if it is kept."""
        return (self.image_size // self.patch_size) ** 2 + int(self.keep_class_token)


@dataclass(frozen=True)
class ExternalVisionConfig:
    """A frozen encoder that another project made, kept as the ONNX graph that it came as
    (`importing/external_encoder.py`).

    Its ``features`` S of ``width`` for one picture [3, image_size, image_size]; ``graph_bytes`` is the size of the
    graph with its weights inside, ``parameters`` their number, ``digest`` what the large ones are known by.
    ``multiply_adds`` are those of its matrix products and convolutions for one picture.
    """

    kind: Literal["external"] = "external"
    image_size: int = 224
    features: int = 49
    width: int = 768
    parameters: int = 1
    graph_bytes: int = 1
    multiply_adds: int = 1
    digest: str = ""

    def __post_init__(self) -> None:
        require_sizes(self)

    @property
    def feature_count(self) -> int:
        """Number of features S of one picture."""
        return self.features


# A vision encoder of any kind. Those before the last are this project's own modules, which can be trained.
VisionConfig = NFNetConfig | ViTConfig | ExternalVisionConfig


@dataclass(frozen=True)
class ResamplerConfig:
    """The Perceiver resampler (§3.1): any number of features to a fixed number of latents.

    The paper's form: squared ReLU, input projection, time embeddings. OpenFlamingo's: ``input_norms`` and
    ``final_norm``, exact GELU, no projection, ``max_frames`` 0 (no time embeddings). ``spatial_positions`` adds a
    learnt embedding to each cell of the feature grid; the paper has none: a deep encoder encodes where a cell is.
    """

    width: int = 1536
    layers: int = 6
    heads: int = 16
    head_width: int = 128
    latents: int = 64
    ff_multiplier: int = 4
    max_frames: int = 8
    activation: Literal["gelu", "squared_relu"] = "squared_relu"
    input_projection: bool = True
    input_norms: bool = False
    final_norm: bool = False
    spatial_positions: bool = False

    def __post_init__(self) -> None:
        require_sizes(self, may_be_zero=("max_frames",))


@dataclass(frozen=True)
class CrossAttentionConfig:
    """Gated cross-attention before some language layers (§3.1, figure 4).

    ``offset`` says before which: ``first`` layers 0, n, 2n, …; ``last`` layers n-1, 2n-1, … (OpenFlamingo). Of these,
    layers below the field ``first`` have none: what is trained then needs no backward pass below that layer.
    ``attend`` ``last`` reads only the last preceding visual (the paper's choice), ``all`` every preceding one.
    ``norm`` acts on the queries and before the feed-forward.
    ``media_width`` is the width to which latents are projected, once for all layers, before keys and values; None
    takes them as the resampler gives them (OpenFlamingo).
    """

    interval: int = 1
    offset: Literal["first", "last"] = "first"
    heads: int = 16
    head_width: int = 128
    ff_multiplier: int = 4
    activation: Literal["gelu", "squared_relu"] = "squared_relu"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    attend: Literal["last", "all"] = "last"
    media_width: int | None = None
    first: int = 0

    def __post_init__(self) -> None:
        require_sizes(self, may_be_zero=("first",))

    def layers(self, language_layers: int) -> tuple[int, ...]:
        """Indices of the language layers that have a cross-attention layer before them."""
        phase = 0 if self.offset == "first" else self.interval - 1
        return tuple(layer for layer in range(phase, language_layers, self.interval) if layer >= self.first)


@dataclass(frozen=True)
class LanguageConfig:
    """A decoder-only language model. One description covers Chinchilla-like, MPT, GPT-NeoX, LLaMA and OPT models.

    ``positions`` ``relative`` is Transformer-XL's (arXiv 1901.02860), which Chinchilla uses. ``rotary_fraction``
    is the rotated part of a head. ``position_offset`` is where a learnt table starts (OPT: 2).
    ``query_key_norm`` normalises queries and keys over their full width before they are split into heads (MPT).
    """

    vocab_size: int = 32000
    width: int = 2048
    layers: int = 24
    heads: int = 16
    kv_heads: int = 16
    head_width: int = 128
    ff_width: int = 8192
    context: int = 2048
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    positions: Literal["learnt", "alibi", "rotary", "relative"] = "rotary"
    position_offset: int = 0
    rotary_fraction: float = 1.0
    rotary_base: float = 10000.0
    alibi_max_bias: float = 8.0
    activation: Activation = "gelu"
    attention_bias: bool = False
    attention_output_bias: bool = False
    ff_bias: bool = False
    parallel_residual: bool = False
    query_key_norm: bool = False
    tied_head: bool = True
    head_bias: bool = False

    def __post_init__(self) -> None:
        require_sizes(self, may_be_zero=("position_offset",))
        require(self.heads % self.kv_heads == 0, f"{self.heads} heads are not a multiple of {self.kv_heads} kv_heads")
        require(0.0 <= self.rotary_fraction <= 1.0, f"rotary_fraction {self.rotary_fraction} is not within 0 and 1")
        require(self.positions != "relative" or self.width % 2 == 0, f"width {self.width} is odd: relative positions")
        require(self.rotary_width % 2 == 0, f"rotary part of a head, {self.rotary_width}, is odd")

    @property
    def rotary_width(self) -> int:
        """Elements of a head that are rotated."""
        return int(self.head_width * self.rotary_fraction)


@dataclass(frozen=True)
class PreprocessingConfig:
    """The way from a picture to ``pixel_values``.

    ``resize``: ``pad`` keeps the aspect and pads with the mean (the paper); ``crop`` resizes the short side and crops
    the centre (CLIP); ``squash`` ignores the aspect.
    ``interpolation`` is one of Pillow's filters. ``mean`` and ``std`` are per channel, for values in 0..1. ``fill`` is
    another colour to pad with, in 0..1 (open_clip's ``longest``); None is the mean.
    """

    resize: Resize = "pad"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fill: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        require(all(value > 0 for value in self.std), f"preprocessing std {self.std} is not above 0")
        fill = self.fill or ()
        require(all(0 <= value <= 1 for value in fill), f"preprocessing fill {fill} is not within 0 and 1")


@dataclass(frozen=True)
class TokensConfig:
    """The texts of the special tokens; their ids come from the tokenizer. An empty text means there is none.

    ``stop`` are tokens that end an answer besides ``end_of_chunk`` and ``eos``: Llama 3's end of a turn, for instance.
    """

    image: str = "<image>"
    end_of_chunk: str = "<|endofchunk|>"
    bos: str = "<bos>"
    eos: str = "<eos>"
    pad: str = "<pad>"
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptsConfig:
    """The texts a model was trained to continue (§B.1); the default is the paper's and the packaged model's.

    ``{}`` in ``question`` is where the question stands. ``answer_separator`` stands between the prompt and an example's
    answer: ``Output: a cat``. OpenFlamingo's: ``Output:``, ``Question:{} Short answer:`` and an empty separator.
    """

    caption: str = "Output:"
    question: str = "Question: {} Answer:"
    answer_separator: str = " "

    def __post_init__(self) -> None:
        for name in ("caption", "question"):
            require(bool(getattr(self, name).strip()), f"prompts.{name} is {getattr(self, name)!r}: give it a text")
        count = self.question.count("{}")
        require(count == 1, f"prompts.question {self.question!r} holds {{}} {count} times: put it where questions go")

    def ask(self, question: str) -> str:
        """The text that asks ``question``; braces in the question are left as they are."""
        return self.question.replace("{}", question)


@dataclass(frozen=True)
class FlamingoConfig:
    """Everything that defines a Flamingo model but its weights and its tokenizer.

    ``max_visuals`` bounds the pictures and clips of one prompt.
    """

    name: str = "flamingo"
    vision: VisionConfig = field(default_factory=NFNetConfig)
    resampler: ResamplerConfig = field(default_factory=ResamplerConfig)
    cross_attention: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    max_visuals: int = 64

    def __post_init__(self) -> None:
        require_sizes(self)
        require(
            self.resampler.input_projection or self.resampler.width == self.vision.width,
            f"without an input projection the resampler's width {self.resampler.width} "
            f"must be the vision encoder's {self.vision.width}",
        )
        require(len(self.cross_layers) > 0,
                "no language layer has cross-attention: the interval is too large, or first leaves none")
        parameters = reckon_parameters(self)["total"]
        require(parameters <= MOST_PARAMETERS, f"it has {parameters} parameters, more than {MOST_PARAMETERS}")
        for name, text in dataclasses.asdict(self.prompts).items():
            for token in (self.tokens.image, self.tokens.end_of_chunk):
                require(not token or token not in text,
                        f"prompts.{name} {text!r} holds {token}: leave it out, it is added around the text")

    @property
    def cross_layers(self) -> tuple[int, ...]:
        """Indices of the language layers with cross-attention before them."""
        return self.cross_attention.layers(self.language.layers)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> FlamingoConfig:
        """The inverse of `to_dict`. Raises `DataError` that names the key for anything missing, unknown or mistyped.

        Models written before there were ``prompts`` were trained with the default; before there was a ``fill``, all
        padded with the mean; before there was a ``stop``, no other token ended an answer; before there was a ``first``,
        cross-attention began at the first layer of its rule.
        """
        if isinstance(data, dict):
            data = {"prompts": dataclasses.asdict(PromptsConfig())} | data
            if isinstance(data.get("preprocessing"), dict):
                data |= {"preprocessing": {"fill": None} | data["preprocessing"]}
            if isinstance(data.get("tokens"), dict):
                data |= {"tokens": {"stop": ()} | data["tokens"]}
            if isinstance(data.get("cross_attention"), dict):
                data |= {"cross_attention": {"first": 0} | data["cross_attention"]}
        return parse_config(cls, data, "config")

    @classmethod
    def read(cls, path: Path) -> FlamingoConfig:
        """Read a JSON file. Raises `DataError`."""
        return cls.from_dict(read_json(path))


def parse_config(kind: Any, value: Any, where: str) -> Any:
    """Build ``kind`` (a dataclass, Literal, tuple, union or scalar type) from JSON data.

    Raises `DataError` that begins with ``where`` and the keys below it for anything missing, unknown or mistyped.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, where)
    if origin in (Union, types.UnionType):
        return _parse_union(arguments, value, where)
    if origin is Literal:
        require(value in arguments, f"{where} is {value!r}; known: {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        require(isinstance(value, (list, tuple)), f"{where} is {value!r}, not a list")
        if arguments[-1] is not Ellipsis:
            require(len(value) == len(arguments), f"{where} has {len(value)} entries, not {len(arguments)}")
        return tuple(parse_config(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        require(abs(value) < 1e30, f"{where} is {value!r}, not a number of a usable size")
        return float(value)
    require(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)),
            f"{where} is {value!r}, not {kind.__name__}")
    if kind is str:
        whole = not any("\ud800" <= character <= "\udfff" for character in value)
        require(whole, f"{where} is {value!r}, which holds half a character")
    return value


def _parse_dataclass(kind: Any, value: Any, where: str) -> Any:
    require(isinstance(value, dict), f"{where} is {value!r}, not an object")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    require(not unknown, f"{where} has unknown keys {', '.join(unknown)}; written by a newer version?")
    missing = sorted(set(hints) - set(value))
    require(not missing, f"{where} lacks {', '.join(missing)}")
    return kind(**{key: parse_config(hints[key], value[key], f"{where}.{key}") for key in hints})


def _parse_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    options = [option for option in arguments if option is not type(None)]
    if len(options) == 1:
        return parse_config(options[0], value, where)
    kinds = {option.kind: option for option in options}
    chosen = value.get("kind") if isinstance(value, dict) else None
    require(isinstance(chosen, str) and chosen in kinds, f"{where}.kind is {chosen!r}; known: {', '.join(kinds)}")
    return parse_config(kinds[chosen], value, where)
