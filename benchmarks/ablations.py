"""The paper's ablations (its table 3) at toy scale: what each choice of the design is worth when a run takes a minute.

    python -m benchmarks.ablations [--arms baseline,no-gate,…] [--seeds 0,1,2] [--steps 300] [--work FOLDER]

An encoder (`train vision`) and a decoder (`train language`) are trained once, on drawn scenes of one or two objects.
Every arm starts stage 3 from both and trains on captions and on documents of two to four questions, each about a
picture of its own. On held-out scenes two things are measured: the loss a token, and the share of answers that greedy
decoding gives exactly. It gives an answer exactly if, and only if, each of its tokens is the likeliest one after those
before it, so one forward pass says both.

Results go, a line for each arm and seed, to a dated file in ``benchmarks/results``; what is there already is not run
again. The last line is JSON with the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from benchmarks.chosen_names import chosen_names
from benchmarks.dated_result import RESULTS, circumstances, result_file
from benchmarks.scene_folders import write_scene_folder
from benchmarks.starting_checkpoints import write_random_checkpoint
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.model.flamingo import IGNORED_LABEL
from flamingo_rt.model.layers import FeedForward
from flamingo_rt.training.data.document_batches import DocumentBatches, FlamingoBatch
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.flamingo_stage import FlamingoStage
from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.language_stage import open_language_stage
from flamingo_rt.training.loop import train
from flamingo_rt.training.options import DataOptions, FlamingoOptions, LanguageOptions, RunOptions, VisionOptions
from flamingo_rt.training.parts import join_parts
from flamingo_rt.training.run_log import StepReport
from flamingo_rt.training.sharding import World
from flamingo_rt.training.vision_stage import open_vision_stage

MEASURED = ("captions", "questions")


@dataclass(frozen=True)
class Arm:
    """One change of the design; the defaults are the paper's choices."""

    gates: str = "tanh"
    attend: str = "last"
    resampler: str = "perceiver"
    mixing: str = "accumulate"
    language: str = "frozen"  # or tuned: trained on; or scratch: trained from random weights


ARMS = {
    "baseline": Arm(),
    "no-gate": Arm(gates="none"),
    "attend-all": Arm(attend="all"),
    "mlp": Arm(resampler="mlp"),
    "round-robin": Arm(mixing="round-robin"),
    "language-scratch": Arm(language="scratch"),
    "language-tuned": Arm(language="tuned"),
}


@dataclass(frozen=True)
class Settings:
    """Settings that all arms share: steps of stages 1, 2 and 3, scenes to train on and held out, documents a step of
    captions and of questions, pictures in a held-out document of questions."""

    vision_steps: int = 400
    language_steps: int = 400
    steps: int = 300
    scenes: int = 2000
    held_out: int = 200
    captions_batch: int = 24
    questions_batch: int = 8
    shots: int = 4
    learning_rate: float = 1e-3
    workers: int = 1


class MlpResampler(nn.Module):
    """Features [M, 1, S, Dv] -> latents [M, L, D] without attention: each latent is a learnt mean of the features, then
    feed-forward layers as in the resampler, as many and as wide that both have about as many parameters."""

    def __init__(self, config: FlamingoConfig) -> None:
        super().__init__()
        sizes, width = config.resampler, config.resampler.width
        self.input = nn.Linear(config.vision.width, width, bias=False)
        self.mix = nn.Linear(config.vision.feature_count, sizes.latents, bias=False)
        self.latents = nn.Parameter(torch.randn(sizes.latents, width))
        hidden = sizes.ff_multiplier * width + 2 * sizes.heads * sizes.head_width  # attention's four matrices
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(sizes.layers))
        self.layers = nn.ModuleList(
            FeedForward(width, hidden, sizes.activation, bias=False) for _ in range(sizes.layers)
        )
        self.final_norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        mixed = self.mix(self.input(features.flatten(1, 2)).transpose(1, 2)).transpose(1, 2)
        latents = self.latents + mixed
        for norm, layer in zip(self.norms, self.layers, strict=True):
            latents = latents + layer(norm(latents))
        return self.final_norm(latents)


class Unwritten:
    """A stage whose result stays in memory."""

    def __init__(self, stage: FlamingoStage) -> None:
        self._stage = stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def write(self, out: Path, overwrite: bool) -> None:
        """Write nothing."""


@dataclass(frozen=True)
class Parts:
    """The folders that all arms share."""

    work: Path

    @property
    def vision(self) -> Path:
        """The encoder's."""
        return self.work / "vision"

    @property
    def language(self) -> Path:
        """The decoder's."""
        return self.work / "language"

    def scenes(self, name: str) -> Path:
        """The pictures of ``captions`` or ``questions``; with ``heldout-`` before it, those to measure on."""
        return self.work / name


