"""From interleaved pictures, clips and text to token ids and the media index (phi in the paper, §3.1.3)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image

from flamingo_rt.errors import UsageError
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.processing.visuals import Visual, how_to_wrap, is_array, names_a_file

Part = str | Visual


@dataclass(frozen=True)
class Prompt:
    """One row. input_ids and media_index: int64 [T]; media_index counts this prompt's own visuals up to each token."""

    input_ids: np.ndarray
    media_index: np.ndarray
    visuals: tuple[Visual, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


def build_prompt(
    parts: Part | Sequence[Part], tokenizer: TextTokenizer, *, start: bool = True, continuation: str = ""
) -> Prompt:
    """Tokenize a prompt; each visual becomes one ``<image>`` token. ``start`` puts the beginning-of-text token first.
    ``continuation`` is text after the prompt's parts, such as an answer; it may be the name of a file.

    The prompt is one text, as in training: visuals stand in it as the image token's text, neighbouring texts are joined
    without a separator (and may share tokens), and all of it is tokenized at once. A tokenizer may mark the beginning
    of a text, as LLaMA's does, so parts tokenized one by one could give other tokens. A prompt that continues a prefix
    is a text of its own.

    Raises `UsageError` for an empty prompt, a part of another type, an ``<image>`` written in a text, or a text that is
    the path of a picture or clip (`names_a_file`).
    """
    alone = isinstance(parts, (str, bytes, os.PathLike, PIL.Image.Image)) or is_array(parts)
    visuals, pieces = [], [""]  # a text before, between and after the visuals
    for part in [parts] if alone or not isinstance(parts, Iterable) else parts:
        if isinstance(part, Visual):
            visuals.append(part)
            pieces.append("")
        elif not isinstance(part, str):
            raise UsageError(f"a prompt holds str, Image, Video and PixelValues, not {how_to_wrap(part)}")
        elif names_a_file(part):
            raise UsageError(f"a text of the prompt is {how_to_wrap(part)}, on the command line --image or --video; "
                             "a path that is meant as text goes into the text beside it")
        else:
            pieces[-1] += part
    pieces[-1] += continuation
    image = tokenizer.tokens.image
    for piece in pieces:
        if image in piece:
            raise UsageError(f"the text {piece!r} holds {image}: give the picture itself instead")
    text = image.join(pieces)
    ids = np.array(tokenizer.encode(text) if text else [], dtype=np.int64)
    if not len(ids):
        raise UsageError("the prompt is empty: give a text, a picture or both")
    if start and tokenizer.bos_id is not None:
        ids = np.insert(ids, 0, tokenizer.bos_id)
    media_index = np.cumsum(ids == tokenizer.image_id, dtype=np.int64)
    if media_index[-1] != len(visuals):  # a tokenizer that normalises its text finds the token in other spellings too
        raise UsageError(f"a text of the prompt is read as {image} by the tokenizer: give the picture itself instead")
    return Prompt(ids, media_index, tuple(visuals))


def continuation_ids(
    parts: Part | Sequence[Part], text: str, tokenizer: TextTokenizer, *, start: bool = True
) -> np.ndarray:
    """Token ids int64 [T] of a text that continues a prompt: those after the prompt's own when both are tokenized
    together. Where joining the text changes the prompt's last token, they are the ids of the text alone."""
    before = build_prompt(parts, tokenizer, start=start).input_ids
    whole = build_prompt(parts, tokenizer, start=start, continuation=text).input_ids
    if len(whole) > len(before) and np.array_equal(whole[: len(before)], before):
        return whole[len(before) :]
    return np.array(tokenizer.encode(text), dtype=np.int64)
