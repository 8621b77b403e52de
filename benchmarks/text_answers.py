"""Answers of a decoder to questions about scenes that it reads in words, by their kinds: what stage 3 can build on.

    python -m benchmarks.text_answers LANGUAGE … [--results FOLDER]

``LANGUAGE`` is a folder that ``train language`` wrote, or a whole checkpoint. Before a question stand all details of a
held-out scene, as in the documents of stage 2. Prints a line for each folder, and writes a dated result to
``benchmarks/results``. Needs the extra ``train``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.dated_result import RESULTS, write_result
from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.config import PromptsConfig, TokensConfig
from flamingo_rt.errors import FlamingoError
from flamingo_rt.model.language_model import LanguageModel
from flamingo_rt.tokenizer_file import parse_tokenizer
from flamingo_rt.training import scenes
from flamingo_rt.training.towers import folder_kind, read_tower

SCENES, QUESTIONS, SEED = 400, 4, 1
PROMPTS = PromptsConfig()


def open_decoder(folder: Path) -> tuple[LanguageModel, Tokenizer, TokensConfig]:
    """The decoder of a tower or of a whole checkpoint. Raises `DataError` for another folder."""
    if folder_kind(folder) == "flamingo":
        stored = open_checkpoint(folder)
        config, tokens, text, tensors = stored.config.language, stored.config.tokens, stored.tokenizer, stored.tensors
    else:
        tower = read_tower(folder, "language")
        config, tokens, text, tensors = tower.language, tower.tokens, tower.tokenizer or "", tower.tensors
    model = LanguageModel(config).eval()
    model.load_state_dict({name: tensors[f"language.{name}"].to(torch.float32).read() for name in model.state_dict()})
    return model, parse_tokenizer(text.encode(), folder, config.vocab_size), tokens


def asked() -> Iterator[tuple[str, scenes.Question]]:
    """Prompts with their questions, about `SCENES` held-out scenes; about two objects as they are and by place."""
    for index in range(SCENES):
        rng = np.random.default_rng([SEED, index])
        scene = scenes.sample_scene(rng, "heldout")
        for question in scenes.questions(scene, rng, QUESTIONS):
            details = scenes.detailed_caption(scene, order=rng.permutation(len(scene.objects)).tolist())
            for form in (question, question.by_place()) if question.kind == "relation" else (question,):
                yield f"{details}\n{PROMPTS.ask(form.text)}", form


def kind_of(question: scenes.Question) -> str:
    """The question's kind; of those about two objects also the axis, and whether places come first."""
    if question.kind != "relation":
        return question.kind
    axis = "left or right" if re.search("left of|right of", question.text) else "above or below"
    return f"{axis}, by place" if question.text.endswith(", by place?") else axis


@torch.no_grad()
def answer(model: LanguageModel, prompt: list[int], tokens: int) -> list[int]:
    """The most likely token after the prompt, so many times."""
    ids = list(prompt)
    for _ in range(tokens):
        logits = model(torch.tensor([ids]), torch.arange(len(ids))[None])
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def measure(folder: Path) -> dict[str, tuple[int, int]]:
    """Right answers and questions of each kind."""
    model, tokenizer, tokens = open_decoder(folder)
    right: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for text, question in asked():
        prompt = [tokenizer.token_to_id(tokens.bos), *tokenizer.encode(text).ids]
        wanted = tokenizer.encode(PROMPTS.answer_separator + question.answer).ids
        count[kind_of(question)] += 1
        right[kind_of(question)] += answer(model, prompt, len(wanted)) == wanted
    return {kind: (right[kind], count[kind]) for kind in sorted(count)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("language", nargs="+", type=Path, help="a folder of train language, or a checkpoint")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    measured = {}
    for folder in options.language:
        try:
            found = measured[str(folder)] = measure(folder)
        except FlamingoError as error:
            sys.exit(f"error: {error}")
        print(f"{folder}: " + ", ".join(f"{kind} {right} of {count}" for kind, (right, count) in found.items()))
    settings = {"scenes": SCENES, "questions": QUESTIONS, "seed": SEED}
    path = write_result(options.results, "text-answers", settings, measured)
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
