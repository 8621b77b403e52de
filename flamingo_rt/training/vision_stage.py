"""Stage 1: an image encoder and a text encoder from random weights, by the two-way contrastive loss (§B.1.3), and where
wanted by a captioner's beside it (arXiv 2205.01917).

The NFNet's gradients are clipped adaptively, unit by unit; those of the rest, or of a ViT, by their norm. Weight decay
acts on matrices and kernels, not on gains, norms, biases and the temperature.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import nn

from flamingo_rt.config import ExternalVisionConfig, NFNetConfig, TokensConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.importing.openflamingo_tokenizer import load_tokenizer
from flamingo_rt.model.flamingo import on_meta_device
from flamingo_rt.model.text_encoder import TextEncoderConfig
from flamingo_rt.presets import preset
from flamingo_rt.training.adaptive_clipping import clip_adaptively
from flamingo_rt.training.contrastive import contrastive_loss
from flamingo_rt.training.data.pair_batches import PairBatch, PairBatches, PairReader
from flamingo_rt.training.data.samples import SampleSource
from flamingo_rt.training.data.scene_pairs import ScenePairs
from flamingo_rt.training.data.sources import check_names, open_source
from flamingo_rt.training.dual_encoder import DualEncoder, DualEncoderConfig
from flamingo_rt.training.gradient_norms import clip_norm, gradient_norm
from flamingo_rt.training.memory import require_training_memory
from flamingo_rt.training.options import SCENES, DataOptions, VisionOptions
from flamingo_rt.training.sharding import World, autocast, whole, whole_state
from flamingo_rt.training.stage import Dataset, Division, Loss, Updating, is_matrix
from flamingo_rt.training.texts import MOST_TEXTS, TOKENIZER_SCENES, source_texts
from flamingo_rt.training.tokenizer_training import train_tokenizer
from flamingo_rt.training.towers import write_tower
from flamingo_rt.training.vision_scores import AT_ONCE, VisionScores, check_evaluation, measure

HELD_OUT_SCENES = 1000


class VisionStage:
    """A `Stage`; `open_vision_stage` makes it from options."""

    division: Division = "ranks"  # the loss compares each picture with every text of its batch

    def __init__(
        self, model: DualEncoder, reader: PairReader, datasets: Sequence[Dataset], options: VisionOptions, world: World,
        evaluation: SampleSource | None = None,
    ) -> None:
        self.model, self.datasets = model.to(world.device), datasets
        self.scores: VisionScores | None = None
        self._unreported: dict[str, float] = {}
        self._captioning: list[float] = []  # of the datasets, since they were reported
        self._reader, self._options, self._world, self._evaluation = reader, options, world, evaluation

    def shards(self) -> Sequence[nn.Module]:
        """See `Stage.shards`: the blocks of both encoders and of the captioner."""
        captioner = self.model.captioner
        layers = [*captioner.layers] if captioner is not None else []
        return [*cast(nn.ModuleList, self.model.vision.blocks), *self.model.text.layers, *layers]

    def loss(self, dataset: str, batch: PairBatch) -> Loss:
        """See `Stage.loss`: the sum over this rank's pairs, each compared with the pairs of all ranks."""
        batch = batch.to(self._world.device)
        found = self.model(batch.pixel_values, batch.text_ids, batch.mask)
        contrast = contrastive_loss(found.images, found.texts, batch.text_keys, found.inverse_temperature,
                                    self._options.label_smoothing)
        if found.captioning is None:
            return Loss(contrast)
        captioning = found.captioning.mean()
        self._captioning.append(float(captioning.detach()))
        return Loss(contrast, self._options.captioning * captioning)

    def activation_bytes(self, batch: PairBatch) -> int:
        """See `Stage.activation_bytes`: not known, since kernels differ in what they keep."""
        return 0

    def targets(self, batch: PairBatch) -> int:
        """See `Stage.targets`: pairs."""
        return len(batch.pixel_values)

    def tokens(self, batch: PairBatch) -> int:
        """See `Stage.tokens`: pictures."""
        return len(batch.pixel_values)

    def updating(self, name: str, parameter: nn.Parameter) -> Updating:
        """See `Stage.updating`: matrices and kernels decay."""
        return Updating(is_matrix(parameter))

    def clip(self, bound: float) -> float:
        """See `Stage.clip`: the NFNet adaptively, without the projection, its final linear layer; the rest by norm."""
        adaptive: list[nn.Parameter] = []
        if isinstance(self.model.config.vision, NFNetConfig) and self._options.agc:
            adaptive = list(self.model.vision.parameters())
        own = {id(entry) for entry in adaptive}
        norms = [gradient_norm(adaptive),
                 clip_norm((entry for entry in self.model.parameters() if id(entry) not in own), bound)]
        clip_adaptively(adaptive, self._options.agc)
        return math.hypot(*norms)

    def scalars(self) -> dict[str, float]:
        """See `Stage.scalars`: the temperature, the captioner's loss, and once the scores that were measured since the
        last call."""
        found = {"temperature": math.exp(-float(whole(self.model.log_inverse_temperature.detach())))}
        if self._captioning:
            found["captioning"] = self._world.total(sum(self._captioning)) / (len(self._captioning) * self._world.size)
        scores, self._captioning, self._unreported = self._unreported, [], {}
        return {**found, **scores}

    def measure(self) -> VisionScores | None:
        """The scores on the source of the evaluation, in the precision of the run, None without one; every rank calls
        this."""
        if self._evaluation is not None:
            # No more pictures than a step takes, which fit into memory.
            batch = max((entry.batch for entry in self._options.data), default=AT_ONCE) // self._world.size
            with autocast(self._world, self._options.run.precision):
                self.scores = measure(self.model, self._evaluation, self._reader,
                                      at_once=min(AT_ONCE, max(1, batch)), world=self._world)
            self._unreported = self.scores.scalars()
        return self.scores

    def sample_lines(self) -> Iterator[str]:
        """See `Stage.sample_lines`: the scores, and what was found for a few pictures."""
        scores = self.measure()
        if scores is not None:
            yield str(scores)
            yield from scores.examples

    def identity(self) -> dict[str, Any]:
        """See `Stage.identity`."""
        tokenizer = hashlib.sha256(self._reader.tokenizer.to_str().encode()).hexdigest()[:16]
        options = self._options
        return {"model": self.model.config.to_dict(), "tokenizer": tokenizer,
                "preprocessing": asdict(self._reader.preprocessing),
                "trained": {"label_smoothing": options.label_smoothing, "agc": options.agc,
                            "initial_temperature": options.initial_temperature,
                            **({"captioning": options.captioning} if options.captioning else {})}}

    def write(self, out: Path, overwrite: bool) -> None:
        """See `Stage.write`: a folder with both towers, of which `train flamingo --vision` takes the image tower. Its
        config.json holds the scores, too."""
        scores = self.scores if self.scores is not None else self.measure()
        tensors = whole_state(self.model, self._world)
        config = {**self.model.config.to_dict(), "preprocessing": asdict(self._reader.preprocessing)}
        if scores is not None:
            config["scores"] = scores.scalars()
        tokenizer = self._reader.tokenizer.to_str(pretty=True)
        self._world.from_first(lambda: write_tower(out, "vision", config, tensors, tokenizer, overwrite))


