"""``flamingo-rt infer``."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from flamingo_rt.cli.backend_option import backend_option
from flamingo_rt.cli.shots import shot_options, shot_parts, split_shots
from flamingo_rt.errors import UsageError
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.processing.prompt import Part
    from flamingo_rt.runtime.model import Model, PromptState


@click.command()
@click.option("--image", "images", multiple=True, metavar="FILE", help="A picture to ask about; repeatable.")
@click.option("--video", "videos", multiple=True, metavar="FILE", help="A clip to ask about; repeatable.")
@click.option("--frames", default=8, show_default=True, help="Frames to take from each clip.")
@click.option("--prompt", metavar="TEXT",
              help="Text after the pictures. Default: what the model was taught to caption after, such as 'Output:'.")
@click.option("--question", metavar="TEXT",
              help="A question; sets the prompt to the model's form, such as 'Question: TEXT Answer:'.")
@shot_options(required=False)
@click.option("--prompt-file", metavar="FILE", help="Shots that flamingo-rt prompt compile has read already.")
@click.option("--choices", metavar="A,B,C", help="Rank these answers instead of writing one.")
@click.option("--model", "path", metavar="FOLDER", help="A bundle, or a checkpoint. Default: the model in the package.")
@backend_option
@click.option("--threads", type=click.IntRange(1, 1024), help="Cores for one operator. Default: all.")
@click.option("--spin/--no-spin", default=True, show_default=True,
              help="Let threads that wait for the next operator spin; without, other work gets the cores.")
@click.option("--max-new-tokens", default=64, show_default=True, help="Longest answer.")
@click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest token; more is freer.")
@click.option("--top-k", default=0, show_default=True, help="Draw from the K likeliest tokens; 0 is off.")
@click.option("--top-p", default=1.0, show_default=True, help="Draw from the likeliest tokens that reach P in sum.")
@click.option("--repetition-penalty", default=1.0, show_default=True, help="Above 1: fewer repeated tokens.")
@click.option("--seed", default=0, show_default=True, help="Seed for temperatures above 0.")
@click.option("--beams", default=1, show_default=True,
              help="Answers searched side by side for the likeliest; 1 takes one token after the other.")
@click.option("--length-penalty", default=1.0, show_default=True,
              help="With --beams: above 0 favours longer answers, below 0 shorter ones.")
@click.option("--speculation", type=int,
              help="Most tokens to guess ahead in one step; changes the time of an answer alone. 0 is off.  "
                   "[default: 7, on a GPU 0]")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: text, tokens, timings per stage.")
def command(
    images: tuple[str, ...], videos: tuple[str, ...], frames: int, prompt: str | None, question: str | None,
    shots: tuple[tuple[str, str], ...], task: str | None, prompt_file: str | None, choices: str | None,
    path: str | None, backend: str, threads: int | None, spin: bool, as_json: bool, **generation: Any,
) -> None:
    """Answer a prompt about pictures.

    \b
    Examples:
      flamingo-rt infer --image photo.png
      flamingo-rt infer --image photo.png --question "What color is the star?"
      flamingo-rt infer --image photo.png --question "Is there a red circle?" --choices yes,no
      flamingo-rt infer --shot a.png "Output: a red star" --image b.png
      flamingo-rt infer --task caption --shot a.png "a red star" --image b.png
      flamingo-rt infer --prompt-file shots.prompt --image b.png
      flamingo-rt infer --task vqa --shot a.png "Is it red?|yes" --image b.png --question "Is it a star?"
      flamingo-rt infer --image photo.png --beams 3
    """
    _check_query(task, prompt, question, has_visuals=bool(images or videos))
    examples = split_shots(shots, task)
    from flamingo_rt.loading import load
    from flamingo_rt.processing.media import Image, Video
    from flamingo_rt.runtime.options import GenerationOptions

    options = GenerationOptions(**generation)
    start = time.perf_counter()
    model = load(path, backend, threads, image_cache_bytes=0, spin=spin)  # no picture will come again
    loading = (time.perf_counter() - start) * 1e3
    visuals = [Image(file) for file in images] + [Video(file, frames) for file in videos]
    prefix = model.load_prompt(prompt_file) if prompt_file is not None else None
    parts = shot_parts(model, examples, task)
    if task == "caption":
        parts += model.caption_prompt(visuals)
    elif task == "vqa":
        parts += model.question_prompt(visuals, question)
    else:
        forms = model.config.prompts
        parts += [*visuals, prompt if prompt is not None else forms.ask(question) if question else forms.caption]
    if choices is not None:
        _rank(model, parts, prefix, [choice.strip() for choice in choices.split(",")], loading, as_json)
    else:
        _answer(model, parts, prefix, options, loading, as_json)


def _check_query(task: str | None, prompt: str | None, question: str | None, has_visuals: bool) -> None:
    if question is not None and not question.strip():
        raise UsageError("--question is empty: give a question")
    if task == "caption" and (prompt is not None or question is not None):
        raise UsageError("--task caption takes neither --prompt nor --question: leave them out, or take --task vqa")
    if task == "caption" and not has_visuals:
        raise UsageError("nothing to caption: give --image FILE or --video FILE")
    if task == "vqa" and question is None:
        raise UsageError("--task vqa needs --question TEXT")
    if not (has_visuals or prompt or question):
        raise UsageError("nothing to answer: give --image FILE, --video FILE, --prompt TEXT or --question TEXT")
    if prompt is not None and question is not None:
        raise UsageError("--prompt and --question exclude each other: --question writes the prompt")


def _answer(
    model: Model, parts: list[Part], prefix: PromptState | None, options: Any, loading: float, as_json: bool
) -> None:
    generation = model.generate(parts, prefix=prefix, options=options)
    if not as_json:
        started = False
        for piece in generation:
            # The prompt ends without a space, so the answer begins with one.
            sys.stdout.write(printable(piece if started else piece.lstrip(), lines=True))
            sys.stdout.flush()
            started = started or bool(piece.strip())
        click.echo()
        return
    result = generation.result()
    click.echo(json.dumps({
        "text": result.text.strip(),
        "tokens": list(result.tokens),
        "logprobs": [round(value, 6) for value in result.logprobs],
        "stop_reason": result.stop_reason,
        "prompt_tokens": result.prompt_tokens,
        "steps": result.steps,
        "drafted": result.drafted,
        "accepted": result.accepted,
        "timings_ms": _rounded(loading, result.timings),
        "model": model.config.name,
        "backend": model.engine.name,
    }))


def _rounded(loading: float, timings: dict[str, float]) -> dict[str, float]:
    return {stage: round(value, 3) for stage, value in {"load": loading, **timings}.items()}


def _rank(
    model: Model, parts: list[Part], prefix: PromptState | None, choices: list[str], loading: float, as_json: bool
) -> None:
    scores = model.score(parts, choices, prefix=prefix)
    if as_json:
        click.echo(json.dumps({
            "text": scores[0].text,
            "tokens": list(scores[0].tokens),
            "timings_ms": _rounded(loading, scores[0].timings),
            "choices": [
                {"text": s.text, "logprob": round(s.logprob, 6), "probability": round(s.probability, 6)} for s in scores
            ],
            "model": model.config.name,
            "backend": model.engine.name,
        }))
        return
    texts = [printable(score.text) for score in scores]
    width = max(len(text) for text in texts)
    for text, score in zip(texts, scores, strict=True):
        click.echo(f"{text:<{width}}  {score.probability:6.1%}  log-probability {score.logprob:.3f}")
