"""Drawn scenes of one object as pairs in memory, and a dual encoder that learns them in seconds."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from flamingo_rt.config import NFNetConfig, PreprocessingConfig, TokensConfig, ViTConfig
from flamingo_rt.model.text_encoder import TextEncoderConfig
from flamingo_rt.training import scenes
from flamingo_rt.training.data.pair_batches import PairBatch, PairBatches, PairReader
from flamingo_rt.training.data.samples import DamagedSample, Said, Sample, Visual
from flamingo_rt.training.dual_encoder import DualEncoder, DualEncoderConfig
from flamingo_rt.training.options import DataOptions, VisionOptions
from flamingo_rt.training.sharding import World, shard, whole
from flamingo_rt.training.stage import Dataset
from flamingo_rt.training.tokenizer_training import train_tokenizer
from flamingo_rt.training.vision_stage import VisionStage

SIZE, TEXT_TOKENS = 16, 8


class MadePairs:
    """A `SampleSource` of samples in memory; those in ``damaged`` are refused."""

    kind: Literal["pairs"] = "pairs"
    files = ()

    def __init__(self, samples: Sequence[Sample], damaged: Sequence[int] = ()) -> None:
        self.samples, self.damaged = samples, damaged

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int) -> Sample:
        if index in self.damaged:
            raise DamagedSample(self.samples[index].name, "is torn")
        return self.samples[index]

    def fingerprint(self) -> str:
        return f"{len(self.samples)} made pairs"


@cache
def single_objects(count: int, split: scenes.Split, labelled: bool = False) -> tuple[Sample, ...]:
    """Scenes of one object with their captions; the class is its colour."""
    found: list[Sample] = []
    number = 0
    while len(found) < count:
        rng = np.random.default_rng([number, split == "train"])
        scene, number = scenes.sample_scene(rng, split), number + 1
        if len(scene.objects) == 1 and not scene.objects[0].is_digit:
            name = f"{split} {number}"
            visual = Visual("image", scenes.draw(scene, rng, 2 * SIZE), name)
            label = scene.objects[0].color if labelled else None
            found.append(Sample(name, (visual, Said(scenes.caption(scene))), label))
    return tuple(found)


@cache
def pair_reader(samples: tuple[Sample, ...]) -> PairReader:
    texts = [segment.text for sample in samples for segment in sample.segments if isinstance(segment, Said)]
    return PairReader(train_tokenizer(texts, 300, TokensConfig()), PreprocessingConfig(), SIZE, TEXT_TOKENS)


NFNET = NFNetConfig(image_size=SIZE, stem_widths=(8, 16), stem_strides=(2, 1), widths=(24, 32), depths=(1, 1),
                    strides=(1, 2), group_width=4, output_width=32)
VIT = ViTConfig(image_size=SIZE, patch_size=4, width=32, layers=2, heads=2, ff_width=64)


def dual_encoder_config(vision: NFNetConfig | ViTConfig = NFNET, captioner_layers: int = 0) -> DualEncoderConfig:
    return DualEncoderConfig(
        vision,
        TextEncoderConfig(vocab_size=300, context=TEXT_TOKENS, width=32, layers=1, heads=2, ff_width=64),
        embedding=24, captioner_layers=captioner_layers,
    )


def vision_stage(
    world: World, batch: int = 32, samples: tuple[Sample, ...] | None = None, evaluation: Sequence[Sample] = (),
    vision: NFNetConfig | ViTConfig = NFNET, **options,
) -> VisionStage:
    """A stage on single objects. Its residual branches start open: at 0 the gradients in them would be 0 too."""
    samples = single_objects(160, "train") if samples is None else samples
    reader, given = pair_reader(samples), VisionOptions(data=(DataOptions("made", batch=batch),), **options)
    torch.manual_seed(given.run.seed)
    layers = given.captioner_layers if given.captioning else 0
    model = DualEncoder(dual_encoder_config(vision, layers), given.initial_temperature)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("skip_gain"):
                parameter.fill_(1.0)
    data = Dataset("made", 1.0, PairBatches(MadePairs(samples), given.data[0], reader, given.run.seed))
    return VisionStage(model, reader, [data], given, world, MadePairs(evaluation) if evaluation else None)


def add_gradient(stage: VisionStage, batch: PairBatch, world: World) -> float:
    """Add the gradient of this rank's part of a batch as the loop does; gives the mean loss of the whole batch."""
    loss = stage.loss("made", batch)
    mean = loss.total / world.total(stage.targets(batch))
    if loss.extra is not None:
        mean = mean + loss.extra / world.size
    (mean * world.size).backward()
    return world.total(float(mean.detach()))


class Gradients(NamedTuple):
    """Results of a stage: mean losses, the norm, and all gradients before and after they were clipped."""

    losses: list[float]
    norm: float
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]


def added_gradients(stage: VisionStage, batches: Sequence[PairBatch], world: World, bound: float) -> Gradients:
    """Gradients of several batches, added up and clipped; of a stage that is divided among ranks, if there are any."""
    shard(stage.model, stage.shards(), world)
    losses = [add_gradient(stage, batch, world) for batch in batches]
    before = {name: whole(entry.grad).clone() for name, entry in stage.model.named_parameters()}
    norm = stage.clip(bound)
    return Gradients(losses, norm, before, {name: whole(entry.grad) for name, entry in stage.model.named_parameters()})


@contextmanager
def meeting(folder: Path, rank: int) -> Iterator[World]:
    """One of two ranks on CPUs, which meet in a folder; neither waits for ever."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))
    try:
        yield World(rank, 2)
        dist.barrier()
    finally:
        gc.collect()  # what still refers to the group in a circle would abort the process when the interpreter ends
        dist.destroy_process_group()
