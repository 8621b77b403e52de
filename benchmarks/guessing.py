"""How many steps do guesses save, in captions of the packaged model? Decided as ever, but no step is computed.

    python -m benchmarks.guessing [--seed 7] [--queries 24] [--costs 1,1.06,1.12,1.24]

Scenes are drawn from the seed, as for ``compare.py``'s captions (`comparison/captions.py`): the packaged model answers
once, then the answers are decoded again and again by `flamingo_rt.runtime.speculation` itself, over a decoder that says
what comes next and a clock that a step of 1, 2, 4 or 8 tokens moves by ``--costs``. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

import flamingo_rt
from benchmarks.comparison.captions import EACH, QUERIES, SHOTS
from flamingo_rt import GenerationOptions, Image
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.runtime import speculation
from flamingo_rt.runtime.answer import Answer
from flamingo_rt.runtime.draft_length import StepCosts
from flamingo_rt.runtime.generation_options import SPECULATION
from flamingo_rt.runtime.model import Model
from flamingo_rt.runtime.sampling import Sampler
from flamingo_rt.runtime.timing import Counts, StageTimer

OPTIONS = GenerationOptions()
SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Caption:
    """A prompt's and its answer's token ids; the answer ends with its end token."""

    shots: int
    prompt: list[int]
    answer: list[int]


class Clock:
    """Seconds that pass in steps alone: ``costs`` of steps of `SIZES` tokens."""

    def __init__(self, costs: list[float]) -> None:
        self._costs, self.now = dict(zip(SIZES, costs, strict=True)), 0.0

    def step(self, size: int) -> None:
        self.now += self._costs[size]

    def perf_counter(self) -> float:
        return self.now


class KnownAnswer:
    """A decoder of one row whose likeliest token is always the answer's next one."""

    def __init__(self, caption: Caption, vocab: int, clock: Clock) -> None:
        self._answer, self._vocab, self._clock = caption.answer, vocab, clock
        self._start = len(caption.prompt)
        self.lengths = np.array([self._start])

    def after(self, place: int) -> np.ndarray:
        """Logits [vocab] for the answer's token at ``place``."""
        logits = np.zeros(self._vocab, dtype=np.float32)
        logits[self._answer[min(place, len(self._answer) - 1)]] = 9.0
        return logits

    def extend(self, tokens: np.ndarray) -> np.ndarray:
        self._clock.step(len(tokens))
        place = int(self.lengths[0]) - self._start
        self.lengths += len(tokens)
        return np.stack([self.after(place + taken) for taken in range(1, len(tokens) + 1)])

    def rewind(self, length: int) -> None:
        self.lengths[0] = length


def drawn_captions(model: Model, seed: int, queries: int) -> Iterator[Caption]:
    """The model's captions of drawn scenes; those that do not end by themselves are left out."""
    from flamingo_rt.training import scenes

    size = model.config.vision.image_size
    for query in range(queries):
        drawn = [scenes.sample(seed, EACH * query + n, "heldout", size) for n in range(EACH)]
        images = [Image(sample.image) for sample in drawn]
        for shots in SHOTS:
            parts = model.caption_prompt(images[0], shots=[(images[n], drawn[n].caption) for n in range(1, shots + 1)])
            result = model.generate(parts).result()
            if result.stop_reason == "end_of_chunk":
                prompt = build_prompt(parts, model.tokenizer).input_ids.tolist()
                yield Caption(shots, prompt, [*result.tokens, model.tokenizer.end_of_chunk_id])


def replayed(model: Model, captions: list[Caption], costs: list[float]) -> dict[str, Any]:
    """What decoding all of them one after the other takes, in steps of one token."""
    clock, step_costs, total = Clock(costs), StepCosts(), Counts()
    speculation.time = SimpleNamespace(perf_counter=clock.perf_counter)
    gaps = 0
    for caption in captions:
        decoder = KnownAnswer(caption, model.config.language.vocab_size, clock)
        answer = Answer(model.tokenizer, OPTIONS, OPTIONS.max_new_tokens, "max_new_tokens")
        sampler = Sampler(OPTIONS, model.config.language.vocab_size, np.array(caption.prompt), 0)
        lookup = speculation.PromptLookup(caption.prompt, model.tokenizer.stop_ids)
        for _ in speculation.speculate(
            decoder, decoder.after(0), answer, sampler, lookup, SPECULATION, step_costs, StageTimer(), total
        ):
            pass
        if answer.tokens != caption.answer[:-1]:
            sys.exit(f"the answer {answer.tokens} is not the caption {caption.answer}")
        gaps += len(caption.answer) - 1
    return {
        "captions": len(captions), "tokens": gaps, "steps": total.steps, "drafted": total.drafted,
        "accepted": total.accepted, "time": round(clock.now, 2), "times_as_fast": round(gaps / clock.now, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=7, help="of the scenes; default %(default)s")
    parser.add_argument("--queries", type=int, default=QUERIES, help="pictures to caption; default %(default)s")
    parser.add_argument("--costs", default="1,1.06,1.12,1.24", help="of steps of 1,2,4,8 tokens; default %(default)s")
    options = parser.parse_args()
    costs = [float(cost) for cost in options.costs.split(",")]
    if len(costs) != len(SIZES):
        sys.exit(f"--costs {options.costs} has {len(costs)} numbers: give one for each of {SIZES}")
    model = flamingo_rt.load()
    captions = list(drawn_captions(model, options.seed, options.queries))
    record = {"seed": options.seed, "costs": costs, "shots": {}}
    for shots in SHOTS:
        found = replayed(model, [caption for caption in captions if caption.shots == shots], costs)
        record["shots"][shots] = found
        print(f"{shots} shots: {found['steps']} steps for {found['tokens']} tokens of {found['captions']} captions, "
              f"{found['accepted']} of {found['drafted']} guesses right, {found['times_as_fast']:.2f} times as fast")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
