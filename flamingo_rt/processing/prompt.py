"""From pictures, clips and text, interleaved, to token ids and phi (paper §3.1.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from flamingo_rt.errors import UsageError
from flamingo_rt.processing.media import Image, Video
from flamingo_rt.processing.tokenizer import TextTokenizer

Part = str | Image | Video

# The forms of the paper (§B.1): what the packaged model was trained on and what the command line asks with.
CAPTION_PROMPT = "Output:"
QUESTION_PROMPT = "Question: {} Answer:"


@dataclass(frozen=True)
class Prompt:
    """One row. input_ids and media_index: int64 [T]; media_index counts this prompt's own visuals up to each token."""

    input_ids: np.ndarray
    media_index: np.ndarray
    visuals: tuple[Image | Video, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


def build_prompt(parts: Part | Sequence[Part], tokenizer: TextTokenizer, *, start: bool = True) -> Prompt:
    """Tokenize a prompt; each visual becomes one ``<image>`` token. ``start`` puts the beginning-of-text token first.

    Raises `UsageError` for an empty prompt, a part of another type, or an ``<image>`` written in a text.
    """
    ids: list[int] = [tokenizer.bos_id] if start and tokenizer.bos_id is not None else []
    opening = len(ids)
    phi, visuals = [0] * opening, []
    for part in [parts] if isinstance(parts, str) or not isinstance(parts, Iterable) else parts:
        if isinstance(part, (Image, Video)):
            visuals.append(part)
            new = [tokenizer.image_id]
        elif isinstance(part, str):
            if tokenizer.tokens.image in part:
                raise UsageError(f"the text {part!r} holds {tokenizer.tokens.image}: give the picture itself instead")
            new = tokenizer.encode(part)
        else:
            kind = type(part).__name__
            raise UsageError(f"a prompt holds str, Image and Video, not {kind}: wrap a path in Image(...)")
        ids += new
        phi += [len(visuals)] * len(new)
    if len(ids) == opening:
        raise UsageError("the prompt is empty: give a text, a picture or both")
    return Prompt(np.array(ids, dtype=np.int64), np.array(phi, dtype=np.int64), tuple(visuals))
