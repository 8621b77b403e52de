"""Stand-ins between our runtime and a model, so that it answers as the peers do: with as many tokens as asked for, or
with answers that are given (`comparison/captions.py`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from benchmarks.peers.answer_timing import FORCED
from flamingo_rt.backend import Backend, HostBackend
from flamingo_rt.contract import LANGUAGE_MODEL, NEXT_TOKEN


class GivenAnswers(HostBackend):
    """A backend of one row that computes as another one does; then the token that comes next in a given answer is the
    likeliest at each of its places, whatever tokens were guessed. So a guess is right only if it is that token."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend.specs)
        self._backend, self.name, self.continues_batches = backend, backend.name, backend.continues_batches
        self._answer: tuple[int, ...] = ()
        self._start = 0

    def give(self, answer: Sequence[int], prompt_tokens: int) -> None:
        """The tokens behind the next prompts, each of ``prompt_tokens``, its prefix counted."""
        self._answer, self._start = tuple(answer), prompt_tokens

    def bind(
        self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> Callable[[], None]:
        """See `Backend.bind`."""
        run = self._backend.bind(graph, inputs, outputs, constant)
        if graph != LANGUAGE_MODEL:
            return run

        def call() -> None:
            run()
            following = inputs["cache_length"][0] + inputs["logits_index"][0] + 1 - self._start  # [K], in the answer
            for position, place in enumerate(following.tolist()):
                if not 0 <= place < len(self._answer):
                    continue
                if "logits" in outputs:
                    outputs["logits"][0, position, self._answer[place]] = FORCED
                if NEXT_TOKEN in outputs:
                    outputs[NEXT_TOKEN][0, position] = self._answer[place]

        return call


class OneLetterTokens:
    """A tokenizer whose tokens all read "x" and never end an answer: each token is a piece of text when it is chosen,
    and answers have the length that is asked for, as the peers' have."""

    stop_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, ids: list[int]) -> str:
        return "x" * len(ids)


class NumberTokens(OneLetterTokens):
    """The same for texts that are token ids, written as numbers. Answers end as the model's own do."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.stop_ids = tokenizer.stop_ids

    def encode(self, text: str) -> list[int]:
        """Token ids of numbers and pictures."""
        return [int(word) for word in text.replace(self.tokens.image, f" {self.image_id} ").split()]
