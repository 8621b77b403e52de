"""The training loop: AdamW, warm-up and cosine decay, a state that survives a kill.

Everything is trained together from random weights, so two things differ from the paper, where pretrained parts are
frozen. The gates start open, those of the cross-attention and those of NFNet's residual branches: at 0 they would pass
no gradient to a part that has nothing to say yet, and neither would move. And the vision encoder has a task of its own
(`VisionTask`) that teaches it to tell objects apart; the paper's encoder has learnt that by contrast (§B.1.3). A run
that starts from a checkpoint needs neither.

The state is one file beside the output, replaced in one step: weights, both moments of AdamW, and the step. Batches
are a function of the step, so nothing else is needed to continue.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from flamingo_rt.checkpoints import TOKENIZER, open_checkpoint, save_checkpoint
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.files import check_output, replacing_file
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model_memory import TRAINING, WEIGHTS, require_bytes, require_memory, training_step_bytes
from flamingo_rt.parameter_count import reckon_parameters
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.tokenizer_file import parse_tokenizer
from flamingo_rt.training.batches import Batch, SceneBatches, prefetched, scene_texts
from flamingo_rt.training.tokenizer_training import train_tokenizer
from flamingo_rt.training.vision_task import VisionTask
from flamingo_rt.weights.writing import write_tensors

TOKENIZER_SCENES = 3000
MOMENTS = ("exp_avg", "exp_avg_sq")


MOST_QUESTIONS = 16  # about each picture: a scene has few more that differ


@dataclass(frozen=True)
class TrainingOptions:
    """Options that define a run besides the model's configuration. The same options and seed give the same weights on
    the same machine and number of threads.

    Raises `UsageError` for a value out of range.
    """

    steps: int = 3600
    seed: int = 0
    pictures: int = 32
    questions: int = 2
    learning_rate: float = 1.5e-3
    warmup_steps: int = 200
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    initial_gate: float = 1.0
    vision_task_weight: float = 0.1

    def __post_init__(self) -> None:
        for name in ("learning_rate", "gradient_clip"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        if not 0 <= self.questions <= MOST_QUESTIONS:
            raise UsageError(f"questions is {self.questions}; it must be from 0 to {MOST_QUESTIONS}")
        for name in ("steps", "pictures"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 1 or more")

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to a hundredth."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))


@dataclass(frozen=True)
class Progress:
    """One finished step: its number from 1, its loss, and the tokens it read."""

    step: int
    loss: float
    tokens: int


class TrainedParts(nn.Module):
    """The model, and the head of the vision encoder's own task, which is not part of the checkpoint."""

    def __init__(self, model: Flamingo, vision_task: VisionTask) -> None:
        super().__init__()
        self.model = model
        self.vision_task = vision_task

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss on the texts, and that of the vision task."""
        features = self.model.vision(batch.pixel_values.flatten(0, 1))
        latents = self.model.resampler(features.unflatten(0, batch.pixel_values.shape[:2]))
        _, loss = self.model.read(batch.input_ids, batch.media_index, latents, batch.rows, batch.labels)
        assert loss is not None  # labels were given
        return loss, self.vision_task(features, batch.caption_tokens)


@dataclass
class Run:
    """A training run in memory."""

    parts: TrainedParts
    tokenizer: Tokenizer
    optimizer: torch.optim.AdamW
    options: TrainingOptions
    step: int = 0


def state_path(out: Path) -> Path:
    """Path of the state of an unfinished run, beside the output ``out``."""
    return out.with_name(out.name + ".training.safetensors")


def start_run(config: FlamingoConfig, options: TrainingOptions) -> Run:
    """A new run: tokenizer from the texts of training scenes, random weights from the seed. Raises `DataError` when
    there is too little memory."""
    require_memory(config, TRAINING, f"training {config.name}")
    texts = scene_texts(options.seed, TOKENIZER_SCENES, config.prompts)
    tokenizer = train_tokenizer(texts, config.language.vocab_size, config.tokens)
    torch.manual_seed(options.seed)
    parts = TrainedParts(Flamingo(config), VisionTask(config))
    for name, parameter in parts.model.named_parameters():
        if name.endswith(("attention_gate", "ff_gate", "skip_gain")):
            nn.init.constant_(parameter, options.initial_gate)
    return Run(parts, tokenizer, _optimizer(parts, options), options)


def continue_checkpoint(path: Path, config: FlamingoConfig, options: TrainingOptions) -> Run:
    """A new run that starts from a checkpoint's weights and tokenizer. Raises `UsageError` when its sizes differ."""
    require_memory(config, TRAINING, f"training {config.name}")
    stored = open_checkpoint(path)
    if stored.config != config:
        raise UsageError(
            f"{path} has another configuration than the preset {config.name!r}: give the preset it was trained with"
        )
    TextTokenizer(path / TOKENIZER, config.tokens, config.language.vocab_size)  # refuse a bad one before the work
    torch.manual_seed(options.seed)
    parts = TrainedParts(stored.load(), VisionTask(config))
    tokenizer = parse_tokenizer(stored.tokenizer.encode(), path / TOKENIZER, config.language.vocab_size)
    return Run(parts, tokenizer, _optimizer(parts, options), options)


