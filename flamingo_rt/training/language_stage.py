"""Stage 2: a decoder on text, from random weights. Weight decay acts on matrices, not on norms and biases."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from flamingo_rt.checkpoints import CONFIG
from flamingo_rt.config import LanguageConfig, TokensConfig, parse_config
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.importing.openflamingo_tokenizer import load_tokenizer, read_tokenizer
from flamingo_rt.json_files import read_json
from flamingo_rt.model.flamingo import IGNORED_LABEL
from flamingo_rt.model.language_model import LanguageModel
from flamingo_rt.parameter_count import language_parameters
from flamingo_rt.presets import preset
from flamingo_rt.tokenizer_file import parse_tokenizer
from flamingo_rt.training.data.samples import SampleSource
from flamingo_rt.training.data.scene_documents import SceneDocuments
from flamingo_rt.training.data.scene_tasks import SceneTaskTexts
from flamingo_rt.training.data.sources import check_names, open_source
from flamingo_rt.training.data.text_batches import TextBatch, TextBatches
from flamingo_rt.training.gradient_norms import clip_norm
from flamingo_rt.training.memory import decoder_bytes, require_training_memory
from flamingo_rt.training.options import SCENES, DataOptions, LanguageOptions, RunOptions
from flamingo_rt.training.sharding import World, whole_state
from flamingo_rt.training.stage import Dataset, Division, Loss, Updating
from flamingo_rt.training.texts import MOST_TEXTS, TOKENIZER_SCENES, source_texts
from flamingo_rt.training.tokenizer_training import train_tokenizer
from flamingo_rt.training.towers import folder_kind, read_tower, write_tower

SAMPLE_ROWS, PROMPT_TOKENS, SAMPLE_TOKENS = 3, 12, 24


class LanguageStage:
    """A `Stage`; `open_language_stage` makes it from options."""

    division: Division = "parts"

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, tokens: TokensConfig, datasets: Sequence[Dataset],
        run: RunOptions, world: World,
    ) -> None:
        self.model, self.datasets = model.to(world.device), datasets
        self.config, self.tokenizer, self.tokens_config = model.config, tokenizer, tokens
        self._run, self._world = run, world
        self._copied, self._copies = 0.0, 0  # loss and number of repeated tokens since the numbers were asked for

    def shards(self) -> Sequence[nn.Module]:
        """See `Stage.shards`."""
        return list(self.model.layers)

    def logits(self, input_ids: Tensor) -> Tensor:
        """Logits [R, T, vocab] of whole rows input_ids [R, T]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        return self.model(input_ids, positions)

    def loss(self, dataset: str, batch: TextBatch) -> Loss:
        """See `Stage.loss`: cross-entropy of the next token."""
        copies, batch = bool(batch.repeated.any()), batch.to(self._world.device)
        logits, labels = self.logits(batch.input_ids)[:, :-1].float(), batch.labels[:, 1:]
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
        if copies:
            self._copied += float(losses.detach().view_as(labels)[batch.repeated].sum())
            self._copies += int((labels[batch.repeated] != IGNORED_LABEL).sum())
        return Loss(losses.sum())

    def activation_bytes(self, batch: TextBatch) -> int:
        """See `Stage.activation_bytes`."""
        return decoder_bytes(self.config, (), batch.input_ids.numel(), self._run)

    def targets(self, batch: TextBatch) -> int:
        """See `Stage.targets`: the tokens that are predicted."""
        return int((batch.labels[:, 1:] != IGNORED_LABEL).sum())

    def tokens(self, batch: TextBatch) -> int:
        """See `Stage.tokens`."""
        return batch.input_ids.numel()

    def updating(self, name: str, parameter: nn.Parameter) -> Updating:
        """See `Stage.updating`: matrices decay."""
        return Updating(parameter.ndim >= 2 and not name.endswith("bias"))

    def clip(self, bound: float) -> float:
        """See `Stage.clip`: one norm over all parameters."""
        return clip_norm(self.model.parameters(), bound)

    def scalars(self) -> dict[str, float]:
        """See `Stage.scalars`: the mean loss on repeated segments, of all ranks' rows since the last call, which falls
        to nothing once the model copies."""
        copied, copies = self._world.total(self._copied), self._world.total(self._copies)
        self._copied, self._copies = 0.0, 0
        return {"copy_loss": copied / copies} if copies else {}

    def sample_lines(self) -> Iterator[str]:
        """See `Stage.sample_lines`: greedy continuations of the first tokens of a few rows of each dataset, which
        the first rank draws for all."""
        for dataset in self.datasets:
            drawn = self._world.from_first(partial(dataset.batches.draw, 0, 0, 1))
            if drawn.error is not None:
                continue
            batch = drawn.batch.to(self._world.device)
            ids = batch.input_ids[~batch.repeated][:SAMPLE_ROWS, :PROMPT_TOKENS]
            if not len(ids):
                continue
            for _ in range(min(SAMPLE_TOKENS, self.config.context - ids.shape[1])):
                ids = torch.cat([ids, self.logits(ids)[:, -1:].argmax(-1)], 1)
            for row in ids.tolist():
                yield f"{dataset.name}: {self._text(row[:PROMPT_TOKENS])} -> {self._text(row[PROMPT_TOKENS:])}"

    def _text(self, ids: list[int]) -> str:
        return " ".join(self.tokenizer.decode(ids, skip_special_tokens=True).split())

    def identity(self) -> dict[str, Any]:
        """See `Stage.identity`."""
        tokenizer = hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()[:16]
        return {"model": asdict(self.config), "tokenizer": tokenizer, "tokens": asdict(self.tokens_config)}

    def write(self, out: Path, overwrite: bool) -> None:
        """See `Stage.write`: a language tower."""
        tensors = {f"language.{name}": tensor for name, tensor in whole_state(self.model, self._world).items()}
        config = {"language": asdict(self.config), "tokens": asdict(self.tokens_config)}
        text = self.tokenizer.to_str(pretty=True)
        self._world.from_first(lambda: write_tower(out, "language", config, tensors, text, overwrite))


