"""Limits on a tokenizer's steps: how many there are, and how much they can lengthen a text."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

MOST_STEPS = 64  # steps of one kind; XLNet's normalizer has seven
MOST_GROWTH = 400  # characters made from one
MOST_ADDED = 64  # characters put before a text or a word, tokens put around it
MOST_WORD = 10_000  # characters of a word that WordPiece splits, in a number of steps that grows with their square
# One ligature becomes 18 letters in Unicode's compatibility forms, the most of any character. These forms change
# nothing when they follow each other.
UNICODE_GROWTH = 18
UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "BertNormalizer", "Precompiled", "ByteLevel")
MOST_CHARSMAP_TEXT = 64  # bytes that a sentencepiece map makes from one character; its NFKC map makes 33


def steps_fault(tokenizer: Tokenizer) -> str | None:
    """A description of what exceeds a limit of this module, or None. The tokenizer is not run."""
    for kind in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part = getattr(tokenizer, kind)
        steps = [] if part is None else list(_steps(json.loads(part.__getstate__())))
        if len(steps) > MOST_STEPS:
            return f"its {kind} has {len(steps)} steps, more than {MOST_STEPS}"
        if kind in ("normalizer", "decoder"):
            fault = _growth_fault(steps)
            if fault:
                return f"its {kind} {fault}"
        if any(step.get("type") == "FixedLength" and not step.get("length") for step in steps):
            return f"its {kind} cuts a text into pieces of no length"
    return _model_fault(tokenizer.model) or _template_fault(tokenizer)


def _steps(state: Any) -> Iterator[dict[str, Any]]:
    """Every typed object in the order of the file, without the sequences around them."""
    if isinstance(state, dict):
        if isinstance(state.get("type"), str) and state["type"] != "Sequence":
            yield state
            return
        state = list(state.values())
    if isinstance(state, list):
        for entry in state:
            yield from _steps(entry)


def _growth_fault(steps: list[dict[str, Any]]) -> str | None:
    growth, formed = 1, False
    for step in steps:
        if step["type"] == "Precompiled" and _longest_replacement(step) > MOST_CHARSMAP_TEXT:
            return f"makes more than {MOST_CHARSMAP_TEXT} bytes of one character"
        if step["type"] == "Prepend" and len(step["prepend"]) > MOST_ADDED:
            return f"puts {len(step['prepend'])} characters before a text, more than {MOST_ADDED}"
        if step["type"] in UNICODE_FORMS:
            growth, formed = growth * (1 if formed else UNICODE_GROWTH), True
        elif step["type"] == "Replace":
            replaced = step["pattern"].get("String")
            if replaced == "":
                return "replaces an empty text"
            growth *= max(1, -(-len(step["content"]) // len(replaced or "?")))
            formed = False
        if growth > MOST_GROWTH:
            return f"can make more than {MOST_GROWTH} characters of one"
    return None


def _longest_replacement(step: dict[str, Any]) -> int:
    """Bytes of the longest text in a sentencepiece map: the size of a trie, the trie, and texts that end in NUL."""
    content = base64.b64decode(step["precompiled_charsmap"])
    texts = content[4 + int.from_bytes(content[:4], "little") :]
    return max(map(len, texts.split(b"\0")))


def _model_fault(model: Any) -> str | None:
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        text = getattr(model, name, None) or ""
        if len(text) > MOST_ADDED:
            return f"its {name} has {len(text)} characters, more than {MOST_ADDED}"
    longest = getattr(model, "max_input_chars_per_word", 0)
    return f"it cuts words of up to {longest} characters, more than {MOST_WORD}" if longest > MOST_WORD else None


def _template_fault(tokenizer: Tokenizer) -> str | None:
    added = max(tokenizer.num_special_tokens_to_add(pair) for pair in (False, True))
    return f"it puts {added} tokens around a text, more than {MOST_ADDED}" if added > MOST_ADDED else None
