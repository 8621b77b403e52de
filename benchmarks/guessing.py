"""Steps that guesses save in captions of the packaged model. The rule is the product's, no step is computed.

    python -m benchmarks.guessing [--seed 7] [--queries 12] [--schemes none,int8,mixed,int4] [--costs 1.06,1.12,1.24]

Scenes are drawn from the seed, as for ``compare.py``'s captions (`comparison/captions.py`): the packaged model answers
once, then the answers are decoded again by `flamingo_rt.runtime.speculation` itself, over a decoder that knows what
comes next. The rule reads each scheme's table of step costs; time is counted in steps of one token, by the same table
or by ``--costs``, on a machine where steps of 2, 4 and 8 tokens cost something else. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import flamingo_rt
from benchmarks.comparison.captions import EACH, QUERIES, SHOTS
from flamingo_rt import GenerationOptions, Image
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.runtime.answer import Answer
from flamingo_rt.runtime.generation_options import SPECULATION
from flamingo_rt.runtime.model import Model
from flamingo_rt.runtime.sampling import Sampler
from flamingo_rt.runtime.speculation import DraftLength, PromptLookup, speculate
from flamingo_rt.runtime.timing import Counts, StageTimer
from flamingo_rt.step_costs import StepCosts

OPTIONS = GenerationOptions()
SIZES = (2, 4, 8)  # tokens of a step with guesses
SCHEMES = ("none", "int8", "mixed", "int4")


@dataclass(frozen=True)
class Caption:
    """Token ids of a prompt and its answer; the answer ends with its end token."""

    shots: int
    prompt: list[int]
    answer: list[int]


class KnownAnswer:
    """A decoder of one row whose likeliest token is always the answer's next one. ``time`` counts what its steps cost,
    in steps of one token."""

    def __init__(self, caption: Caption, vocab: int, costs: StepCosts) -> None:
        self._answer, self._vocab, self._costs = caption.answer, vocab, costs
        self._start, self.time = len(caption.prompt), 0.0
        self.lengths = np.array([self._start])

    def after(self, place: int) -> np.ndarray:
        """Logits [vocab] for the answer's token at ``place``."""
        logits = np.zeros(self._vocab, dtype=np.float32)
        logits[self._answer[min(place, len(self._answer) - 1)]] = 9.0
        return logits

    def extend(self, tokens: np.ndarray) -> np.ndarray:
        self.time += self._costs.cost(len(tokens))
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


def replayed(model: Model, captions: list[Caption], table: StepCosts, costs: StepCosts) -> dict[str, Any]:
    """Steps, guesses and time of all captions, decoded one after the other. The rule reads ``table``, steps cost
    ``costs``."""
    total, tokens, time, vocab = Counts(), 0, 0.0, model.config.language.vocab_size
    for caption in captions:
        decoder = KnownAnswer(caption, vocab, costs)
        answer = Answer(model.tokenizer, OPTIONS, OPTIONS.max_new_tokens, "max_new_tokens")
        sampler = Sampler(OPTIONS, vocab, np.array(caption.prompt), 0)
        lookup = PromptLookup(caption.prompt, model.tokenizer.stop_ids)
        length = DraftLength(SPECULATION, table)
        for _ in speculate(decoder, decoder.after(0), answer, sampler, lookup, length, StageTimer(), total):
            pass
        if answer.tokens != caption.answer[:-1]:
            sys.exit(f"the answer {answer.tokens} is not the caption {caption.answer}")
        tokens += len(caption.answer) - 1
        time += decoder.time
    return {
        "captions": len(captions), "tokens": tokens, "steps": total.steps, "drafted": total.drafted,
        "accepted": total.accepted, "time": round(time, 2), "times_as_fast": round(tokens / time, 3),
    }


def costs_of(text: str | None) -> StepCosts | None:
    """The costs of ``--costs``. Raises `ValueError`."""
    if text is None:
        return None
    numbers = [float(cost) for cost in text.split(",")]
    if len(numbers) != len(SIZES):
        raise ValueError(f"{len(numbers)} numbers: give one for each of {SIZES}")
    return StepCosts(tuple(zip(SIZES, numbers, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=7, help="of the scenes; default %(default)s")
    parser.add_argument("--queries", type=int, default=QUERIES, help="pictures to caption; default %(default)s")
    parser.add_argument("--schemes", default="none", help="whose tables the rule reads; default %(default)s")
    parser.add_argument("--costs", help="of steps of 2,4,8 tokens; default: those of the table")
    options = parser.parse_args()
    unknown = set(options.schemes.split(",")) - set(SCHEMES)
    if unknown:
        parser.error(f"--schemes {options.schemes}: {', '.join(sorted(unknown))} unknown; known: {', '.join(SCHEMES)}")
    try:
        costs = costs_of(options.costs)
    except ValueError as error:
        parser.error(f"--costs {options.costs}: {error}")
    model = flamingo_rt.load()
    captions = list(drawn_captions(model, options.seed, options.queries))
    record: dict[str, Any] = {"seed": options.seed, "costs": costs and costs.to_json(), "schemes": {}}
    for scheme in options.schemes.split(","):
        table = StepCosts.of(None if scheme == "none" else scheme)
        found = {
            shots: replayed(model, [caption for caption in captions if caption.shots == shots], table, costs or table)
            for shots in SHOTS
        }
        record["schemes"][scheme] = found
        for shots, each in found.items():
            print(f"{scheme}, {shots} shots: {each['steps']} steps for {each['tokens']} tokens of {each['captions']} "
                  f"captions, {each['accepted']} of {each['drafted']} guesses right, "
                  f"{each['times_as_fast']:.2f} times as fast")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
