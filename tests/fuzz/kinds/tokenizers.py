"""``tokenizer.json`` of every model that the tokenizers library has."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from flamingo_rt.config import TokensConfig
from flamingo_rt.processing.tokenizer import TextTokenizer

from ..corpus.tokenizers import CASES, FILE
from ..kind import Kind, Seeds, WrongAnswer
from ..mutators import json_text, raw
from ..sandbox import Sandbox
from .models import packaged_files

TOKENS, VOCABULARY = TokensConfig(), 2048
SPECIAL = [TOKENS.pad, TOKENS.bos, TOKENS.eos, TOKENS.image, TOKENS.end_of_chunk]
TEXTS = ("Output: a red star<|endofchunk|>", "", " ", "é\u202e\U0001f600", "a" * 3000, "a b" * 500,
         "Question: x? Answer:")


def _seeds(folder: Path) -> Seeds:
    words = {word: index for index, word in enumerate(("<unk>", *"abcdefghijklmnopqrstuvwxyz", "Output", ":", "red",
                                                       "##ed"))}
    made = {
        "words": Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        "pieces": Tokenizer(models.WordPiece(words, unk_token="<unk>", max_input_chars_per_word=50)),
        "unigram": Tokenizer(models.Unigram([(word, -float(index)) for word, index in words.items()], 0, False)),
        "pairs": Tokenizer(models.BPE(words | {"ab": 31, "abc": 32}, [("a", "b"), ("ab", "c")], unk_token="<unk>",
                                      fuse_unk=True, byte_fallback=False)),
    }
    made["words"].pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(),
                                                           pre_tokenizers.Punctuation()])
    made["pieces"].normalizer = normalizers.BertNormalizer()
    made["pieces"].pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made["pieces"].decoder = decoders.WordPiece()
    made["unigram"].normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made["unigram"].pre_tokenizer = pre_tokenizers.Metaspace()
    made["unigram"].decoder = decoders.Metaspace()
    made["pairs"].pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\s"), "isolated")
    made["pairs"].post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 34)])
    for tokenizer in made.values():
        tokenizer.add_special_tokens(SPECIAL)
    seeds = {name: tokenizer.to_str().encode() for name, tokenizer in made.items()}
    return {**seeds, "packaged": packaged_files("tokenizer.json")["tokenizer.json"]}


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    text = seeds[rng.choice(sorted(seeds))]
    text = raw.mutate(rng, text) if rng.random() < 0.15 else json_text.mutate(rng, text)
    (sandbox.input / FILE).write_bytes(text)


def _run(sandbox: Sandbox) -> None:
    tokenizer = TextTokenizer(sandbox.input / FILE, TOKENS, VOCABULARY)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        if not all(0 <= token < VOCABULARY for token in ids):
            raise WrongAnswer(f"ids {max(ids)} of a vocabulary of {VOCABULARY}")
        tokenizer.decode(ids)
    tokenizer.decode(list(range(0, VOCABULARY, 7)))


TOKENIZERS = Kind("tokenizers", _seeds, _write, _run, CASES, first=400)