def prepare(work: Path, settings: Settings) -> Parts:
    """Write the data and train both parts, where they are not there. Ends the program for parts of other settings."""
    parts, made_with = Parts(work), work / "settings.json"
    wanted = {name: getattr(settings, name) for name in ("vision_steps", "language_steps", "scenes", "held_out")}
    if made_with.exists() and json.loads(made_with.read_text()) != wanted:
        sys.exit(f"{work} was made with {made_with.read_text()}, asked for are {wanted}: give another --work")
    made_with.write_text(json.dumps(wanted))
    for kind in MEASURED:
        for split, count, before in (("train", settings.scenes, ""), ("heldout", settings.held_out, "heldout-")):
            folder = parts.scenes(before + kind)
            if not (folder / "captions.jsonl").exists():  # it is written last
                write_scene_folder(folder, count, (kind,), split, seed=7, most_objects=2)
    run = RunOptions(learning_rate=1e-3, warmup_steps=20, schedule="cosine", workers=settings.workers, save_seconds=1e6)
    if not parts.vision.exists():
        vision = VisionOptions(run=replace(run, steps=settings.vision_steps, gradient_clip=10.0),
                               data=(DataOptions(str(parts.scenes("captions")), batch=min(32, settings.scenes)),))
        train(open_vision_stage(vision, World()), vision.run, parts.vision, World())
        print("trained the encoder", flush=True)
    if not parts.language.exists():
        language = LanguageOptions(run=replace(run, steps=settings.language_steps), repeats=0.25, context=128,
                                   data=(DataOptions("scenes", batch=16),))
        train(open_language_stage(language, World()), language.run, parts.language, World())
        print("trained the decoder", flush=True)
    return parts


def write_start(arm: Arm, parts: Parts, seed: int, folder: Path) -> Path:
    """Write the checkpoint that an arm starts from: both parts, and random weights from ``seed`` for the rest."""
    joined = join_parts(FlamingoOptions(
        run=RunOptions(seed=seed), vision=str(parts.vision), language=str(parts.language)
    ))
    attention: Any = replace(joined.config.cross_attention, attend=arm.attend)
    given = {
        name: tensor for name, tensor in joined.tensors.items()
        if arm.language != "scratch" or not name.startswith("language.")
    }
    config = replace(joined.config, cross_attention=attention)
    return write_random_checkpoint(folder, config, joined.tokenizer_json, seed, given)


def arm_options(arm: Arm, parts: Parts, start_from: Path, seed: int, settings: Settings) -> FlamingoOptions:
    """The options of stage 3."""
    run = RunOptions(
        steps=settings.steps, seed=seed, learning_rate=settings.learning_rate, warmup_steps=20, save_seconds=1e6,
        mixing=arm.mixing, workers=settings.workers,
    )
    if arm.mixing == "round-robin":  # a step has one dataset's gradient: as many of them, and as many documents
        run = replace(run, steps=settings.steps * len(MEASURED))
    captions = DataOptions(str(parts.scenes("captions")), batch=settings.captions_batch)
    questions = DataOptions(str(parts.scenes("questions")), batch=settings.questions_batch, chunks=(2, 3, 4))
    return FlamingoOptions(
        run=run, data=(captions, questions), start_from=str(start_from), gates=arm.gates,
        unfreeze=() if arm.language == "frozen" else ("language",), cache_features=str(parts.work / "features"),
    )


def trained_stage(arm: Arm, options: FlamingoOptions, out: Path) -> tuple[FlamingoStage, list[StepReport]]:
    """Train an arm; gives its stage and the reports of its steps."""
    stage = open_flamingo_stage(options, World())
    if arm.resampler == "mlp":
        torch.manual_seed(options.run.seed)
        stage.model.model.resampler = MlpResampler(stage.config)
    reports: list[StepReport] = []
    train(Unwritten(stage), options.run, out, World(), on_step=reports.append)
    return stage, reports


def answers_of(logits: Tensor, batch: FlamingoBatch, eos: int | None) -> Iterator[bool]:
    """For each answer of a batch, whether greedy decoding would give it exactly. ``logits`` [R, T, vocab]; ``eos``,
    which ends a document and no answer, is left out."""
    targets, places = batch.labels[:, 1:], batch.media_index[:, 1:]
    wrong = logits[:, :-1].argmax(-1) != targets
    counted = targets != IGNORED_LABEL
    if eos is not None:
        counted &= targets != eos
    for row in range(len(targets)):
        for visual in places[row][counted[row]].unique().tolist():
            yield not bool(wrong[row][counted[row] & (places[row] == visual)].any())


