"""A backend that passes everything on, records it, and checks that no call leaves its cache; and outputs of made-up
engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from flamingo_rt.backend import HostBackend
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.contract import LANGUAGE_MODEL, NEXT_LOGPROB, NEXT_TOKEN, past_name
from flamingo_rt.processing.preprocess import decode_visuals
from flamingo_rt.processing.visuals import Visual
from flamingo_rt.runtime.sampling import log_softmax
from flamingo_rt.runtime.timing import StageTimer
from flamingo_rt.runtime.visual_encoder import VisualEncoder, VisualMedia


def deliver(logits: np.ndarray, outputs: dict[str, np.ndarray]) -> None:
    """Logits [B, K, vocab] and what follows from them, to those of the language model's outputs that are asked for."""
    logprobs = log_softmax(logits)
    made = {"logits": logits, NEXT_TOKEN: logits.argmax(-1), NEXT_LOGPROB: logprobs.max(-1)}
    for name in made.keys() & outputs.keys():
        outputs[name][:] = made[name]


def encoded(
    encoder: VisualEncoder, visuals: Sequence[Visual], config: FlamingoConfig, timer: StageTimer | None = None
) -> list[VisualMedia]:
    """The media of each visual as a model reads them: decoded in threads, each object once."""
    unique = list(dict.fromkeys(visuals))
    with closing(decode_visuals(unique, config)) as decoded:
        media = dict(zip(unique, encoder.encode(decoded, timer or StageTimer()), strict=True))
    return [media[visual] for visual in visuals]


@dataclass
class Bound:
    """The arrays of one `bind`."""

    graph: str
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    constant: tuple[str, ...]


class RecordingEngine(HostBackend):
    """Wraps a backend: ``bound`` lists what was bound, ``calls`` counts the runs of each graph."""

    name = "recording"

    def __init__(self, backend) -> None:
        super().__init__(backend.specs)
        self._backend, self.continues_batches = backend, backend.continues_batches
        self.bound: list[Bound] = []
        self.calls: Counter[str] = Counter()

    def bind(self, graph, inputs, outputs, constant=()):
        self.bound.append(Bound(graph, dict(inputs), dict(outputs), tuple(constant)))
        run = self._backend.bind(graph, inputs, outputs, constant)

        def call() -> None:
            self.calls[graph] += 1
            if graph == LANGUAGE_MODEL:
                end = inputs["cache_length"].max() + inputs["input_ids"].shape[1]
                capacity = inputs[past_name(0, "key")].shape[2]
                assert end <= capacity, f"writes up to {end} in a cache of {capacity}"
            run()

        return call

    def of(self, graph: str) -> list[Bound]:
        """All `bind` calls of one graph."""
        return [bound for bound in self.bound if bound.graph == graph]