def open_vision_stage(options: VisionOptions, world: World) -> VisionStage:
    """Open the data, read or learn the tokenizer, and make a model with random weights from the seed.

    Raises `UsageError` for options that do not go together, `DataError` for data that cannot be read and for too little
    memory.
    """
    check_vision_options(options)
    seed, sizes = options.run.seed, preset(options.encoder)
    if isinstance(sizes.vision, ExternalVisionConfig):
        raise UsageError(f"the encoder of {options.encoder} is an external graph, which is not trained: take another")
    sources = [open_pairs(entry, seed) for entry in options.data]
    evaluation = open_pairs(DataOptions(options.evaluation), seed, held_out=True) if options.evaluation else None
    if options.tokenizer is not None:
        tokenizer = load_tokenizer(Path(options.tokenizer))
    else:
        texts = (text for source in sources for text in captions(source, MOST_TEXTS // len(sources)))
        tokenizer = train_tokenizer(texts, options.vocab_size, TokensConfig())
    config = DualEncoderConfig(sizes.vision, text_config(options, tokenizer), options.embedding,
                               options.captioner_layers if options.captioning else 0)
    with on_meta_device():
        parameters = sum(parameter.numel() for parameter in DualEncoder(config).parameters())
    purpose = f"training the vision encoder of {options.encoder} and its text encoder"
    require_training_memory(parameters, parameters, purpose, world)
    torch.manual_seed(seed)
    reader = PairReader(tokenizer, sizes.preprocessing, sizes.vision.image_size, options.text_tokens)
    if evaluation is not None:
        check_evaluation(evaluation, reader)
    datasets = [
        Dataset(entry.label, entry.weight, PairBatches(source, entry, reader, seed, number))
        for number, (entry, source) in enumerate(zip(options.data, sources, strict=True))
    ]
    model = DualEncoder(config, options.initial_temperature)
    return VisionStage(model, reader, datasets, options, world, evaluation)


def check_vision_options(options: VisionOptions) -> None:
    """Raise `UsageError` for options that a contrastive loss cannot have."""
    if not options.data:
        raise UsageError("train vision needs data: a source of pictures with texts")
    if options.run.accumulate > 1:
        raise UsageError(
            f"accumulate is {options.run.accumulate}, and a contrastive loss compares each picture with every text of "
            "its batch: computed in parts it is another loss. Set accumulate to 1, and to save memory set "
            "checkpoint_activations, take a smaller batch, or divide it among ranks with torchrun"
        )
    for entry in options.data:
        if entry.batch < 2:
            raise UsageError(f"data {entry.source!r}: batch is {entry.batch}; a text must be told apart from that of "
                             "another pair: 2 or more")
    check_names(options.data)


def open_pairs(options: DataOptions, seed: int, held_out: bool = False) -> SampleSource:
    """Open a source of pictures with texts, or drawn scenes. Raises `UsageError` for a source of another kind,
    `DataError`."""
    if options.source == SCENES:
        return ScenePairs(seed, "heldout", HELD_OUT_SCENES) if held_out else ScenePairs(seed)
    source = open_source(options)
    if source.kind != "pairs":
        raise UsageError(f"{options.source} holds {source.kind}: train vision takes pictures with texts")
    return source


def captions(source: SampleSource, most: int) -> Iterator[str]:
    """Up to ``most`` texts of a source, from which a tokenizer is learnt."""
    if isinstance(source, ScenePairs):
        return source.captions(min(most, TOKENIZER_SCENES))
    return source_texts(source, most)


def text_config(options: VisionOptions, tokenizer: Tokenizer) -> TextEncoderConfig:
    """The sizes of the text encoder, with a feed-forward four times as wide, as BERT's; it knows every token of the
    tokenizer."""
    return TextEncoderConfig(
        vocab_size=1 + max(tokenizer.get_vocab().values()), context=options.text_tokens, width=options.text_width,
        layers=options.text_layers, heads=options.text_heads, ff_width=4 * options.text_width,
    )
