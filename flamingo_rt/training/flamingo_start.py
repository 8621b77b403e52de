"""From the options of stage 3 to the model that it starts with, and its data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from flamingo_rt.checkpoints import TOKENIZER, open_checkpoint, read_for
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.parameter_count import reckon_parameters
from flamingo_rt.presets import preset
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.tokenizer_file import parse_tokenizer
from flamingo_rt.training.data.class_tasks import ClassTasks, require_room
from flamingo_rt.training.data.document_batches import DocumentBatches
from flamingo_rt.training.data.documents import DocumentWriter
from flamingo_rt.training.data.folder_source import ImageFolder
from flamingo_rt.training.data.samples import SampleSource
from flamingo_rt.training.data.scene_batches import SceneBatches
from flamingo_rt.training.data.scene_clips import SceneClips
from flamingo_rt.training.data.scene_documents import texts_of_scene
from flamingo_rt.training.data.scene_tasks import SceneTasks
from flamingo_rt.training.data.sources import check_names, open_source
from flamingo_rt.training.feature_cache import FeatureCache, encoder_identity
from flamingo_rt.training.flamingo_stage import LARGEST_GATE, FlamingoStage, check_something_is_given
from flamingo_rt.training.given_files import GivenFiles
from flamingo_rt.training.memory import require_training_memory
from flamingo_rt.training.options import SCENES, DataOptions, FlamingoOptions
from flamingo_rt.training.parts import given_tokenizer, join_parts, with_predictable
from flamingo_rt.training.sharding import World
from flamingo_rt.training.stage import Dataset
from flamingo_rt.training.texts import TOKENIZER_SCENES, source_texts
from flamingo_rt.training.tokenizer_training import train_tokenizer
from flamingo_rt.weights.lazy import LazyTensor


@dataclass(frozen=True)
class StartingPoint:
    """The sizes, the tokenizer.json, the tensors that are given (names of `Flamingo`), not read yet, and the ids of the
    tokens that the language model has not learnt."""

    config: FlamingoConfig
    tokenizer: str
    tensors: Mapping[str, LazyTensor]
    new_tokens: tuple[int, ...]


def open_flamingo_stage(options: FlamingoOptions, world: World) -> FlamingoStage:
    """The stage that `loop.train` runs. Raises `UsageError` and `DataError` for what is given and cannot be used."""
    check_something_is_given(options)
    check_names(options.data)
    sources = {entry: open_source(entry) for entry in options.data if entry.source != SCENES}
    start = _starting_point(options, sources)
    _check_trainable(start.config, options)
    files = GivenFiles.of(start.tensors)
    _require_memory(start.config, options.unfreeze, world)
    tokenizer = parse_tokenizer(start.tokenizer.encode(), Path(options.tokenizer or TOKENIZER),
                                start.config.language.vocab_size)
    model = _model(start, options)
    cache = None
    if options.cache_features is not None:
        computed = f"{options.run.precision} {world.device.type}"
        identity = encoder_identity(model.vision.state_dict(), start.config, computed)
        shape = start.config.vision.feature_count, start.config.vision.width
        cache = FeatureCache(Path(options.cache_features), identity, shape, options.cache_bytes, world.size, _warn)
    datasets = [
        Dataset(entry.label, entry.weight, _batches(entry, number, sources.get(entry), start.config, tokenizer, options,
                                                    cache))
        for number, entry in enumerate(options.data)
    ]
    files.require_unchanged()  # while they were read
    return FlamingoStage(model, tokenizer, datasets, options, start.new_tokens, world, cache, start.tensors, files)


def _check_trainable(config: FlamingoConfig, options: FlamingoOptions) -> None:
    """Raise `UsageError` where an encoder is to be trained that has no gradients."""
    if config.vision.kind == "external" and "vision" in options.unfreeze:
        raise UsageError("the vision encoder is an external graph, which is not trained: leave vision out of unfreeze")


def _require_memory(config: FlamingoConfig, unfreeze: Sequence[str], world: World) -> None:
    """Raise `DataError` where weights, gradients and moments of what is trained do not fit into memory."""
    counts = reckon_parameters(config)
    trained = sum(counts[part] for part in ("resampler", "cross_attention", "vision", "language")
                  if part in unfreeze or part not in ("vision", "language"))
    if "embedding" in unfreeze and "language" not in unfreeze:
        trained += config.language.vocab_size * config.language.width
    require_training_memory(counts["total"], trained, f"training {config.name}", world)


def _starting_point(options: FlamingoOptions, sources: Mapping[DataOptions, SampleSource]) -> StartingPoint:
    sizes = preset(options.preset)
    if options.start_from is not None:
        path = Path(options.start_from)
        stored = open_checkpoint(path)
        checked = TextTokenizer(path / TOKENIZER, stored.config.tokens, stored.config.language.vocab_size)
        new = (checked.image_id, checked.end_of_chunk_id)
        tensors = with_predictable(stored.tensors, new, options.run.seed)
        return StartingPoint(stored.config, stored.tokenizer, tensors, new)
    if options.vision is not None or options.language is not None:
        joined = join_parts(options, lambda config: _new_tokenizer(options, sources, config))
        return StartingPoint(joined.config, joined.tokenizer_json, joined.tensors, joined.new_tokens)
    return StartingPoint(sizes, _new_tokenizer(options, sources, sizes).to_str(), {}, ())


def _new_tokenizer(
    options: FlamingoOptions, sources: Mapping[DataOptions, SampleSource], config: FlamingoConfig
) -> Tokenizer:
    """The tokenizer of a new language model of this configuration: the one that is given, or one that is learnt."""
    if options.tokenizer is not None:
        return given_tokenizer(Path(options.tokenizer), config)
    texts = _texts(options, sources, config)
    return train_tokenizer(texts, config.language.vocab_size, config.tokens)


def _texts(
    options: FlamingoOptions, sources: Mapping[DataOptions, SampleSource], config: FlamingoConfig
) -> Iterator[str]:
    for entry in options.data:
        if entry in sources:
            yield from source_texts(_used(sources[entry], entry, config, options))
        else:
            for index in range(TOKENIZER_SCENES):
                yield from texts_of_scene(options.run.seed, index, config.prompts)


def _model(start: StartingPoint, options: FlamingoOptions) -> Flamingo:
    """The model with random weights from the seed where none are given."""
    torch.manual_seed(options.run.seed)
    model = Flamingo(start.config)
    for name, tensor in model.state_dict().items():
        if name in start.tensors:
            tensor.copy_(read_for(start.tensors[name], torch.float32))
    for name, parameter in model.named_parameters():
        gate = name.endswith(("attention_gate", "ff_gate"))
        if gate and options.gates == "none":  # whatever a checkpoint has
            nn.init.constant_(parameter, LARGEST_GATE)
            parameter.requires_grad_(False)
        elif options.initial_gate is not None and name not in start.tensors and (gate or name.endswith("skip_gain")):
            nn.init.constant_(parameter, options.initial_gate)
        elif name not in start.tensors and _carries_pictures(name):
            with torch.no_grad():
                parameter.mul_(options.initial_output)
    return model


def _carries_pictures(name: str) -> bool:
    """Whether it is the output matrix of an attention to pictures: the resampler's, or a gated one."""
    return name.startswith(("resampler.layers.", "cross_attention.layers.")) and name.endswith(".output.weight")


