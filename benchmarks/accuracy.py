"""How often is a model right about drawn scenes it has not seen?

    python benchmarks/accuracy.py [--model BUNDLE] [--backend ort] [--scenes 300]

Scenes come from a seed that training does not use, digits from samples that training does not see. A caption is right
when it names colour and shape of every object and nothing else. The last line is JSON.
"""

from __future__ import annotations

import json
from collections import Counter

import click
import numpy as np

from flamingo_rt import Image, load
from flamingo_rt.training import scenes

SEED = 20_261_123
BATCH = 16


@click.command()
@click.option("--model", "path", help="A bundle or a checkpoint. Default: the model in the package.")
@click.option("--backend", default="auto", show_default=True)
@click.option("--scenes", "count", default=300, show_default=True)
@click.option("--questions", "questions_per_scene", default=4, show_default=True)
def main(path: str | None, backend: str, count: int, questions_per_scene: int) -> None:
    """Print the share of right captions and answers."""
    model = load(path, backend)
    prompts = model.config.prompts
    samples = [scenes.sample(SEED, index, "heldout") for index in range(count)]
    images = [Image(sample.image) for sample in samples]
    captions = _answers(model, [[image, prompts.caption] for image in images])
    right = [scenes.caption_is_right(s.scene, c) for s, c in zip(samples, captions, strict=True)]
    print(f"captions: {sum(right)}/{count} right ({sum(right) / count:.1%})")
    by_objects: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for sample, good in zip(samples, right, strict=True):
        kind = "digit" if sample.scene.objects[0].is_digit else f"{len(sample.scene.objects)} object(s)"
        totals[kind] += 1
        by_objects[kind] += good
    for kind in sorted(totals):
        print(f"  {kind:<12} {by_objects[kind]}/{totals[kind]}")

    rng = np.random.default_rng(SEED)
    asked = [(i, q) for i, s in enumerate(samples) for q in scenes.questions(s.scene, rng, questions_per_scene)]
    answers = _answers(model, [[images[i], prompts.ask(question.text)] for i, question in asked])
    kinds: dict[str, list[bool]] = {}
    for (_, question), answer in zip(asked, answers, strict=True):
        kinds.setdefault(question.kind, []).append(scenes.answer_is_right(question, answer))
    all_right = [good for goods in kinds.values() for good in goods]
    print(f"questions: {sum(all_right)}/{len(all_right)} right ({np.mean(all_right):.1%})")
    for kind, goods in sorted(kinds.items()):
        print(f"  {kind:<12} {sum(goods)}/{len(goods)} ({np.mean(goods):.1%})")
    print(json.dumps({
        "model": model.config.name,
        "backend": model.engine.name,
        "scenes": count,
        "caption_accuracy": round(sum(right) / count, 4),
        "questions": len(all_right),
        "question_accuracy": round(float(np.mean(all_right)), 4),
    }))


def _answers(model: object, prompts: list) -> list[str]:
    texts = []
    for start in range(0, len(prompts), BATCH):
        results = model.generate_batch(prompts[start : start + BATCH], max_new_tokens=40)
        texts += [result.text.strip() for result in results]
    return texts


if __name__ == "__main__":
    main()
