"""A loaded model: prompts in, answers out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_rt.backend import Backend
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.processing import tasks
from flamingo_rt.processing.prompt import Part, Prompt, build_prompt, continuation_ids
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.runtime.answer import Answer
from flamingo_rt.runtime.batch_memory import Prefill, check_memory
from flamingo_rt.runtime.compiled_prompt import CompiledPrompt, read_about, read_prompt, write_prompt
from flamingo_rt.runtime.decoder import Decoder, Prefix, Row
from flamingo_rt.runtime.draft_length import StepCosts
from flamingo_rt.runtime.generation import BatchGeneration, Generation, GrowingRow, decode_rows, search_rows
from flamingo_rt.runtime.generation_options import GenerationOptions, GenerationResult, Score
from flamingo_rt.runtime.sampling import log_softmax
from flamingo_rt.runtime.scoring import choice_logprobs, total_probability
from flamingo_rt.runtime.timing import StageTimer
from flamingo_rt.runtime.visual_encoder import DEFAULT_BYTES, MediaCache, VisualEncoder

PromptParts = Part | Sequence[Part]


class PromptState:
    """A prompt that has been read: `Model.generate` and `Model.score` continue it, any number of times."""

    def __init__(self, owner: Model, prefix: Prefix, visuals: int, ids: np.ndarray) -> None:
        self._owner, self._prefix, self._visuals, self._ids = owner, prefix, visuals, ids

    def __len__(self) -> int:
        """Tokens in the prompt."""
        return self._prefix.length

    def save(self, path: str | os.PathLike, about: Mapping[str, Any] | None = None) -> None:
        """Write the state to a file that `Model.load_prompt` reads, in this process or another. ``about`` is kept with
        it: JSON data, such as where the shots came from.

        Raises `DataError` when the file cannot be written, `UsageError` for a model that is not a bundle: nothing would
        tell its prompts from another's.
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
    ) -> None:
        """``identity`` is the same for models that compute the same numbers: the hash of a bundle's manifest, which has
        the hash of every file of it. ``image_cache_bytes`` are for the keys and values of pictures seen before.
        ``usual_probability`` is what 95% of its captions of its own kind of pictures have at least, where that was
        measured."""
        self.backend, self.config, self.tokenizer, self.identity = backend, config, tokenizer, identity
        self.usual_probability = usual_probability
        self._specs = backend.specs
        self._step_costs = StepCosts()
        self._reader = VisualEncoder(backend, config, self._specs, MediaCache(image_cache_bytes))

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

        The prompt and what continues it are tokenized apart: end it with the end of chunk, so that no word is split.
        """
        timer = StageTimer()
        prompt = build_prompt(parts, self.tokenizer)
        self._check([prompt], None)
        check_memory(
            self.backend, 1, len(prompt), len(prompt.visuals), prefill=Prefill(self.config, len(prompt))
        )
        rows = self._rows([prompt], timer)
        with self._decoder(1, len(prompt), None) as decoder:
            decoder.prefill(rows)
            return PromptState(self, decoder.prefix(), len(prompt.visuals), prompt.input_ids)

    def load_prompt(self, path: str | os.PathLike) -> PromptState:
        """A prompt that `PromptState.save` or ``flamingo-rt prompt compile`` wrote: as `prompt`, not computed again.

        Raises `DataError` when the file is damaged, or of another bundle: of another model, export or precision.
        """
        if self.identity is None:
            raise UsageError("only a bundle reads prompts from files: export the checkpoint with flamingo-rt export")
        about = read_about(path)
        if about.get("bundle") != self.identity:
            raise DataError(
                f"compiled prompt {os.fsdecode(path)} is of another bundle ({_short(about.get('bundle'))}; this one is "
                f"{_short(self.identity)}): {_recompiling(about)}"
            )
        compiled = read_prompt(path, self.config, self._specs, about)
        return PromptState(self, compiled.prefix, compiled.visuals, compiled.input_ids)

    def generate(
        self, parts: PromptParts, *, prefix: PromptState | None = None, options: GenerationOptions | None = None,
        **changes: object,
    ) -> Generation:
        """Answer one prompt, streamed. Keyword arguments are fields of `GenerationOptions`."""
        return Generation(self._start([parts], prefix, _options(options, changes)))

    def generate_batch(
        self, prompts: Sequence[PromptParts], *, prefix: PromptState | None = None,
        options: GenerationOptions | None = None, **changes: object,
    ) -> list[GenerationResult]:
        """Answer several prompts of any lengths together; the results are in their order."""
        if isinstance(prompts, str):
            raise UsageError("prompts is one text: generate_batch takes a list of prompts")
        if not prompts:
            return []
        return self._start(prompts, prefix, _options(options, changes)).results()

    def score(
        self, parts: PromptParts, choices: Sequence[str], *, prefix: PromptState | None = None,
        normalize: bool = False,
    ) -> list[Score]:
        """Rank a closed set of answers by log-likelihood after the prompt (paper §B.1.5): best first.

        The separator of the model's form, ``config.prompts.answer_separator``, is put between prompt and choice where
        neither has a space. A choice is tokenized as the continuation of the prompt; its score is the sum over its
        tokens. With ``normalize`` it is divided by their number, for ranks and shares: a choice of more tokens is less
        likely by that alone.
        """
        choices = self._checked_choices(choices)
        timer = StageTimer()
        prompt = build_prompt(parts, self.tokenizer, start=prefix is None)
        self._check([prompt], prefix)
        tokens = self._choice_tokens(parts, choices, start=prefix is None)
        start, longest = (len(prefix) if prefix else 0) + len(prompt), max(len(choice) for choice in tokens)
        if start + longest > self.config.language.context:
            raise DataError(
                f"the prompt has {start} tokens and a choice {longest}, the context {self.config.language.context}: "
                "shorten them"
            )
        prefill = Prefill(self.config, len(prompt), start - len(prompt))
        check_memory(self.backend, 1, start + longest, self._most_visuals([prompt], prefix), prefill=prefill)
        rows = self._rows([prompt], timer)
        with self._decoder(1, start + longest, prefix) as decoder:
            with timer.stage("prefill"):
                logits = decoder.prefill(rows)[0]
            with timer.stage("choices"):
                sums = choice_logprobs(decoder, logits, tokens)
        ranks = np.array(sums) / [len(ids) if normalize else 1 for ids in tokens]
        shares, total = np.exp(log_softmax(ranks)), total_probability(tokens, sums)
        scores = [
            Score(choice, logprob, float(share), tuple(ids.tolist()), dict(timer.milliseconds), total)
            for choice, logprob, share, ids in zip(choices, sums, shares, tokens, strict=True)
        ]
        return [scores[index] for index in np.argsort(-ranks, kind="stable")]

    def _checked_choices(self, choices: Sequence[str]) -> list[str]:
        """The choices, of which there is one at least, and each a text. Raises `UsageError`."""
        listed = [] if isinstance(choices, str) else list(choices)
        if not listed or not all(isinstance(choice, str) and choice.strip() for choice in listed):
            shown = [choice if isinstance(choice, str) else type(choice).__name__ for choice in listed] or choices
            raise UsageError(f"choices are {shown!r}: give a list of one or more texts that are not empty")
        if any(self.tokenizer.tokens.image in choice for choice in listed):
            raise UsageError(f"a choice holds {self.tokenizer.tokens.image}: pictures belong into the prompt")
        return listed

    def _choice_tokens(self, parts: PromptParts, choices: Sequence[str], start: bool) -> list[np.ndarray]:
        """Each choice's ids int64 [T] as it continues the prompt; ``start`` as in `build_prompt`."""
        between = "" if _ends_in_space(parts) else self.config.prompts.answer_separator
        texts = [choice if choice[0].isspace() else between + choice for choice in choices]
        return [continuation_ids(parts, text, self.tokenizer, start=start) for text in texts]

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
        before_ids = prefix._ids if prefix else np.empty(0, dtype=np.int64)
        growing = [
            GrowingRow(
                row, np.concatenate([before_ids, row.input_ids]), self._answer(options, limit),
                usual_probability=self._usual_probability(parts, options),
            )
            for parts, row, limit in zip(prompts, self._rows(built, timer), limits, strict=True)
        ]
        if options.beams > 1:
            pieces = search_rows(partial(self._decoder, 1, capacity, prefix), growing, options, timer)
        else:
            open_decoder = partial(self._decoder, len(growing), capacity, prefix)
            pieces = decode_rows(open_decoder, growing, options, self._step_costs, timer)
        return BatchGeneration(pieces, growing, timer)

    def _answer(self, options: GenerationOptions, limit: int) -> Answer:
        reason = "max_new_tokens" if limit == options.max_new_tokens else "context"
        return Answer(self.tokenizer, options, limit, reason)

    def _usual_probability(self, parts: PromptParts, options: GenerationOptions) -> float | None:
        """What an answer to this prompt usually has at least: known of captions that the model finds likeliest itself.
        Answers to questions are as likely for pictures that the model knows nothing of (benchmarks/confidence.py)."""
        likeliest = options.temperature == 0.0 and options.repetition_penalty == 1.0
        return self.usual_probability if likeliest and tasks.asks_for_caption(self.config, parts) else None

    @contextmanager
    def _decoder(self, rows: int, capacity: int, prefix: PromptState | None) -> Iterator[Decoder]:
        """A decoder whose rows begin with ``prefix``, closed behind the block."""
        with Decoder(self.backend, self.config, rows, capacity) as decoder:
            if prefix is not None:
                decoder.restore(prefix._prefix)
            yield decoder

    def _check(self, prompts: Sequence[Prompt], prefix: PromptState | None) -> None:
        if prefix is not None and prefix._owner is not self:
            raise UsageError("the prefix was made by another model: call prompt() of the model that continues it")
        tokens, visuals = (len(prefix), prefix._visuals) if prefix else (0, 0)
        for prompt in prompts:
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
        """Whether there are examples before the query: what was read before, or parts with an end of chunk."""
        return prefix is not None or bool(np.isin(prompt.input_ids, list(self.tokenizer.stop_ids)).any())

    def _most_visuals(self, prompts: Sequence[Prompt], prefix: PromptState | None) -> int:
        """Of one row: what the prefix still looks at, and what its prompt adds."""
        return (len(prefix._prefix.media) if prefix else 0) + max(len(prompt.visuals) for prompt in prompts)

    def _rows(self, prompts: Sequence[Prompt], timer: StageTimer) -> list[Row]:
        """Read and encode the visuals of all prompts; one that stands in several places is encoded once."""
        media = iter(self._reader.read([visual for prompt in prompts for visual in prompt.visuals], timer))
        return [
            Row(prompt.input_ids, prompt.media_index, list(islice(media, len(prompt.visuals)))) for prompt in prompts
        ]


def _options(options: GenerationOptions | None, changes: dict[str, object]) -> GenerationOptions:
    from dataclasses import fields, replace

    known = [field.name for field in fields(GenerationOptions)]
    for name in changes:
        if name not in known:
            raise UsageError(f"unknown generation option {name!r}; known: {', '.join(known)}")
    return replace(options or GenerationOptions(), **changes)


def _short(identity: object) -> str:
    """The beginning of a bundle's identity: names are free to choose, and so often the same."""
    known = isinstance(identity, str) and re.fullmatch(r"[0-9a-f]{64}", identity)
    return f"manifest {identity[:12]}" if known else "without a manifest's hash"


def _recompiling(about: Mapping[str, Any]) -> str:
    """What makes a compiled prompt anew. No text of the file is shown: it may be a stranger's, and look like advice."""
    shots = about.get("shots")
    if isinstance(shots, list) and shots:
        return f"compile its {len(shots)} shots again for this one with flamingo-rt prompt compile"
    return "make it again with this model's prompt() and save()"


def _ends_in_space(parts: PromptParts) -> bool:
    last = parts[-1] if not isinstance(parts, str) and isinstance(parts, Sequence) else parts
    return isinstance(last, str) and last[-1:].isspace()
