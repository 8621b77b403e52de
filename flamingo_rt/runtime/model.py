"""A loaded model: prompts in, answers out. The facade over reading prompts, the decode loop and scoring."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_rt.backend import Backend
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.processing import tasks
from flamingo_rt.processing.preprocess import decode_visuals
from flamingo_rt.processing.prompt import Part, Prompt, build_prompt
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.runtime.answer import Answer
from flamingo_rt.runtime.batch_memory import Prefill, check_memory
from flamingo_rt.runtime.compiled_prompt import CompiledPrompt, read_prompt, write_prompt
from flamingo_rt.runtime.decoder import Decoder, Prefix, Row
from flamingo_rt.runtime.generation import BatchGeneration, Generation, GrowingRow, decode_rows, search_rows
from flamingo_rt.runtime.generation_options import GenerationOptions, GenerationResult, Score, options_with
from flamingo_rt.runtime.scoring import checked_choices, choice_tokens, score_choices
from flamingo_rt.runtime.timing import StageTimer
from flamingo_rt.runtime.visual_encoder import DEFAULT_BYTES, MediaCache, VisualEncoder
from flamingo_rt.step_costs import StepCosts

PromptParts = Part | Sequence[Part]


class PromptState:
    """A prompt that has been read: `Model.generate` and `Model.score` continue it, any number of times."""

    def __init__(self, owner: Model, prefix: Prefix, visuals: int, ids: np.ndarray) -> None:
        self._owner, self._prefix, self._visuals, self._ids = owner, prefix, visuals, ids

    def __len__(self) -> int:
        """Tokens in the prompt."""
        return self._prefix.length

    def save(self, path: str | os.PathLike, about: Mapping[str, Any] | None = None) -> None:
        """Write the state to a file that `Model.load_prompt` reads, in this process or another. ``about`` is JSON data
        that is kept with it, such as where the shots came from.

        Raises `DataError` when the file cannot be written, and `UsageError` for a model that is not a bundle: nothing
        would distinguish its prompts from another model's.
        """
        identity = self._owner.identity
        if identity is None:
            raise UsageError("only a bundle's prompts can be saved: export the checkpoint with flamingo-rt export")
        named = {**(about or {}), "bundle": identity, "model": self._owner.config.name}
        write_prompt(Path(path), CompiledPrompt(self._prefix, self._ids, self._visuals, named))


class Model:
    """A Flamingo model behind a backend. `flamingo_rt.load` makes one.

    A prompt is a text, an `Image`, a `Video`, `PixelValues`, or a list of those in reading order. Every method raises
    `DataError` for a picture that cannot be read, a prompt longer than the context, more visuals than the model allows
    and more rows than there is memory for, and `UsageError` for wrong arguments.
    """

    def __init__(
        self, backend: Backend, config: FlamingoConfig, tokenizer: TextTokenizer, identity: str | None = None,
        image_cache_bytes: int = DEFAULT_BYTES, usual_probability: float | None = None,
        step_costs: StepCosts | None = None,
    ) -> None:
        """``identity`` is equal for models that compute the same numbers: the hash of a bundle's manifest, which holds
        the hash of every other file. ``image_cache_bytes`` bounds the media kept of visuals seen before.
        ``usual_probability`` is the probability that 95% of the model's captions reach on pictures of its own kind,
        where that was measured. ``step_costs`` decide how many tokens are guessed ahead; by default those of
        unquantized weights."""
        self.backend, self.config, self.tokenizer, self.identity = backend, config, tokenizer, identity
        self.usual_probability = usual_probability
        self._step_costs = step_costs or StepCosts.of(None)
        self._encoder = VisualEncoder(backend, MediaCache(image_cache_bytes))

    def caption_prompt(
        self, visuals: tasks.Visuals, *, shots: Iterable[tuple[tasks.Visuals, str]] = ()
    ) -> list[Part]:
        """The prompt that asks for a caption, in this model's form; a shot is (picture, caption)."""
        return tasks.caption_prompt(self.config, visuals, shots)

    def question_prompt(
        self, visuals: tasks.Visuals, question: str, *, shots: Iterable[tuple[tasks.Visuals, str, str]] = ()
    ) -> list[Part]:
        """The prompt that asks a question, in this model's form; a shot is (picture, question, answer)."""
        return tasks.question_prompt(self.config, visuals, question, shots)

    def prompt(self, parts: PromptParts) -> PromptState:
        """Read a prompt once, to be continued by many queries; its pictures are not encoded again.

        The prompt and its continuation are tokenized apart: end the prompt with the end of chunk, so that no word is
        split.
        """
        timer = StageTimer()
        prompt = build_prompt(parts, self.tokenizer)
        self._check([prompt], None)
        check_memory(self.backend, 1, len(prompt), len(prompt.visuals), prefill=Prefill(self.config, len(prompt)))
        rows = self._rows([prompt], timer)
        with self._decoder(1, len(prompt), None) as decoder:
            decoder.prefill(rows)
            return PromptState(self, decoder.prefix(), len(prompt.visuals), prompt.input_ids)

    def load_prompt(self, path: str | os.PathLike) -> PromptState:
        """Load a prompt that `PromptState.save` or ``flamingo-rt prompt compile`` wrote; nothing is computed again.

        Raises `DataError` when the file is damaged, or was made for another model, export or precision.
        """
        if self.identity is None:
            raise UsageError("only a bundle reads prompts from files: export the checkpoint with flamingo-rt export")
        compiled = read_prompt(path, self.config, self.backend.specs, self.identity)
        return PromptState(self, compiled.prefix, compiled.visuals, compiled.input_ids)

    def generate(
        self, parts: PromptParts, *, prefix: PromptState | None = None, options: GenerationOptions | None = None,
        **changes: Any,
    ) -> Generation:
        """Answer one prompt, streamed. Keyword arguments are fields of `GenerationOptions`."""
        return Generation(self._start([parts], prefix, options_with(options, changes)))

    def generate_batch(
        self, prompts: Sequence[PromptParts], *, prefix: PromptState | None = None,
        options: GenerationOptions | None = None, **changes: Any,
    ) -> list[GenerationResult]:
        """Answer several prompts of any lengths together; the results are in their order."""
        if isinstance(prompts, str):
            raise UsageError("prompts is one text: generate_batch takes a list of prompts")
        if not prompts:
            return []
        return self._start(prompts, prefix, options_with(options, changes)).results()

    def score(
        self, parts: PromptParts, choices: Sequence[str], *, prefix: PromptState | None = None,
        normalize: bool = False,
    ) -> list[Score]:
        """Rank a closed set of answers by log-likelihood after the prompt (paper §B.1.5): best first.

        The separator of the model's form, ``config.prompts.answer_separator``, is put between prompt and choice where
        neither has a space. A choice is tokenized as the continuation of the prompt; its score is the sum over its
        tokens. With ``normalize``, ranks and shares are by the mean over the tokens: a choice of more tokens is less
        likely by its length alone.
        """
        listed = checked_choices(choices, self.tokenizer.tokens.image)
        timer, start = StageTimer(), prefix is None
        prompt = build_prompt(parts, self.tokenizer, start=start)
        self._check([prompt], prefix)
        tokens = choice_tokens(parts, listed, self.tokenizer, self.config.prompts.answer_separator, start=start)
        before, longest = len(prefix) if prefix else 0, max(len(choice) for choice in tokens)
        capacity = before + len(prompt) + longest
        if capacity > self.config.language.context:
            raise DataError(
                f"the prompt has {capacity - longest} tokens and a choice {longest}, the context "
                f"{self.config.language.context}: shorten them"
            )
        prefill = Prefill(self.config, len(prompt), before)
        check_memory(self.backend, 1, capacity, self._most_visuals([prompt], prefix), prefill=prefill)
        rows = self._rows([prompt], timer)
        with self._decoder(1, capacity, prefix) as decoder:
            with timer.stage("prefill"):
                logits = decoder.prefill(rows)[0]
            return score_choices(decoder, logits, listed, tokens, normalize, timer)

    def _start(
        self, prompts: Sequence[PromptParts], prefix: PromptState | None, options: GenerationOptions
    ) -> BatchGeneration:
        timer = StageTimer()
        built = [build_prompt(parts, self.tokenizer, start=prefix is None) for parts in prompts]
        self._check(built, prefix)
        before, context = len(prefix) if prefix else 0, self.config.language.context
        limits = [min(options.max_new_tokens, context - before - len(prompt)) for prompt in built]
        capacity = min(context, before + max(len(prompt) for prompt in built) + max(limits))
        # Beams take the rows of a batch, so the prompts of a batch are searched one after the other.
        count, kind = (len(built), "rows") if options.beams == 1 else (options.beams, "beams")
        prefill = Prefill(
            self.config, max(len(prompt) for prompt in built), before,
            together=options.beams == 1 and (not before or self.backend.continues_batches),
        )
        check_memory(self.backend, count, capacity, self._most_visuals(built, prefix), kind, prefill)
        rows = self._rows(built, timer)
        before_ids = prefix._ids if prefix else np.empty(0, dtype=np.int64)
        growing = [
            GrowingRow(
                np.concatenate([before_ids, prompt.input_ids]),
                Answer(
                    self.tokenizer, options, limit, "context" if limit < options.max_new_tokens else "max_new_tokens"
                ),
                usual_probability=self._usual_probability(parts, prefix, options),
            )
            for parts, prompt, limit in zip(prompts, built, limits, strict=True)
        ]
        if options.beams > 1:
            pieces = search_rows(partial(self._decoder, 1, capacity, prefix), rows, growing, options, timer)
        else:
            open_decoder = partial(self._decoder, len(rows), capacity, prefix)
            pieces = decode_rows(open_decoder, rows, growing, options, self._step_costs, timer)
        return BatchGeneration(pieces, growing, timer)

    def _usual_probability(
        self, parts: PromptParts, prefix: PromptState | None, options: GenerationOptions
    ) -> float | None:
        """The usual probability of answers to this prompt; None unless it asks for a caption, to be decoded greedily or
        by beams, without a penalty. Answers to questions are as likely about pictures that the model knows nothing of
        (benchmarks/confidence.py). After shots a caption has their style, whose probability was not measured."""
        likeliest = options.temperature == 0.0 and options.repetition_penalty == 1.0
        judged = likeliest and prefix is None and tasks.asks_for_caption(self.config, parts)
        return self.usual_probability if judged else None

    @contextmanager
    def _decoder(self, rows: int, capacity: int, prefix: PromptState | None) -> Iterator[Decoder]:
        """Open a decoder whose rows begin with ``prefix``; it is closed at the end of the block."""
        with Decoder(self.backend, self.config, rows, capacity) as decoder:
            if prefix is not None:
                decoder.restore(prefix._prefix)
            yield decoder

    def _check(self, prompts: Sequence[Prompt], prefix: PromptState | None) -> None:
        if prefix is not None and prefix._owner is not self:
            raise UsageError("the prefix was made by another model: call prompt() of the model that continues it")
        tokens, visuals = (len(prefix), prefix._visuals) if prefix else (0, 0)
        for prompt in prompts:
            self._encoder.check_places(prompt.visuals)
            total, most = visuals + len(prompt.visuals), self.config.max_visuals
            if total > most:
                remedy = "use fewer shots" if self._has_shots(prompt, prefix) else "give fewer"
                raise DataError(f"the prompt has {total} pictures and clips, this model allows {most}: {remedy}")
            length, context = tokens + len(prompt), self.config.language.context
            if length >= context:
                remedy = "shorten it or use fewer shots" if self._has_shots(prompt, prefix) else "shorten it"
                raise DataError(
                    f"the prompt has {length} tokens, the context is {context} and must hold the answer too: {remedy}"
                )

    def _has_shots(self, prompt: Prompt, prefix: PromptState | None) -> bool:
        """Whether examples come before the query: a prefix, or parts that end a chunk."""
        return prefix is not None or bool(np.isin(prompt.input_ids, list(self.tokenizer.stop_ids)).any())

    def _most_visuals(self, prompts: Sequence[Prompt], prefix: PromptState | None) -> int:
        """Visuals of the largest row: those of the prefix that are still looked at, and those that its prompt adds."""
        return (len(prefix._prefix.media) if prefix else 0) + max(len(prompt.visuals) for prompt in prompts)

    def _rows(self, prompts: Sequence[Prompt], timer: StageTimer) -> list[Row]:
        """Decode and encode the visuals of all prompts; an object that stands in several places is decoded once."""
        visuals = list(dict.fromkeys(visual for prompt in prompts for visual in prompt.visuals))
        with closing(decode_visuals(visuals, self.config)) as decoded:
            media = dict(zip(visuals, self._encoder.encode(decoded, timer), strict=True))
        return [
            Row(prompt.input_ids, prompt.media_index, [media[visual] for visual in prompt.visuals])
            for prompt in prompts
        ]