def resume_run(path: Path, config: FlamingoConfig, options: TrainingOptions) -> Run:
    """Continue from a state file. Raises `DataError` when it is damaged, `UsageError` when it belongs to another
    run."""
    require_memory(config, TRAINING, f"training {config.name}")
    try:
        return _read_run(path, config, options)
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # for damaged bytes the libraries raise anything at all, tokenizers a bare Exception
        reason = " ".join(str(error).split())
        raise DataError(f"cannot resume from {path}: {reason}; delete it to train from the start") from error


def _read_run(path: Path, config: FlamingoConfig, options: TrainingOptions) -> Run:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    stored_config, stored_options = json.loads(metadata["config"]), json.loads(metadata["options"])
    step = int(metadata["step"])
    tokenizer = parse_tokenizer(metadata["tokenizer"].encode(), path, config.language.vocab_size)
    if FlamingoConfig.from_dict(stored_config) != config or stored_options != asdict(options):
        raise UsageError(
            f"{path} belongs to a run with other options: {stored_options}; give the same ones, or delete it to start "
            "anew"
        )
    parts = TrainedParts(Flamingo(config), VisionTask(config))
    parts.load_state_dict({name: tensors[f"weight.{name}"] for name in parts.state_dict()})
    run = Run(parts, tokenizer, _optimizer(parts, options), options, step)
    for name, parameter in parts.named_parameters():
        run.optimizer.state[parameter] = {
            "step": torch.tensor(float(step)), **{moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
        }
    return run


def save_run(run: Run, path: Path) -> None:
    """Replace the state file."""
    tensors = {f"weight.{name}": tensor for name, tensor in run.parts.state_dict().items()}
    for name, parameter in run.parts.named_parameters():
        tensors |= {f"{moment}.{name}": run.optimizer.state[parameter][moment] for moment in MOMENTS}
    metadata = {
        "config": json.dumps(run.parts.model.config.to_dict()),
        "options": json.dumps(asdict(run.options)),
        "tokenizer": run.tokenizer.to_str(),
        "step": str(run.step),
    }
    with replacing_file(path) as file:
        write_tensors(tensors, file, path, metadata)


def train(
    config: FlamingoConfig,
    options: TrainingOptions,
    out: Path,
    *,
    start_from: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    save_seconds: float = 30.0,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train on drawn scenes and write a checkpoint folder ``out``; from random weights, or from a checkpoint's.

    The state is saved every ``save_seconds``. Raises `UsageError` when ``out`` exists, or when an unfinished run is
    there and ``resume`` is not asked for, `DataError` when there is too little memory for a step, or the loss is no
    longer a number.
    """
    check_output(out, overwrite)
    state = state_path(out)
    if state.exists() and not resume:
        raise UsageError(f"an unfinished run is at {state}: continue it with --resume, or delete it to start anew")
    if state.exists():
        run = resume_run(state, config, options)
    elif start_from is not None:
        run = continue_checkpoint(start_from, config, options)
    else:
        run = start_run(config, options)
    batches = SceneBatches(config, run.tokenizer, options.seed, options.pictures, options.questions)
    run.parts.train()
    saved = time.monotonic()
    started = run.step
    for batch in prefetched(batches, run.step, options.steps):
        if run.step == started:
            _require_step_memory(config, batch)
        loss = _step(run, batch)
        on_step(Progress(run.step, loss, batch.input_ids.numel()))
        if time.monotonic() - saved > save_seconds:
            save_run(run, state)
            saved = time.monotonic()
    save_checkpoint(out, run.parts.model, run.tokenizer.to_str(pretty=True), overwrite)
    state.unlink(missing_ok=True)


def _require_step_memory(config: FlamingoConfig, batch: Batch) -> None:
    """Raise `DataError` when a step on a batch of this size takes more memory than there is."""
    tokens, parameters = batch.input_ids.numel(), reckon_parameters(config)["total"]
    require_bytes(
        training_step_bytes(config, tokens) + (TRAINING - WEIGHTS) * parameters, "a training step",
        f"{tokens:,} tokens in a batch, gradients and AdamW's moments",
        "take fewer --questions, or a machine with more memory",
    )


def _step(run: Run, batch: Batch) -> float:
    """One optimizer step; returns the loss. Raises `DataError` when it is no longer a number."""
    for group in run.optimizer.param_groups:
        group["lr"] = run.options.learning_rate_at(run.step)
    loss, vision_loss = run.parts(batch)
    if not torch.isfinite(loss):
        raise DataError(f"the loss became {loss.item()} at step {run.step}: lower --learning-rate and start again")
    (loss + run.options.vision_task_weight * vision_loss).backward()
    torch.nn.utils.clip_grad_norm_(run.parts.parameters(), run.options.gradient_clip)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    return loss.item()


def _optimizer(parts: nn.Module, options: TrainingOptions) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices alone, none on norms, gates and biases."""
    decayed = [p for p in parts.parameters() if p.ndim >= 2 and p.shape[0] > 1]
    others = [p for p in parts.parameters() if not (p.ndim >= 2 and p.shape[0] > 1)]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.98),
    )
