"""Tokenizers that load and then fail, or make ids that the model does not know, are refused when they are loaded."""

import json

import pytest

from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import DataError
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.tokenizer_file import PROBE, explained, open_tokenizer
from flamingo_rt.training.tokenizer_training import train_tokenizer

TOKENS = TokensConfig()
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")


@pytest.fixture(scope="module")
def content():
    return json.loads(train_tokenizer(["a cat and a dog"], 270, TOKENS).to_str())


def load(tmp_path, content, vocab_size=270):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return TextTokenizer(path, TOKENS, vocab_size)


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("pattern", [GPT_2, LLAMA_3])
def test_the_patterns_of_known_models_pass(pattern, content, tmp_path):
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [split(pattern), byte_level]}
    assert load(tmp_path, content | {"pre_tokenizer": steps}).decode([]) == ""


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
def test_a_pattern_that_may_never_end_is_refused_wherever_it_stands(part, content, tmp_path):
    step = split("(a+)+x") if part == "pre_tokenizer" else {
        "type": "Replace", "pattern": {"Regex": "(a+)+x"}, "content": "a"}
    with pytest.raises(DataError, match=r"has the pattern '\(a\+\)\+x', which may take forever"):
        load(tmp_path, content | {part: step})


def test_a_pattern_cannot_hide_behind_escapes(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content | {"pre_tokenizer": split("(a+)+x")}).replace("Regex", r"Reg\u0065x"))
    with pytest.raises(DataError, match="writes letters as"):
        TextTokenizer(path, TOKENS, 270)


def test_a_pattern_with_an_escaped_backslash_hides_nothing(content, tmp_path):
    load(tmp_path, content | {"pre_tokenizer": split(r"[\u0041-\u005A]+")})


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 30}
LIGATURE = {"type": "Replace", "pattern": {"String": " "}, "content": "\ufdfa"}
TEMPLATE = {"type": "TemplateProcessing", "special_tokens": {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}},
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}] * 2000,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]}


@pytest.mark.parametrize(("part", "step", "fault"), [
    ("normalizer", {"type": "Sequence", "normalizers": [REPLACE] * 4}, "can make more than 400 characters of one"),
    ("normalizer", {"type": "Sequence", "normalizers": [LIGATURE, {"type": "NFKC"}] * 9}, "can make more than 400"),
    ("decoder", {"type": "Sequence", "decoders": [REPLACE] * 4}, "its decoder can make more than 400"),
    ("normalizer", {"type": "Prepend", "prepend": "a" * 1000}, "puts 1000 characters before a text"),
    ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}, "has 100 steps"),
    ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "pieces of no length"),
    ("post_processor", TEMPLATE, "puts 2000 tokens around a text"),
])
def test_steps_that_blow_a_text_up_are_refused(part, step, fault, content, tmp_path):
    with pytest.raises(DataError, match=fault):
        load(tmp_path, content | {part: step})


def test_a_token_that_a_template_adds_must_be_in_the_vocabulary(content, tmp_path):
    template = TEMPLATE | {"single": TEMPLATE["single"][:1] + TEMPLATE["pair"][:1],
                           "special_tokens": {"<bos>": {"id": "<bos>", "ids": [999], "tokens": ["<bos>"]}}}
    with pytest.raises(DataError, match="makes the token id 999, which its vocabulary lacks"):
        load(tmp_path, content | {"post_processor": template})


def test_an_id_beyond_the_vocabulary_is_refused_though_there_are_few_tokens(content, tmp_path):
    model = {**content["model"], "vocab": {**content["model"]["vocab"]}}
    last = max(model["vocab"], key=model["vocab"].get)
    model["vocab"][last] = 100_000
    added = [token for token in content["added_tokens"] if token["content"] != last]
    with pytest.raises(DataError, match="token id 100000, the model knows 270"):
        load(tmp_path, content | {"model": model, "added_tokens": added})


def test_a_missing_unknown_token_is_noticed_when_loaded(content, tmp_path):
    vocab = {token["content"]: token["id"] for token in content["added_tokens"]} | {"a": 200}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<gone>"}
    with pytest.raises(DataError, match="fails on a text: WordLevel error"):
        load(tmp_path, content | {"model": model, "pre_tokenizer": {"type": "Whitespace"}})


def test_a_file_that_is_too_long_is_not_read(content, tmp_path, monkeypatch):
    monkeypatch.setattr("flamingo_rt.tokenizer_file.MOST_BYTES", 1000)
    with pytest.raises(DataError, match=r"more than 0.001 MB"):
        load(tmp_path, content)


def test_an_interrupt_is_not_taken_for_a_panic():
    with pytest.raises(KeyboardInterrupt), explained("a", "b"):
        raise KeyboardInterrupt


def test_the_probe_has_many_scripts():
    assert len({ord(character) >> 8 for character in PROBE}) > 12


def test_an_id_that_would_take_memory_is_refused_though_the_model_is_not_known(content, tmp_path):
    vocab = {token["content"]: token["id"] for token in content["added_tokens"]} | {"a": 200, "far": 2**31}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content | {"model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}}))
    with pytest.raises(DataError, match="token id 2147483648, beyond"):
        open_tokenizer(path)
