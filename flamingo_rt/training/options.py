"""Options of a training run: frozen dataclasses, read from a TOML file and from the command line (`config_file.py`).

`RunOptions` is what the three stages share; each stage adds what it trains. Data is a list of `DataOptions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from flamingo_rt.errors import UsageError

DataKind = Literal["auto", "pairs", "videos", "pages", "text", "scenes"]
Precision = Literal["fp32", "bf16"]
Schedule = Literal["constant", "cosine"]
Mixing = Literal["accumulate", "round-robin"]


def require_option(condition: bool, message: str) -> None:
    """Raise `UsageError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UsageError(message)


def check_numbers(options: Any, positive: tuple[str, ...] = (), counts: tuple[str, ...] = (),
                  shares: tuple[str, ...] = ()) -> None:
    """Check the fields named: ``positive`` above 0 and finite, ``counts`` at least 1, ``shares`` from 0 to 1; every
    other number must be finite and at least 0. Raises `UsageError` that names the field and its value."""
    for name in (entry.name for entry in fields(options)):
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        require_option(0 <= value < math.inf, f"{name} is {value}; it must be finite and at least 0")
        require_option(name not in positive or value > 0, f"{name} is {value}; it must be above 0")
        require_option(name not in counts or value >= 1, f"{name} is {value}; it must be 1 or more")
        require_option(name not in shares or value <= 1, f"{name} is {value}; it must be from 0 to 1")


@dataclass(frozen=True)
class DataOptions:
    """One dataset of the mixture.

    ``source``: a folder, a file, tar shards by a brace pattern (``pairs-{0000..0099}.tar``), or ``scenes``, which are
    drawn as they are needed. ``kind`` ``auto`` is found out from the source. ``weight`` is λ, by which the dataset's
    gradient is multiplied (§4). ``batch``: documents in one step, over all ranks. ``tokens``: the most tokens of a
    document. ``frames`` at ``fps`` frames a second: what is read of a clip. ``images``: the most pictures of a page's
    window; ``next_image``: how often a page's texts belong to the picture after them, not before (p_next, §A.2).
    ``chunks``: how many pairs a document holds, drawn for each step; more than one makes few-shot prompts.
    ``template``: the caption of a picture whose only text is its class, with ``{}`` for the class. ``augment``: flips
    and colour changes (§A.2). ``leading_space``: how often a space is put before a caption. ``prompt``: the text
    between a picture and its caption, by default the model's; empty is the paper's form.
    ``questions``: of drawn scenes, how many about each picture.
    """

    source: str
    name: str = ""
    kind: DataKind = "auto"
    weight: float = 1.0
    batch: int = 32
    tokens: int = 256
    frames: int = 8
    fps: float = 1.0
    images: int = 5
    next_image: float = 0.5
    chunks: tuple[int, ...] = (1,)
    augment: bool = False
    leading_space: float = 0.0
    prompt: str | None = None
    questions: int = 2
    template: str = "a picture of {}"

    def __post_init__(self) -> None:
        where = f"data {self.source!r}: "
        require_option(bool(self.source), "a dataset needs a source: a folder, a file, a pattern of shards, or scenes")
        try:
            check_numbers(self, positive=("weight", "fps"), counts=("batch", "tokens", "frames", "images"),
                          shares=("next_image", "leading_space"))
        except UsageError as error:
            raise UsageError(f"{where}{error}") from None
        require_option(self.tokens >= 8, f"{where}tokens is {self.tokens}; a document needs at least 8")
        require_option(bool(self.chunks) and all(1 <= number <= 64 for number in self.chunks),
                       f"{where}chunks is {list(self.chunks)}; it lists numbers from 1 to 64")
        require_option(self.template.count("{}") == 1,
                       f"{where}template {self.template!r} holds {{}} {self.template.count('{}')} times: put it once, "
                       "where the name of the class goes")
        require_option(self.questions <= 16, f"{where}questions is {self.questions}; it must be from 0 to 16")

    @property
    def label(self) -> str:
        """The name in logs: ``name``, or the last part of the source."""
        return self.name or self.source.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True)
class RunOptions:
    """What every stage has. The same options, data and seed give the same weights on the same machine, with any number
    of ``workers``.

    ``schedule``: after ``warmup_steps`` of linear warm-up the learning rate stays, or follows half a cosine down to a
    hundredth. ``accumulate``: parts into which each dataset's batch is split, one after the other, to save memory.
    ``mixing``: one gradient per dataset, added up before each step (the paper), or one dataset a step in turn.
    ``precision`` ``bf16``: activations and frozen weights in bfloat16; trained weights and AdamW's moments stay float32
    (§B.1.2). ``max_damaged``: the largest share of damaged samples. ``sample_steps``: steps between sample answers, 0
    for none.
    """

    steps: int = 1000
    seed: int = 0
    learning_rate: float = 1e-4
    warmup_steps: int = 100
    schedule: Schedule = "constant"
    weight_decay: float = 0.1
    beta2: float = 0.999
    gradient_clip: float = 1.0
    accumulate: int = 1
    mixing: Mixing = "accumulate"
    precision: Precision = "fp32"
    checkpoint_activations: bool = False
    compile: bool = False
    workers: int = 1
    max_damaged: float = 0.01
    save_seconds: float = 30.0
    sample_steps: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, positive=("learning_rate", "gradient_clip", "save_seconds"),
                      counts=("steps", "accumulate"), shares=("beta2", "max_damaged"))
        require_option(self.workers <= 256, f"workers is {self.workers}; at most 256")
        require_option(self.beta2 < 1, f"beta2 is {self.beta2}; it must be below 1")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step ``step``, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))


@dataclass(frozen=True)
class VisionOptions:
    """Stage 1: an image encoder and a text encoder by contrast (§B.1.3).

    ``encoder``: a preset whose vision encoder's sizes are taken. ``text_*``: sizes of the BERT-like text encoder;
    ``embedding``: the width in which pictures and texts are compared (the paper: 1376). ``agc``: the bound of adaptive
    gradient clipping for NFNets (0 turns it off); ``gradient_clip`` is the text encoder's. ``evaluation``: a source of
    pairs, or of an ImageFolder tree, that is measured every ``evaluation_steps`` and at the end.
    """

    run: RunOptions = field(default_factory=lambda: RunOptions(learning_rate=1e-3, gradient_clip=10.0))
    data: tuple[DataOptions, ...] = ()
    encoder: str = "tiny"
    tokenizer: str | None = None
    vocab_size: int = 512
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    text_tokens: int = 64
    embedding: int = 128
    label_smoothing: float = 0.1
    initial_temperature: float = 0.07
    agc: float = 0.01
    evaluation: str | None = None
    evaluation_steps: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, positive=("initial_temperature",), shares=("label_smoothing",),
                      counts=("vocab_size", "text_width", "text_layers", "text_heads", "text_tokens", "embedding"))
        require_option(self.text_width % self.text_heads == 0,
                       f"text_width {self.text_width} is no multiple of text_heads {self.text_heads}")


@dataclass(frozen=True)
class LanguageOptions:
    """Stage 2: a decoder on text, packed to ``context`` tokens.

    ``decoder``: a preset whose language model's sizes are taken. ``tokenizer``: a tokenizer.json or a folder that holds
    one; without it a byte-level BPE of ``vocab_size`` tokens is learnt from the data. ``repeats``: how often a row is
    not text but random tokens whose segments repeat: they teach copying, on which few-shot prompts rest.
    """

    run: RunOptions = field(default_factory=lambda: RunOptions(learning_rate=1e-3))
    data: tuple[DataOptions, ...] = ()
    decoder: str = "tiny"
    tokenizer: str | None = None
    vocab_size: int = 512
    context: int = 256
    repeats: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, counts=("vocab_size",), shares=("repeats",))
        require_option(self.context >= 16, f"context is {self.context}; it must be 16 or more")


@dataclass(frozen=True)
class FlamingoOptions:
    """Stage 3: the bridge between a frozen vision encoder and a frozen language model (§3).

    ``vision``: a folder that ``train vision`` wrote, a Flamingo checkpoint, or CLIP's files; ``language``: a folder
    that ``train language`` wrote, a Flamingo checkpoint, or a language model's folder that ``import`` reads;
    ``start_from``: a whole checkpoint instead of both. With neither, everything starts from random weights.
    ``preset`` gives the sizes of what is new. ``unfreeze``: what is trained besides the resampler, the gated
    cross-attention and the new tokens' embeddings: ``vision``, ``language`` or ``embedding``. ``lora``: the rank of
    low-rank updates of the frozen language model's matrices, 0 for none. ``initial_gate``: the value of the tanh gates
    at the start. ``vision_task``: weight of the vision encoder's own task (`vision_task.py`), for a model that starts
    from nothing. ``gates`` and ``bridge`` are for ablations: no tanh gate, an MLP instead of the resampler.
    ``cache_features``: a folder that keeps what the frozen encoder gave, at most ``cache_bytes`` of it.
    """

    run: RunOptions = field(default_factory=RunOptions)
    data: tuple[DataOptions, ...] = ()
    preset: str = "tiny"
    vision: str | None = None
    language: str | None = None
    start_from: str | None = None
    tokenizer: str | None = None
    unfreeze: tuple[str, ...] = ()
    lora: int = 0
    initial_gate: float = 0.0
    vision_task: float = 0.0
    cache_features: str | None = None
    cache_bytes: int = 20_000_000_000

    def __post_init__(self) -> None:
        check_numbers(self, counts=("cache_bytes",))
        known = ("vision", "language", "embedding")
        for part in self.unfreeze:
            require_option(part in known, f"unfreeze names {part!r}; known: {', '.join(known)}")
        require_option(self.start_from is None or (self.vision is None and self.language is None),
                       "start_from is a whole checkpoint: leave vision and language out")
        require_option(self.cache_features is None or "vision" not in self.unfreeze,
                       "cache_features keeps what a frozen encoder gives, and unfreeze names vision: leave one out")
        require_option(self.cache_features is None or not any(entry.augment for entry in self.data),
                       "cache_features needs the same pixels each time: turn augment off, or leave it out")
