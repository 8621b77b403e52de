"""Stage 3: the bridge between a frozen vision encoder and a frozen language model (§3, §4).

Trained are the resampler, the gated cross-attention, and the embeddings of the tokens that the language model did not
have; the rest is frozen: it has no gradients, and is the same bit for bit after the run. Weight decay acts on matrices
of the cross-attention and of what was unfrozen, not on the resampler's (§4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from flamingo_rt.checkpoints import StoredModel, write_checkpoint
from flamingo_rt.errors import UsageError
from flamingo_rt.model.flamingo import IGNORED_LABEL, Flamingo
from flamingo_rt.training.data.document_batches import FlamingoBatch
from flamingo_rt.training.feature_cache import FeatureCache, as_stored, tensors_digest
from flamingo_rt.training.given_files import GivenFiles
from flamingo_rt.training.gradient_norms import clip_norm
from flamingo_rt.training.lora import add_lora
from flamingo_rt.training.memory import decoder_bytes
from flamingo_rt.training.merging import MergedLayer, merged_tensors
from flamingo_rt.training.new_tokens import train_new_tokens
from flamingo_rt.training.options import SCENES, DataOptions, FlamingoOptions
from flamingo_rt.training.sample_answers import ROWS, sample_answers
from flamingo_rt.training.sharding import World, freeze_in_precision, whole
from flamingo_rt.training.stage import Dataset, Division, Loss, Updating, is_matrix
from flamingo_rt.weights.lazy import LazyTensor, in_memory

# Where the parameters of what can be unfrozen stand.
PLACES = {"vision": "model.vision.", "language": "model.language.", "embedding": "model.language.embedding."}
LARGEST_GATE = 20.0  # tanh of it is 1 in float32: a layer without a gate


class BridgeOutput(NamedTuple):
    """The logits [R, T, vocab], or [R, K, vocab] where K positions were asked for; the features [N, F, S, Dv] of the
    visuals that were not cached; and the latents [M, L, D] of all visuals. The last two are None where there are none.
    """

    logits: Tensor
    new: Tensor | None
    latents: Tensor | None


class Bridge(nn.Module):
    """The model with the forward pass of training."""

    def __init__(self, model: Flamingo, frozen_vision: bool, cached: bool, world: World) -> None:
        super().__init__()
        self.model, self._frozen_vision, self._cached, self._world = model, frozen_vision, cached, world

    def forward(
        self, batch: FlamingoBatch, latents: Tensor | None = None, logits_index: Tensor | None = None
    ) -> BridgeOutput:
        """Encode the visuals of a batch and read its texts; with ``latents``, which an earlier pass gave for the same
        visuals, only read the texts. Both go through here, since ranks gather divided parameters for a forward pass of
        the whole module alone. ``logits_index`` [R, K]: the positions whose logits are wanted; None for all."""
        new = None
        if latents is None:
            new = self._new_features(batch)
            features = new if new is None else new.to(self.model.resampler.latents.dtype)
            if batch.cached is not None:
                features = batch.cached.float()
                if new is not None:
                    features[batch.missing] = new.float()
            latents = self.model.resampler(features) if features is not None else None
        logits, _ = self.model.read(batch.input_ids, batch.media_index, latents, batch.rows, logits_index=logits_index)
        return BridgeOutput(logits, new, latents)

    def _new_features(self, batch: FlamingoBatch) -> Tensor | None:
        """Features [N, F, S, Dv] of the visuals that were not cached, None where no rank has any to encode."""
        pixels, count = batch.pixel_values, len(batch.pixel_values)
        if not (self._world.total(count) if self._cached else count):
            return None
        if not count:  # ranks gather the encoder's layers together: one that has all features runs it on nothing
            pixels = pixels.new_zeros((1, *pixels.shape[1:]))
        elif self._cached and count == 1:  # one picture alone is rounded otherwise than several: keep what those give
            pixels = torch.cat([pixels, pixels])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen_vision):
            new = self.model.vision(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])[:count]
        return as_stored(new) if self._cached else new  # as they will come back from a fuller cache


class FlamingoStage:
    """A `Stage`; `flamingo_start.open_flamingo_stage` makes one from options."""

    division: Division = "parts"

    def __init__(
        self, model: Flamingo, tokenizer: Tokenizer, datasets: Sequence[Dataset], options: FlamingoOptions,
        new_tokens: tuple[int, ...], world: World, cache: FeatureCache | None = None,
        given: Mapping[str, LazyTensor] | None = None, files: GivenFiles | None = None,
    ) -> None:
        """``new_tokens`` are the ids whose embeddings are trained though the language model is frozen. ``given`` are
        the tensors that the model was loaded from: frozen ones are written as they are there, not as bfloat16 rounded
        them, unless ``files``, where they are, have changed."""
        self.config, self.tokenizer, self.datasets, self._options = model.config, tokenizer, datasets, options
        self._world, self._cache, self._given, self._files = world, cache, given or {}, files
        self._frozen = frozen_identity(model, options.unfreeze)
        precision = options.run.precision
        if "vision" not in options.unfreeze:
            freeze_in_precision(model.vision, precision)
        if "language" not in options.unfreeze:
            table = model.language.embedding.weight.detach()
            freeze_in_precision(model.language, precision)
            if options.lora:
                add_lora(model.language, options.lora, options.run.seed)
            train_new_tokens(model, new_tokens, table if "embedding" in options.unfreeze else None,
                             options.new_tokens == "output")
        self.model = Bridge(model, "vision" not in options.unfreeze, cache is not None, world)
        self.model.to(world.device)

    def shards(self) -> Sequence[nn.Module]:
        """See `Stage.shards`. Keys and values are made for all gated layers before the first of them runs, so they are
        gathered by themselves."""
        model = self.model.model
        vision: Any = model.vision.blocks
        gated: Any = list(model.cross_attention.layers.values())
        keys_values = [matrix for layer in gated for matrix in (layer.key, layer.value)]
        return [*vision, *model.resampler.layers, *keys_values, *gated, *model.language.layers]

    def loss(self, dataset: str, batch: FlamingoBatch) -> Loss:
        """See `Stage.loss`: cross-entropy of the labels."""
        batch = batch.to(self._world.device)
        index, labels = labelled_positions(batch.labels)
        logits, new, _ = self.model(batch, logits_index=index)
        if self._cache is not None and new is not None:
            for place, features in zip(batch.missing.tolist(), new, strict=True):
                if batch.keys[place]:
                    self._cache.write(batch.keys[place], features)
        total = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL,
                                reduction="sum")
        return Loss(total)

    def activation_bytes(self, batch: FlamingoBatch) -> int:
        """See `Stage.activation_bytes`: those of the gated layers, and of the language model from the lowest layer on
        that a gradient reaches."""
        gated = [self.config.cross_attention.ff_multiplier * self.config.language.width] * len(self.config.cross_layers)
        language = self.config.language
        if self._options.new_tokens == "output" and not self._options.lora:
            language = replace(language, layers=language.layers - self.config.cross_layers[0])
        learnt = labelled_positions(batch.labels)[0].numel()
        return decoder_bytes(language, gated, batch.input_ids.numel(), self._options.run, learnt)

    def targets(self, batch: FlamingoBatch) -> int:
        """See `Stage.targets`: the labelled tokens."""
        return int((batch.labels[:, 1:] != IGNORED_LABEL).sum())

    def tokens(self, batch: FlamingoBatch) -> int:
        """See `Stage.tokens`."""
        return batch.input_ids.numel()

    def updating(self, name: str, parameter: nn.Parameter) -> Updating:
        """See `Stage.updating`: matrices outside the resampler decay; weights of unfrozen parts, but not what is new in
        them, learn at ``unfrozen_rate``."""
        new = name.endswith("new_rows")
        unfrozen = name.startswith(tuple(PLACES[part] for part in self._options.unfreeze)) and not new
        return Updating(is_matrix(parameter) and "resampler" not in name and not new,
                        self._options.unfrozen_rate if unfrozen else 1.0)

    def clip(self, bound: float) -> float:
        """See `Stage.clip`: one norm over all parameters."""
        return clip_norm((entry for entry in self.model.parameters() if entry.requires_grad), bound)

    def scalars(self) -> dict[str, float]:
        """See `Stage.scalars`: tanh of each layer's two gates, which say how far it is open."""
        found = {}
        for name, layer in self.model.model.cross_attention.layers.items():
            for gate in ("attention_gate", "ff_gate"):
                found[f"gate.{name}.{gate.removesuffix('_gate')}"] = float(whole(getattr(layer, gate).detach()).tanh())
        return found

    def sample_lines(self) -> Iterator[str]:
        """See `Stage.sample_lines`: answers to the first prompts of each dataset, beside the right ones. All ranks
        answer those that the first one drew, together; the pictures of a prompt are encoded once."""
        for dataset, options in zip(self.datasets, self._options.data, strict=True):
            draw = partial(dataset.batches.draw, 0, 0, _sample_parts(options))
            drawn = self._world.from_first(draw)
            if drawn.error is None:
                for line in sample_answers(drawn.batch.to(self._world.device), self._read, self.tokenizer, self.config):
                    yield f"{dataset.name}: {line}"

    def _read(self, batch: FlamingoBatch, latents: Tensor | None) -> tuple[Tensor, Tensor | None]:
        output = self.model(batch, latents)
        return output.logits, output.latents

    def identity(self) -> dict[str, Any]:
        """See `Stage.identity`."""
        tokenizer = hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()[:16]
        return {"model": self.config.to_dict(), "tokenizer": tokenizer, "frozen": self._frozen,
                "cached": self._cache is not None,  # features are rounded then
                "trained": {"unfreeze": list(self._options.unfreeze), "lora": self._options.lora,
                            "gates": self._options.gates, "unfrozen_rate": self._options.unfrozen_rate,
                            "new_tokens": self._options.new_tokens}}

    def write(self, out: Path, overwrite: bool) -> None:
        """See `Stage.write`: a checkpoint; trained rows and low-rank updates are merged into the frozen weights. The
        ranks gather what is not written as it was given, tensor by tensor, and the first one alone keeps it."""
        model = self.model.model
        kept = {name: self._given[name] for name in frozen_names(model) if name in self._given}
        gathered = {}
        for name, tensor in model.state_dict().items():
            if name not in kept:
                complete = whole(tensor.detach())
                if self._world.is_first:
                    gathered[name] = complete.cpu()

        def write() -> None:
            if self._files is not None:
                self._files.require_unchanged()
            tensors = {**in_memory(merged_tensors(model, gathered, self._given), out), **kept}
            ordered = {name: tensors[name] for name in model.state_dict() if name in tensors}
            write_checkpoint(out, StoredModel(self.config, self.tokenizer.to_str(pretty=True), ordered), overwrite)

        self._world.from_first(write)


