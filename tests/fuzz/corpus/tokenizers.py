"""Tokenizers: what makes the library panic, ids beyond the vocabulary, expressions that never end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..kind import Case, Seeds
from ..sandbox import Sandbox

FILE = "tokenizer.json"


def _case(name: str, seed: str, change: Callable[[dict[str, Any]], None], refused: bool | None = True) -> Case:
    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        tree = json.loads(seeds[seed])
        change(tree)
        (sandbox.input / FILE).write_text(json.dumps(tree))

    return Case(name, write, refused)


def _replacing(pattern: str) -> Callable[[dict[str, Any]], None]:
    return lambda tree: tree.update(normalizer={"type": "Replace", "pattern": {"Regex": pattern}, "content": "x"})


def _splitting(pattern: str) -> Callable[[dict[str, Any]], None]:
    return lambda tree: tree.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    )


CASES = (
    _case("unknown token that is in no vocabulary", "words", lambda tree: tree["model"].update(unk_token="<none>")),
    _case("unknown token beyond the pieces", "unigram", lambda tree: tree["model"].update(unk_id=10**6)),
    _case("no unknown token", "unigram", lambda tree: tree["model"].update(unk_id=None), None),
    _case("id beyond the vocabulary", "words", lambda tree: tree["model"]["vocab"].update(a=10**6)),
    _case("added token beyond the vocabulary", "words", lambda tree: tree["added_tokens"].append(
        {**tree["added_tokens"][0], "content": "Output", "id": 2**31}), None),
    _case("two words with one id", "words", lambda tree: tree["model"]["vocab"].update(b=1, c=1), None),
    _case("merge of a piece that is in no vocabulary", "pairs",
          lambda tree: tree["model"]["merges"].append(["zz", "q"])),
    _case("expression that never ends, replaced", "packaged", _replacing("(a|a)*$|(a*)*b"), None),
    _case("expression that never ends, split", "packaged", _splitting("(a+)+c|(a|aa)+$"), None),
    _case("expression of bounded loops", "packaged", _splitting("((a{1,1000}){1,1000}){1,1000}c"), None),
    _case("empty expression", "packaged", _splitting(""), None),
    _case("text replaced by one a thousand times as long", "packaged", lambda tree: tree.update(
        normalizer={"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}] * 3}), None),
    _case("post-processor with a token of no vocabulary", "pairs", lambda tree: tree["post_processor"][
        "special_tokens"]["<bos>"].update(ids=[10**6]), None),
    _case("truncation with a stride beyond its length", "packaged", lambda tree: tree.update(
        truncation={"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}), None),
)