def _batches(
    entry: DataOptions, number: int, source: SampleSource | None, config: FlamingoConfig, tokenizer: Tokenizer,
    options: FlamingoOptions, cache: FeatureCache | None,
) -> SceneBatches | DocumentBatches:
    if source is None and entry.kind == "videos":
        source = SceneClips(options.run.seed)
    elif source is None and entry.kind == "tasks":
        source = SceneTasks(options.run.seed, config.prompts)
    elif source is None:
        return SceneBatches(config, tokenizer, options.run.seed, pictures=entry.batch, questions=entry.questions,
                            by_place=entry.by_place, number=number)
    source = _used(source, entry, config, options)
    if isinstance(source, ClassTasks):
        require_room(source, entry, config, DocumentWriter(config, tokenizer, entry))
    if entry.kind == "tasks":
        # An answer belongs to the picture before it, and its rule is in all of the shots.
        entry = replace(entry, next_image=0.0, images=config.max_visuals)
    return DocumentBatches(source, entry, config, tokenizer, options.run.seed, number, cache)


def _used(source: SampleSource, entry: DataOptions, config: FlamingoConfig, options: FlamingoOptions) -> SampleSource:
    """The source that a dataset draws from: of a folder of classes its tasks, where these are asked for."""
    if entry.kind == "tasks" and isinstance(source, ImageFolder):
        return ClassTasks.of(source, entry, config.prompts, options.run.seed)
    return source


def _warn(text: str) -> None:
    logging.getLogger(__name__).warning(text)
