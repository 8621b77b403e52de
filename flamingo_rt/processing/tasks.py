"""Prompts in the form a model was trained on: captions and answers to questions, with examples ("shots") before them.

Each function returns the parts of a prompt. Spaces around a text are dropped: the model's form has its own. All raise
`UsageError` for an empty text, one that holds the image or end-of-chunk token, and a picture that is not an `Image`,
`Video` or `PixelValues`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.processing.prompt import Part
from flamingo_rt.processing.visuals import Visual, how_to_wrap

Visuals = Visual | Sequence[Visual]
SHOWN_PARTS = 6  # parts of a shot named in a message


def caption_shot(config: FlamingoConfig, visuals: Visuals, caption: str) -> list[Part]:
    """An example, with its end of chunk: ``<image>Output: a cat<|endofchunk|>``."""
    return [*_visuals(visuals), config.prompts.caption + _answer(config, "caption", caption)]


def question_shot(config: FlamingoConfig, visuals: Visuals, question: str, answer: str) -> list[Part]:
    """An example, with its end of chunk: ``<image>Question: Is it a cat? Answer: yes<|endofchunk|>``."""
    return [*_visuals(visuals), _question(config, question) + _answer(config, "answer", answer)]


def caption_prompt(
    config: FlamingoConfig, visuals: Visuals, shots: Iterable[tuple[Visuals, str]] = ()
) -> list[Part]:
    """A prompt that asks for the caption of ``visuals``; a shot is (picture, caption)."""
    parts = [part for shot in shots for part in caption_shot(config, *_entries(shot, "picture, caption"))]
    return [*parts, *_visuals(visuals), config.prompts.caption]


def question_prompt(
    config: FlamingoConfig, visuals: Visuals, question: str, shots: Iterable[tuple[Visuals, str, str]] = ()
) -> list[Part]:
    """A prompt that asks ``question`` about ``visuals``, which may be an empty list; a shot is (picture, question,
    answer)."""
    parts = [part for shot in shots for part in question_shot(config, *_entries(shot, "picture, question, answer"))]
    return [*parts, *_visuals(visuals, may_be_empty=True), _question(config, question)]


def asks_for_caption(config: FlamingoConfig, parts: Part | Sequence[Part]) -> bool:
    """Whether a prompt is pictures or clips and the model's text that asks for a caption, without any text (a shot)
    before them."""
    listed = [parts] if isinstance(parts, (str, Visual)) else list(parts)
    count = sum(isinstance(part, Visual) for part in listed)
    begins_with_them = all(isinstance(part, Visual) for part in listed[:count])
    after = "".join(part for part in listed[count:] if isinstance(part, str))
    return count > 0 and begins_with_them and after.strip() == config.prompts.caption.strip()


def asks_about_a_picture(config: FlamingoConfig, text: str) -> bool:
    """Whether a text is the model's request for a caption, or a question in the model's form."""
    before, after = (part.strip() for part in config.prompts.question.split("{}"))
    text = text.strip()
    framed = text.startswith(before) and text.endswith(after) and bool(before or after)
    asked = text[len(before) : len(text) - len(after)].strip()
    return text == config.prompts.caption.strip() or (framed and bool(asked))


def _question(config: FlamingoConfig, question: str) -> str:
    return config.prompts.ask(_checked(config, "question", question))


def _answer(config: FlamingoConfig, name: str, text: str) -> str:
    return config.prompts.answer_separator + _checked(config, name, text) + config.tokens.end_of_chunk


def _checked(config: FlamingoConfig, name: str, text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        shown = repr(text) if isinstance(text, str) else f"of type {type(text).__name__}"  # it may be a whole picture
        raise UsageError(f"the {name} is {shown}: give a text that is not empty")
    for token in (config.tokens.image, config.tokens.end_of_chunk):
        if token in text:
            raise UsageError(f"the {name} {text!r} holds {token}: leave it out, the model's form adds it")
    return text.strip()


def _visuals(visuals: Any, may_be_empty: bool = False) -> list[Visual]:
    listed = list(visuals) if isinstance(visuals, (list, tuple)) else [visuals]
    for visual in listed:
        if not isinstance(visual, Visual):
            raise UsageError(f"the picture is {how_to_wrap(visual)}")
    if not (listed or may_be_empty):
        raise UsageError("there is no picture: give an Image or a Video")
    return listed


def _entries(shot: Any, names: str) -> Sequence[Any]:
    """The parts of a shot. The error names their number and types, not their content: they may be large pictures."""
    if not isinstance(shot, (list, tuple)):
        raise UsageError(f"a shot is of type {type(shot).__name__}: give a tuple ({names})")
    wanted = len(names.split(","))
    if len(shot) != wanted:
        kinds = ", ".join([*(type(part).__name__ for part in shot[:SHOWN_PARTS]), *["…"][: len(shot) > SHOWN_PARTS]])
        raise UsageError(f"a shot has {len(shot)} parts ({kinds}), not {wanted}: give ({names})")
    return shot
