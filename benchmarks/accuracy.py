"""How often is a model right about drawn scenes it has not seen?

    python -m benchmarks.accuracy [--model BUNDLE] [--backend ort] [--scenes 300]

Scenes come from a seed that training does not use, digits from samples that training does not see. A caption is right
when it names colour and shape of every object and nothing else. The last line is JSON.
"""

from __future__ import annotations

import json

import click

from flamingo_rt import load
from flamingo_rt.evaluation.scene_accuracy import scene_accuracy


@click.command()
@click.option("--model", "path", help="A bundle or a checkpoint. Default: the model in the package.")
@click.option("--backend", default="auto", show_default=True)
@click.option("--scenes", "count", default=300, show_default=True)
@click.option("--questions", "questions_per_scene", default=4, show_default=True)
def main(path: str | None, backend: str, count: int, questions_per_scene: int) -> None:
    """Print the share of right captions and answers."""
    model = load(path, backend)
    accuracy = scene_accuracy(model, count, questions_per_scene)
    for name, kinds, share in (
        ("captions", accuracy.captions, accuracy.caption_share),
        ("questions", accuracy.questions, accuracy.question_share),
    ):
        rights = [right for kind in kinds.values() for right in kind]
        print(f"{name}: {sum(rights)}/{len(rights)} right ({share:.1%})")
        for kind, goods in sorted(kinds.items()):
            print(f"  {kind:<12} {sum(goods)}/{len(goods)} ({sum(goods) / len(goods):.1%})")
    print(json.dumps({
        "model": model.config.name,
        "backend": model.backend.name,
        "scenes": count,
        "caption_accuracy": round(accuracy.caption_share, 4),
        "questions": sum(map(len, accuracy.questions.values())),
        "question_accuracy": round(accuracy.question_share, 4),
    }))


if __name__ == "__main__":
    main()
