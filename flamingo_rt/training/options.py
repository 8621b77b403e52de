"""Options of a training run: frozen dataclasses, read from a TOML file and from the command line (`config_file.py`).

`RunOptions` is what the three stages share; each stage adds what it trains, and a list of `DataOptions`. The text of
a field is its help on the command line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from flamingo_rt.errors import UsageError

DataKind = Literal["auto", "pairs", "videos", "pages", "text", "scenes", "tasks", "features"]
Precision = Literal["fp32", "bf16"]
Schedule = Literal["constant", "cosine", "linear"]
T = TypeVar("T")
SCENES = "scenes"  # the source of a dataset that needs no files
MOST = 2**31 - 1
LARGEST = {"seed": 2**63 - 1, "cache_bytes": 2**63 - 1, "tokens": 1 << 20, "batch": 1 << 20, "text_width": 1 << 16,
           "frames": 1024}  # frames: MAX_FRAMES of processing/visuals.py, which is not loaded for a --help
Mixing = Literal["accumulate", "round-robin"]


def option(default: T, text: str, path: bool = False) -> T:
    """A field with a default and a help text; ``path`` where its value is one."""
    return field(default=default, metadata={"help": text, "path": path})


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
        largest = LARGEST.get(name, MOST)
        require_option(value <= largest, f"{name} is {value}, above the largest that is accepted, {largest}")
        require_option(name not in positive or value > 0, f"{name} is {value}; it must be above 0")
        require_option(name not in counts or value >= 1, f"{name} is {value}; it must be 1 or more")
        require_option(name not in shares or value <= 1, f"{name} is {value}; it must be from 0 to 1")


@dataclass(frozen=True)
class DataOptions:
    """One dataset of the mixture (§4)."""

    source: str = option("", "Folder, file, tar shards by a brace pattern, or scenes, which are drawn when needed.")
    name: str = option("", "Name in logs; by default the last part of the source.")
    kind: DataKind = option("auto", "Kind of its samples; by default found out from the source. Drawn scenes are "
                            "captions and questions, videos, or tasks that a prompt's shots explain; a folder of "
                            "classes is pairs or tasks, or features of the frozen encoder in .npy files.")
    weight: float = option(1.0, "λ, by which the dataset's gradient is multiplied.")
    batch: int = option(32, "Documents in one step, over all ranks; of scenes, pictures.")
    tokens: int = option(256, "Most tokens of a document.")
    frames: int = option(8, "Frames of a clip.")
    fps: float = option(1.0, "Frames a second that are read of a clip.")
    images: int = option(5, "Most pictures of a page's window.")
    next_image: float = option(0.5, "Share of pages whose texts belong to the picture after them (p_next).")
    chunks: tuple[int, ...] = option((1,), "Pairs in a document, drawn for each step; several make few-shot prompts.")
    augment: bool = option(False, "Flip pictures and change their colours.")
    leading_space: float = option(0.0, "Share of captions that get a space before them, if the prompt puts none there.")
    prompt: str | None = option(None, "Text between a picture and its caption; by default the model's prompt.")
    template: str = option("a picture of {}", "Caption of a picture whose folder names its class.")
    questions: int = option(2, "Questions about each drawn scene.")
    by_place: float = option(0.0, "Share of the questions whose answers begin with the places that they follow from.")
    ways: tuple[int, ...] = option((2, 3, 4, 5), "Classes of a task of a folder of classes, drawn for each.")
    shots: tuple[int, ...] = option((1, 2, 4), "Pictures of each of its classes before the query, drawn for each.")
    names: float = option(0.0, "Share of these tasks that use the classes' own names, not words that mean nothing.")

    def __post_init__(self) -> None:
        where = f"data {self.source!r}: "
        require_option(bool(self.source), "a dataset needs a source: a folder, a file, a pattern of shards, or scenes")
        try:
            check_numbers(self, positive=("weight", "fps"), counts=("batch", "tokens", "frames", "images"),
                          shares=("next_image", "leading_space", "by_place", "names"))
        except UsageError as error:
            raise UsageError(f"{where}{error}") from None
        require_option(self.tokens >= 8, f"{where}tokens is {self.tokens}; a document needs at least 8")
        require_option(bool(self.chunks) and all(1 <= number <= 64 for number in self.chunks),
                       f"{where}chunks is {list(self.chunks)}; it lists numbers from 1 to 64")
        for key, least in (("ways", 2), ("shots", 1)):
            numbers = getattr(self, key)
            require_option(bool(numbers) and all(least <= number <= 64 for number in numbers),
                           f"{where}{key} is {list(numbers)}; it lists numbers from {least} to 64")
        require_option(self.template.count("{}") == 1,
                       f"{where}template {self.template!r} holds {{}} {self.template.count('{}')} times: put it once, "
                       "where the name of the class goes")
        require_option(self.questions > 0 or self.by_place == 0,
                       f"{where}by_place is {self.by_place}, of no questions: give questions, or leave it out")
        require_option(self.kind != "features" or not self.augment,
                       f"{where}augment changes pictures, and features are none: leave it out")
        require_option(self.questions <= 16, f"{where}questions is {self.questions}; it must be from 0 to 16")

    @property
    def label(self) -> str:
        """The name in logs: ``name``, or the last part of the source."""
        return self.name or self.source.rstrip("/").rsplit("/", 1)[-1]


OF_CLASS_TASKS = ("ways", "shots", "names")
# Keys of a dataset that a stage does not read: one that is given there is a mistake.
UNREAD = {
    "vision": ("tokens", "images", "next_image", "chunks", "prompt", "frames", "fps", "questions", "by_place",
               *OF_CLASS_TASKS),
    "language": ("tokens", "images", "next_image", "chunks", "prompt", "frames", "fps", "augment", "leading_space",
                 "questions", "by_place", *OF_CLASS_TASKS),
    "flamingo": ("questions", "by_place", *OF_CLASS_TASKS),
}
# The same of drawn scenes in stage 3, by their kind: documents of captions and questions are made in a way of their
# own, and the shots of a task belong together, of a folder of classes too.
UNREAD_OF_SCENES = ("tokens", "images", "next_image", "chunks", "prompt", "frames", "fps", "augment", "leading_space",
                    "template", *OF_CLASS_TASKS)
UNREAD_OF_TASKS = ("questions", "by_place", "images", "next_image", "chunks", "prompt", "frames", "fps",
                   "leading_space", "template")
UNREAD_OF_DRAWN: dict[DataKind, tuple[str, ...]] = {
    "auto": UNREAD_OF_SCENES, "scenes": UNREAD_OF_SCENES,
    "videos": ("questions", "by_place", "images", "next_image", "template", *OF_CLASS_TASKS),
    "tasks": (*UNREAD_OF_TASKS, *OF_CLASS_TASKS),
}
DRAWN_KINDS: dict[str, tuple[DataKind, ...]] = {  # in each stage
    "vision": ("auto", "scenes", "pairs"), "language": ("auto", "scenes", "text", "tasks"),
    "flamingo": tuple(UNREAD_OF_DRAWN),
}


def check_read(stage: str, data: tuple[DataOptions, ...]) -> None:
    """Raise `UsageError` for a key of a dataset that stage ``stage`` does not read and that is not at its default, and
    for drawn scenes of a kind that it does not draw, and tasks of files or features where it takes none."""
    for entry in data:
        unread, where = UNREAD[stage], ""
        if entry.source == SCENES:
            kinds = DRAWN_KINDS[stage]
            require_option(entry.kind in kinds, f"data {entry.source!r}: train {stage} draws none of the kind "
                                                f"{entry.kind}; it draws {', '.join(kinds)}")
            if stage == "flamingo":
                unread, where = UNREAD_OF_DRAWN[entry.kind], " on drawn scenes"
        elif entry.kind == "features":
            require_option(stage == "flamingo", f"data {entry.source!r}: train {stage} takes no features; train "
                                                "flamingo does: give pictures, or leave it out")
        elif entry.kind == "tasks":
            require_option(stage == "flamingo", f"data {entry.source!r}: train {stage} makes no tasks of files; train "
                                                "flamingo does: give another kind, or leave it out")
            unread, where = UNREAD_OF_TASKS, " on tasks of class folders"
        for key in fields(entry):
            given = getattr(entry, key.name)
            require_option(key.name not in unread or given == key.default,
                           f"data {entry.source!r}: {key.name} has no effect in train {stage}{where}: leave it out")


@dataclass(frozen=True)
class RunOptions:
    """The options that every stage has. The same options, data and seed give the same weights on the same machine, with
    any number of ``workers``; with ``cache_features``, where these decide what is encoded together, up to rounding."""

    steps: int = option(1000, "Optimizer steps.")
    seed: int = option(0, "Seed of weights and data.")
    learning_rate: float = option(1e-4, "Peak learning rate.")
    warmup_steps: int = option(100, "Steps of linear warm-up.")
    schedule: Schedule = option("constant", "After warm-up: constant, half a cosine to a hundredth, or linear to 0.")
    weight_decay: float = option(0.1, "AdamW's weight decay.")
    beta2: float = option(0.999, "AdamW's second decay rate.")
    gradient_clip: float = option(1.0, "Bound of the gradient's norm.")
    accumulate: int = option(1, "Parts into which a batch is split, to save memory; stage 1 takes only 1.")
    mixing: Mixing = option("accumulate", "One gradient per dataset, added up; or one dataset a step in turn.")
    precision: Precision = option("fp32", "bf16: activations and frozen matrices in bfloat16, the trained in float32.")
    checkpoint_activations: bool = option(False, "Compute activations again for the backward pass, to save memory.")
    compile: bool = option(False, "Compile the layers (torch.compile).")
    workers: int = option(1, "Processes that read data; 0 reads in the training process.")
    max_damaged: float = option(0.01, "Largest share of damaged samples.")
    save_seconds: float = option(30.0, "Seconds between saved states.")
    sample_steps: int = option(0, "Steps between sample answers; 0 for none.")

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
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        if self.schedule == "linear":
            return self.learning_rate * (1.0 - progress)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class VisionOptions:
    """Stage 1: an image encoder and a text encoder by contrast (§B.1.3)."""

    run: RunOptions = field(default_factory=lambda: RunOptions(learning_rate=1e-3, gradient_clip=10.0))
    data: tuple[DataOptions, ...] = ()
    encoder: str = option("tiny", "Preset whose vision encoder's sizes are taken.")
    tokenizer: str | None = option(
        None, "tokenizer.json, or its folder; by default learnt from the captions.", path=True
    )
    vocab_size: int = option(512, "Tokens of a tokenizer that is learnt.")
    text_width: int = option(128, "Width of the text encoder.")
    text_layers: int = option(2, "Layers of the text encoder.")
    text_heads: int = option(4, "Attention heads of the text encoder.")
    text_tokens: int = option(64, "Most tokens of a text.")
    embedding: int = option(128, "Width in which pictures and texts are compared (the paper: 1376).")
    label_smoothing: float = option(0.1, "Label smoothing of the contrastive loss.")
    initial_temperature: float = option(0.07, "Temperature at the start; it is learnt.")
    agc: float = option(0.01, "Adaptive gradient clipping of an NFNet; 0 for none.")
    captioning: float = option(0.0, "Weight of a captioner's loss beside the contrast.")
    captioner_layers: int = option(2, "Layers of the captioner, a decoder that writes each text from the cells.")
    evaluation: str | None = option(
        None, "Source that is measured every sample_steps and at the end: zero-shot, retrieval, linear probe."
    )

    def __post_init__(self) -> None:
        check_read("vision", self.data)
        check_numbers(self, positive=("initial_temperature",), shares=("label_smoothing",),
                      counts=("vocab_size", "text_width", "text_layers", "text_heads", "text_tokens", "embedding",
                              "captioner_layers"))
        require_option(self.captioning > 0 or self.captioner_layers == VisionOptions.captioner_layers,
                       f"captioner_layers is {self.captioner_layers}, and captioning 0: there is no captioner")
        require_option(self.text_width % self.text_heads == 0,
                       f"text_width {self.text_width} is no multiple of text_heads {self.text_heads}")


@dataclass(frozen=True)
class LanguageOptions:
    """Stage 2: a decoder on text, packed to ``context`` tokens."""

    run: RunOptions = field(default_factory=lambda: RunOptions(learning_rate=1e-3))
    data: tuple[DataOptions, ...] = ()
    decoder: str = option("tiny", "Preset whose language model's sizes are taken.")
    start_from: str | None = option(
        None, "Folder of train language to go on with, in its sizes and with its tokenizer.", path=True
    )
    tokenizer: str | None = option(None, "tokenizer.json, or its folder; by default learnt from the texts.", path=True)
    vocab_size: int = option(512, "Tokens of a tokenizer that is learnt.")
    context: int = option(256, "Tokens of a row.")
    repeats: float = option(0.0, "Share of rows of repeated random tokens, which teach copying.")

    def __post_init__(self) -> None:
        check_read("language", self.data)
        check_numbers(self, counts=("vocab_size",), shares=("repeats",))
        require_option(self.context >= 16, f"context is {self.context}; it must be 16 or more")
        require_option(self.start_from is None or self.tokenizer is None,
                       "start_from has its own tokenizer, on which it was trained: leave tokenizer out")


@dataclass(frozen=True)
class FlamingoOptions:
    """Stage 3: the bridge between a frozen vision encoder and a frozen language model (§3).

    A part that is not given starts from random weights and must be named in ``unfreeze``. What is always trained: the
    resampler, the gated cross-attention, and the new tokens' embeddings.
    """

    run: RunOptions = field(default_factory=RunOptions)
    data: tuple[DataOptions, ...] = ()
    preset: str = option("tiny", "Preset whose sizes are taken for what is new.")
    vision: str | None = option(None, "Folder of `train vision`, a checkpoint, or CLIP's weights.", path=True)
    language: str | None = option(
        None, "Folder of `train language`, a checkpoint, or a language model's folder.", path=True
    )
    start_from: str | None = option(None, "A whole checkpoint, to go on with or to fine-tune.", path=True)
    tokenizer: str | None = option(
        None, "tokenizer.json, or its folder, where the language model has none, or is new.", path=True
    )
    unfreeze: tuple[str, ...] = option((), "Parts to train too: vision, language, embedding.")
    unfrozen_rate: float = option(1.0, "Share of the learning rate at which these train.")
    lora: int = option(0, "Rank of low-rank updates of the frozen language model's matrices; 0 for none.")
    initial_gate: float | None = option(None, "Value of gates that are new, before tanh; a checkpoint has its own.")
    initial_output: float = option(1.0, "Factor of the random output matrices of new attention to pictures, the "
                                   "resampler's too: for a language model with long hidden states.")
    gates: Literal["tanh", "none"] = option("tanh", "none leaves the gates out: all are open, and not trained.")
    new_tokens: Literal["both", "output"] = option(
        "both", "Gradients of a frozen language model's new tokens: output, those of the head alone, spares the "
        "backward pass below the first cross-attention."
    )
    cache_features: str | None = option(None, "Folder that keeps what the frozen encoder gave.", path=True)
    cache_bytes: int = option(20_000_000_000, "Most bytes in that folder.")

    def __post_init__(self) -> None:
        check_read("flamingo", self.data)
        check_numbers(self, counts=("cache_bytes",), positive=("unfrozen_rate", "initial_output"),
                      shares=("unfrozen_rate",))
        require_option(self.unfrozen_rate == 1 or bool(self.unfreeze),
                       "unfrozen_rate is for parts that unfreeze names, and it names none: leave it out")
        known = ("vision", "language", "embedding")
        for part in self.unfreeze:
            require_option(part in known, f"unfreeze names {part!r}; known: {', '.join(known)}")
        require_option(self.start_from is None or (self.vision is self.language is self.tokenizer is None),
                       "start_from is a whole checkpoint: leave vision, language and tokenizer out")
        require_option(self.lora == 0 or "language" not in self.unfreeze,
                       "lora is for a frozen language model, and unfreeze names language: leave one out")
        parts = [part for part in ("language", "embedding") if part in self.unfreeze]
        require_option(self.new_tokens == "both" or not parts,
                       f"new_tokens is {self.new_tokens}, for a frozen language model, and unfreeze names "
                       f"{' and '.join(parts)}: leave one out")
        require_option(self.cache_features is None or "vision" not in self.unfreeze,
                       "cache_features keeps what a frozen encoder gives, and unfreeze names vision: leave one out")
        require_option("vision" not in self.unfreeze or not any(entry.kind == "features" for entry in self.data),
                       "data of the kind features is what a frozen encoder gave, and unfreeze names vision: leave one "
                       "out")
        require_option(self.cache_features is None or not any(entry.augment for entry in self.data),
                       "cache_features needs the same pixels each time: turn augment off, or leave it out")