@torch.no_grad()
def evaluate(
    model: nn.Module, config: FlamingoConfig, tokenizer: Tokenizer, options: DataOptions, documents: int
) -> dict[str, float]:
    """Loss a token, and the share of answers that are given exactly, over ``documents`` documents of a source, a
    multiple of its batch. ``model`` gives logits first, as `Bridge` does."""
    batches = DocumentBatches(open_source(options), options, config, tokenizer, seed=11, number=0)
    eos = tokenizer.token_to_id(config.tokens.eos) if config.tokens.eos else None
    total, tokens, right = 0.0, 0, []
    for step in range(documents // options.batch):
        drawn = batches.draw(step, 0, 1)
        if drawn.error is not None:
            raise drawn.error
        logits = model(drawn.batch)[0]
        labels = drawn.batch.labels[:, 1:]
        total += float(F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL,
                                       reduction="sum"))
        tokens += int((labels != IGNORED_LABEL).sum())
        right += answers_of(logits, drawn.batch, eos)
    return {"loss": total / tokens, "exact": sum(right) / len(right), "answers": len(right)}


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` up to ``most``: so large a batch takes every document once."""
    return max(divisor for divisor in range(1, most + 1) if number % divisor == 0)


def measure(name: str, seed: int, parts: Parts, settings: Settings) -> dict[str, Any]:
    """The record of one arm and seed."""
    arm, begun = ARMS[name], time.monotonic()
    with tempfile.TemporaryDirectory(dir=parts.work) as folder:
        start_from = write_start(arm, parts, seed, Path(folder) / "start")
        options = arm_options(arm, parts, start_from, seed, settings)
        stage, reports = trained_stage(arm, options, Path(folder) / "out")
    trained = time.monotonic() - begun
    stage.model.eval()
    found = {}
    for kind, shots in zip(MEASURED, (1, settings.shots), strict=True):
        documents = settings.held_out // shots
        data = DataOptions(str(parts.scenes(f"heldout-{kind}")), batch=largest_divisor(documents, 16),
                           chunks=(shots,), tokens=512)
        found[kind] = evaluate(stage.model, stage.config, stage.tokenizer, data, documents)
    last = reports[-max(1, len(reports) // 10) :]
    losses = {name: [report.losses[name] for report in last if name in report.losses] for name in MEASURED}
    return {
        "arm": name, "seed": seed, "seconds": round(trained, 1), "steps": len(reports),
        "trained_parameters": sum(entry.numel() for entry in stage.model.parameters() if entry.requires_grad),
        "training_loss": {name: round(statistics.mean(each), 4) for name, each in losses.items() if each},
        "gates": {key: round(value, 4) for key, value in stage.scalars().items()},
        **{kind: {key: round(value, 4) for key, value in each.items()} for kind, each in found.items()},
    }


def open_results(path: Path, settings: Settings) -> list[dict[str, Any]]:
    """The records that are in the file already; a new file begins with the circumstances. Ends the program for a file
    of other settings."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(circumstances(settings)) + "\n", encoding="utf-8")
    first, *records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if first["settings"] != json.loads(json.dumps(asdict(settings))):
        sys.exit(f"{path} has other settings, {first['settings']}: give those, or another --result")
    return records


def table(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By arm: the seeds, and mean and standard deviation (None of one seed) of each measure over them."""
    found: dict[str, dict[str, Any]] = {}
    for name in ARMS:
        own = [record for record in records if record["arm"] == name]
        if own:
            found[name] = {"seeds": sorted(record["seed"] for record in own)}
            for kind in MEASURED:
                for measured in ("loss", "exact"):
                    values = [record[kind][measured] for record in own]
                    deviation = round(statistics.stdev(values), 4) if len(values) > 1 else None
                    found[name][f"{kind} {measured}"] = (round(statistics.mean(values), 4), deviation)
    return found


def shown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as text."""
    columns = [f"{kind} {measured}" for kind in MEASURED for measured in ("loss", "exact")]
    lines = [f"{'arm':17}" + "".join(f"{column:>20}" for column in columns)]
    for name, row in rows.items():
        cells = []
        for column in columns:
            mean, deviation = row[column]
            form = ".1%" if column.endswith("exact") else ".3f"
            cells.append(f"{mean:{form}}" + (f" ± {deviation:{form}}" if deviation is not None else ""))
        lines.append(f"{name:17}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", default=",".join(ARMS), help="default: all")
    parser.add_argument("--seeds", default="0,1,2", help="default %(default)s")
    defaults = Settings()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="default %(default)s")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keeps data and both parts for another call")
    parser.add_argument("--result", type=Path, metavar="FILE", help="default: a dated file in benchmarks/results")
    options = parser.parse_args()
    names, seeds = chosen_names("--arms", options.arms, ARMS), [int(seed) for seed in options.seeds.split(",")]
    settings = Settings(**{name: getattr(options, name) for name in asdict(defaults)})
    path = options.result or result_file(RESULTS, "ablations", "jsonl")
    records = open_results(path, settings)
    work = options.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    try:
        parts = prepare(work, settings)
        for seed in seeds:
            for name in names:
                if any(record["arm"] == name and record["seed"] == seed for record in records):
                    continue
                record = measure(name, seed, parts, settings)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                records.append(record)
                print(f"seed {seed}  {record['seconds']:5.0f} s  " + shown(table([record])).splitlines()[1], flush=True)
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    rows = table(records)
    print(shown(rows))
    print(json.dumps({"result": str(path), **rows}))


if __name__ == "__main__":
    main()
