"""``flamingo-rt infer``."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flamingo_rt.cli.backend_option import backend_option, threads_option, trust_options
from flamingo_rt.cli.hints import hint_at_missing_picture, hint_at_unlike_picture, hint_at_unlikely_choices
from flamingo_rt.cli.numbers import Number
from flamingo_rt.cli.paths import PATH_TEXT, READ
from flamingo_rt.cli.shot_options import Shots, shot_options, shot_parts, split_shots
from flamingo_rt.errors import UsageError
from flamingo_rt.printable import printable

if TYPE_CHECKING:
    from flamingo_rt.memory_plan import Workload
    from flamingo_rt.processing.visuals import Visual
    from flamingo_rt.runtime.generation import Generation
    from flamingo_rt.runtime.generation_options import GenerationOptions, Score
    from flamingo_rt.runtime.model import Model


@click.command()
@click.option("--image", "images", type=PATH_TEXT, multiple=True, metavar="FILE",
              help="A picture to ask about; repeatable.")
@click.option("--video", "videos", type=PATH_TEXT, multiple=True, metavar="FILE",
              help="A clip to ask about; repeatable.")
@click.option("--frames", type=click.IntRange(1, 1024), help="Frames to take from each clip.  [default: 8]")
@click.option("--fps", type=Number(0, 1000, min_open=True), metavar="RATE",
              help="Take RATE frames a second, up to --frames. Default: --frames, evenly spaced in time.")
@click.option("--prompt", metavar="TEXT",
              help="Text after the pictures. Default: what the model was taught to caption after, such as 'Output:'.")
@click.option("--question", metavar="TEXT",
              help="A question; sets the prompt to the model's form, such as 'Question: TEXT Answer:'.")
@shot_options(required=False)
@click.option("--prompt-file", type=READ, metavar="FILE",
              help="Shots that flamingo-rt prompt compile has read already.")
@click.option("--choices", metavar="A,B,C",
              help="Rank these answers, two or more, separated by commas, instead of writing one.")
@click.option("--normalize-choices", is_flag=True,
              help="Rank by log-probability per token: longer answers are less likely by their length alone.")
@click.option("--model", "path", type=READ, metavar="FOLDER",
              help="A bundle, or a checkpoint. Default: the model in the package.")
@backend_option
@trust_options
@threads_option
@click.option("--spin/--no-spin", default=True, show_default=True,
              help="Let threads that wait for the next operator spin; without, other work gets the cores.")
@click.option("--max-new-tokens", default=64, show_default=True, help="Tokens of the longest answer.")
@click.option("--temperature", default=0.0, show_default=True,
              help="0 takes the likeliest token; higher draws more freely.")
@click.option("--top-k", default=0, show_default=True, help="Draw from the K likeliest tokens; 0 is off.")
@click.option("--top-p", default=1.0, show_default=True,
              help="Draw from the likeliest tokens whose probabilities add up to P.")
@click.option("--repetition-penalty", default=1.0, show_default=True, help="Above 1: fewer repeated tokens.")
@click.option("--seed", default=0, show_default=True, help="Seed for temperatures above 0.")
@click.option("--beams", default=1, show_default=True,
              help="Answers searched side by side for the likeliest; 1 takes one token after the other.")
@click.option("--length-penalty", default=1.0, show_default=True,
              help="With --beams: above 0 favours longer answers, below 0 shorter ones.")
@click.option("--speculation", type=int,
              help="Most tokens to guess ahead in one step; changes only the time an answer takes. 0 is off.  "
                   "[default: 7, on a GPU 0]")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: text, tokens, timings per stage.")
def command(
    images: tuple[str, ...], videos: tuple[str, ...], frames: int | None, fps: float | None, prompt: str | None,
    question: str | None, shots: tuple[tuple[str, str], ...], task: str | None, prompt_file: Path | None,
    choices: str | None, normalize_choices: bool, path: Path | None, backend: str, trust_engines: bool,
    allow_host_code: bool, threads: int | None, spin: bool, as_json: bool, **generation: Any,
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
    for option, value in (("--fps", fps), ("--frames", frames)):
        if value is not None and not videos:
            raise UsageError(f"{option} is for clips: give --video FILE, or leave it out")
    ranked = _split_choices(choices, normalize_choices)
    examples = split_shots(shots, task)
    from flamingo_rt.loading import load
    from flamingo_rt.processing.visuals import Image, Video
    from flamingo_rt.runtime.generation_options import GenerationOptions

    options = GenerationOptions(**generation)
    clips = [Video(file, fps=fps) if frames is None else Video(file, frames, fps) for file in videos]
    visuals: list[Visual] = [*(Image(file) for file in images), *clips]
    start = time.perf_counter()
    model = load(  # one prompt: there is nothing to keep pictures for
        path, backend, threads, image_cache_bytes=0, spin=spin, trust_engines=trust_engines,
        allow_host_code=allow_host_code, workload=_workload(visuals, examples, prompt, question, ranked, options),
    )
    loading = (time.perf_counter() - start) * 1e3
    prefix = model.load_prompt(prompt_file) if prompt_file is not None else None
    if task == "caption":
        query = model.caption_prompt(visuals)
    elif task == "vqa":
        query = model.question_prompt(visuals, question or "")
    else:
        forms = model.config.prompts
        query = [*visuals, prompt if prompt is not None else forms.ask(question) if question else forms.caption]
    parts = [*shot_parts(model, examples, task), *query]
    if ranked is None:
        _show_answer(model, model.generate(parts, prefix=prefix, options=options), loading, as_json)
    else:
        scores = model.score(parts, ranked, prefix=prefix, normalize=normalize_choices)
        _show_scores(model, scores, normalize_choices, loading, as_json)
    if not visuals:
        hint_at_missing_picture(model, str(query[-1]), after_shots=bool(examples) or prefix is not None)


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


def _workload(
    visuals: Sequence[Visual], examples: Shots, prompt: str | None, question: str | None, ranked: list[str] | None,
    options: GenerationOptions,
) -> Workload:
    """The least that the query is, before there is a tokenizer: a token for each word and picture."""
    from flamingo_rt.memory_plan import Workload
    from flamingo_rt.processing.visuals import Video

    texts = [prompt or "", question or "", *(text for _, *texts in examples for text in texts)]
    pictures, answer = len(visuals) + len(examples), 1 if ranked else options.max_new_tokens
    read = max(1, pictures + sum(len(text.split()) for text in texts))
    frames = [visual.frames if isinstance(visual, Video) else 1 for visual in visuals] + [1] * len(examples)
    return Workload(options.beams, pictures, read + answer, answer, min(frames, default=1))


def _split_choices(choices: str | None, normalize: bool) -> list[str] | None:
    if choices is None:
        if normalize:
            raise UsageError("--normalize-choices goes with --choices A,B,C")
        return None
    listed = [choice.strip() for choice in choices.split(",")]
    if len(listed) == 1 and listed[0]:
        raise UsageError(f"--choices {choices!r} is one choice: give two or more, separated by commas, such as yes,no")
    for choice in listed:
        if re.search(r"\S[;|]\S", choice):
            raise UsageError(f"--choices {choice!r} is one choice: separate choices by commas, such as yes,no")
        if choice and listed.count(choice) > 1:
            raise UsageError(f"--choices names {choice!r} {listed.count(choice)} times: give each once")
    return listed


def _show_answer(model: Model, generation: Generation, loading: float, as_json: bool) -> None:
    """Print an answer while it grows, or as JSON; ``loading`` is the time in milliseconds that loading took."""
    if not as_json:
        started = False
        for piece in generation:
            # The prompt ends without a space, so the answer begins with one.
            sys.stdout.write(printable(piece if started else piece.lstrip(), lines=True))
            sys.stdout.flush()
            started = started or bool(piece.strip())
        click.echo()
        hint_at_unlike_picture(model, generation.result())
        return
    result = generation.result()
    click.echo(json.dumps({
        "text": result.text.strip(),
        "tokens": list(result.tokens),
        "logprobs": [round(value, 6) for value in result.logprobs],
        "probability": round(result.probability, 6),
        "unlike_validation": result.unlike_validation,
        "stop_reason": result.stop_reason,
        "prompt_tokens": result.prompt_tokens,
        "steps": result.steps,
        "drafted": result.drafted,
        "accepted": result.accepted,
        "timings_ms": _rounded(loading, result.timings),
        "model": model.config.name,
        "backend": model.backend.name,
    }))
    hint_at_unlike_picture(model, result)


def _rounded(loading: float, timings: dict[str, float]) -> dict[str, float]:
    return {stage: round(value, 3) for stage, value in {"load": loading, **timings}.items()}


def _show_scores(model: Model, scores: Sequence[Score], normalize: bool, loading: float, as_json: bool) -> None:
    """Print the ranked choices as a table or as JSON."""
    if as_json:
        click.echo(json.dumps({
            "text": scores[0].text,
            "tokens": list(scores[0].tokens),
            "timings_ms": _rounded(loading, scores[0].timings),
            "choices": [
                {
                    "text": score.text, "logprob": round(score.logprob, 6),
                    "logprob_per_token": round(score.logprob_per_token, 6), "probability": round(score.probability, 6),
                }
                for score in scores
            ],
            "total_probability": float(f"{scores[0].total_probability:.6g}"),
            "normalized": normalize,
            "model": model.config.name,
            "backend": model.backend.name,
        }))
    else:
        texts = [printable(score.text) for score in scores]
        width = max(len(text) for text in texts)
        for text, score in zip(texts, scores, strict=True):
            each = f" ({score.logprob_per_token:.3f} a token)" if normalize else ""
            click.echo(f"{text:<{width}}  {score.probability:6.1%}  log-probability {score.logprob:.3f}{each}")
    hint_at_unlikely_choices(scores)