def open_language_stage(options: LanguageOptions, world: World) -> LanguageStage:
    """Open the data, read or learn the tokenizer, and make a model with random weights from the seed, or with those
    that ``options.start_from`` has.

    Raises `UsageError` for options that do not go together, `DataError` for data or a tokenizer that cannot be used,
    and for too little memory.
    """
    if not options.data:
        raise UsageError("train language needs data: a source of texts")
    check_names(options.data)
    sources = [open_texts(entry, options.run.seed) for entry in options.data]
    tower = None if options.start_from is None else read_tower(Path(options.start_from), "language")
    if tower is not None:
        _check_sizes(options, tower.language)
        tokens = tower.tokens
        tokenizer = parse_tokenizer((tower.tokenizer or "").encode(), Path(options.start_from or ""),
                                    tower.language.vocab_size)
    elif options.tokenizer is not None:
        tokenizer, tokens = tokenizer_and_tokens(Path(options.tokenizer))
    else:
        tokens = TokensConfig()
        texts = (text for source in sources for text in _tokenizer_texts(source, len(sources)))
        tokenizer = train_tokenizer(texts, options.vocab_size, tokens)
    config = decoder_config(options, tokenizer) if tower is None else tower.language
    if options.context > config.context and config.positions == "learnt":
        raise UsageError(f"{options.start_from} has a table of {config.context} positions, and context is "
                         f"{options.context}: give rows of {config.context} tokens at most")
    parameters = language_parameters(config)
    decoder = f"the decoder of {options.start_from or options.decoder}"
    require_training_memory(parameters, parameters, f"training {decoder}", world)
    torch.manual_seed(options.run.seed)
    datasets = [
        Dataset(entry.label, entry.weight, TextBatches(
            source, entry, tokenizer, tokens, context=options.context, seed=options.run.seed, number=number,
            repeats=options.repeats,
        ))
        for number, (entry, source) in enumerate(zip(options.data, sources, strict=True))
    ]
    model = LanguageModel(config)
    if tower is not None:
        model.load_state_dict({name: tower.tensors[f"language.{name}"].to(torch.float32).read()
                               for name in model.state_dict()})
    return LanguageStage(model, tokenizer, tokens, datasets, options.run, world)


def _check_sizes(options: LanguageOptions, language: LanguageConfig) -> None:
    """Raise `UsageError` for a decoder that is given (not the default) and has other sizes than
    ``options.start_from``."""
    sizes = replace(preset(options.decoder).language, vocab_size=language.vocab_size, context=language.context)
    if options.decoder != LanguageOptions.decoder and sizes != language:
        raise UsageError(f"{options.start_from} has other sizes than the decoder of {options.decoder}: leave decoder "
                         "out")


def open_texts(options: DataOptions, seed: int) -> SampleSource:
    """Open a source of documents; captions and pages are read without their pictures. Raises `DataError`."""
    if options.source != SCENES:
        return open_source(options)
    return SceneTaskTexts(seed) if options.kind == "tasks" else SceneDocuments(seed)


def _tokenizer_texts(source: SampleSource, sources: int) -> Iterator[str]:
    """The share of one of several sources in the texts from which a tokenizer is learnt."""
    scenes = isinstance(source, (SceneDocuments, SceneTaskTexts))  # made as they are read, and all alike
    return source_texts(source, TOKENIZER_SCENES if scenes else max(1, MOST_TEXTS // sources))


def tokenizer_and_tokens(path: Path) -> tuple[Tokenizer, TokensConfig]:
    """The tokenizer in a folder or file, with the tokens that stage 3 needs, and the texts of its special tokens.

    They are those of the config.json beside it where a model of this project is there, this project's usual ones where
    the tokenizer has all of them, and otherwise those that the tokenizer's own files name. Raises `DataError`.
    """
    if folder_kind(path) in ("language", "flamingo"):
        config = read_json(path / CONFIG)
        if "tokens" not in config:
            raise DataError(f"{path / CONFIG} has no tokens: give the folder of another model, or its tokenizer.json")
        return load_tokenizer(path), parse_config(TokensConfig, config["tokens"], "tokens")
    tokenizer, usual = load_tokenizer(path), TokensConfig()
    texts = (usual.pad, usual.bos, usual.eos, usual.image, usual.end_of_chunk)
    if all(tokenizer.token_to_id(text) is not None for text in texts):
        return tokenizer, usual
    return read_tokenizer(path, None)


def decoder_config(options: LanguageOptions, tokenizer: Tokenizer) -> LanguageConfig:
    """The preset's sizes, with a row for each token. The context is the preset's where positions are computed and it is
    longer than the rows; a table of positions is as long as the rows that train it."""
    sizes = preset(options.decoder).language
    context = options.context if sizes.positions == "learnt" else max(options.context, sizes.context)
    try:
        return replace(sizes, vocab_size=1 + max(tokenizer.get_vocab().values()), context=context)
    except DataError as error:
        raise DataError(f"the decoder of {options.decoder} cannot be made: {error}") from None