def labelled_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The positions whose next token is learnt, int64 [R, K], and those tokens [R, K], for labels [R, T]: the logits of
    other positions, of tens of thousands of tokens each, need not be computed. Rows with fewer than K are filled up
    with position 0, `IGNORED_LABEL`."""
    following = labels[:, 1:]
    learnt = following != IGNORED_LABEL
    most = max(1, int(learnt.sum(1).max()))
    index = learnt.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    there = learnt.gather(1, index)
    return index.where(there, 0), following.gather(1, index).where(there, IGNORED_LABEL)


def _sample_parts(options: DataOptions) -> int:
    """Into how many parts a batch is divided of which the first is drawn for sample answers: it holds `ROWS` documents,
    or as few more as can be. Drawn scenes share their pictures, and are cheap: one part."""
    if options.source == SCENES:
        return 1
    return next((parts for parts in range(options.batch // ROWS, 1, -1) if options.batch % parts == 0), 1)


def frozen_names(model: Flamingo) -> set[str]:
    """Names of the vision encoder's and the language model's parameters that nothing is trained of or merged into."""
    merged = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, MergedLayer)}
    return {
        name for name, parameter in model.named_parameters()
        if name.startswith(("vision.", "language.")) and not parameter.requires_grad and name not in merged
    }


def frozen_identity(model: Flamingo, unfreeze: Sequence[str]) -> str:
    """A hash of the frozen weights: another encoder or language model is found when a run is resumed."""
    frozen = [part for part in ("vision", "language") if part not in unfreeze]
    return tensors_digest({
        f"{part}.{name}": tensor for part in frozen for name, tensor in getattr(model, part).state_dict().items()
    })


def check_something_is_given(options: FlamingoOptions) -> None:
    """Raise `UsageError` when a part would be frozen that has random weights."""
    whole_model = options.start_from is not None
    for part, given in (("vision", options.vision), ("language", options.language)):
        if not whole_model and given is None and part not in options.unfreeze:
            raise UsageError(
                f"the {part} part would be frozen with random weights: give --{part}, or a whole checkpoint with "
                f"--start-from, or train it too with --unfreeze {part}"
            )
