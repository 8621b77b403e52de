"""Few-shot captions of drawn scenes, for measuring speculation: prompts, and the answers that every system decodes.

What guesses gain depends on how often they are right, and a model of random weights does not answer in the words of its
shots. So the answers are given: each step computes everything as ever, then the next token of the caption is made the
likeliest. Prompts and captions are those of the model in the package: true captions of drawn scenes as shots, and its
own greedy answers to the pictures that follow. Scenes are taken in the order in which they are drawn, from a seed that
training does not use; none is chosen.

Its token ids go over one to one, plus `FIRST_ID`, but for the two that mean something to the large model, the picture
and the end of chunk. So a token is a word or a part of one, as in the vocabulary of a trained model; in bytes, which
the random sources' tokenizer has, a word that comes again would be many right guesses. The texts of the cases are these
ids, written as numbers. How often guesses are right is true of these captions, not of others: they are short, and say
what they say in few different words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image
from tokenizers import Tokenizer

import flamingo_rt
from benchmarks.comparison.workload_folder import DESCRIPTION, SEED, shown, write_folder
from flamingo_rt import Image
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import DataError, DependencyError
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.runtime.model import Model

SHOTS = (4, 8)
QUERIES = 12
EACH = max(SHOTS) + 1  # pictures of a query: its own, and its shots'
FIRST_ID = 1000  # the large models have it in common, and the tokens before it are hardly words


def write_captions(config: FlamingoConfig, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder, unless it is there, in the form of `workload`: each case has a ``query`` and an ``answer`` too.
    ``tokenizer`` has OpenFlamingo's tokens added. Raises `DependencyError` without what draws scenes."""
    if (folder / DESCRIPTION).is_file():
        return
    try:
        from flamingo_rt.training import scenes
    except ImportError as error:
        raise DependencyError(f"drawing scenes failed ({error}): pip install 'flamingo-rt[train]'") from error
    size = config.vision.image_size
    drawn = [scenes.sample(SEED, index, "heldout", size) for index in range(EACH * QUERIES)]
    model = flamingo_rt.load()
    ids = {
        getattr(model.tokenizer, f"{name}_id"): tokenizer.token_to_id(getattr(config.tokens, name))
        for name in ("image", "end_of_chunk")
    }
    cases = [
        case(model, drawn[query * EACH : (query + 1) * EACH], shots, query, ids)
        for shots in SHOTS for query in range(QUERIES)
    ]
    write_folder(folder, config, tokenizer, [PIL.Image.fromarray(sample.image) for sample in drawn], cases)


def case(model: Model, drawn: list, shots: int, query: int, special: Mapping[int, int]) -> dict[str, Any]:
    """A prompt about the first of ``drawn`` after ``shots`` others, and the model's answer with its end."""
    images = [Image(sample.image) for sample in drawn]
    parts = model.caption_prompt(images[0], shots=[(images[n], drawn[n].caption) for n in range(1, shots + 1)])
    prompt = [large_id(token, special) for token in build_prompt(parts, model.tokenizer).input_ids.tolist()]
    result = model.generate(parts).result()
    if result.stop_reason != "end_of_chunk":
        raise DataError(f"the packaged model did not end its answer: {result.text!r}")
    answer = [large_id(token, special) for token in (*result.tokens, model.tokenizer.end_of_chunk_id)]
    pictures = [EACH * query + n for n in (*range(1, shots + 1), 0)]
    written = case_parts(prompt, pictures, special[model.tokenizer.image_id])
    return {"shots": shots, "query": query, "parts": written, "input_ids": prompt, "pictures": shown(written),
            "answer": answer, "text": result.text.strip()}


def large_id(token: int, special: Mapping[int, int]) -> int:
    """The large model's token for one of the packaged model's."""
    return special.get(token, FIRST_ID + token)


def case_parts(prompt: list[int], pictures: list[int], image_id: int) -> list[dict[str, Any]]:
    """Pictures by number and token ids as texts, in reading order."""
    found: list[dict[str, Any]] = []
    waiting = iter(pictures)
    for words in re.split(rf"\b({image_id})\b", " ".join(map(str, prompt))):
        if words == str(image_id):
            found.append({"picture": next(waiting)})
        elif words.strip():
            found.append({"text": words.strip()})
    return found
