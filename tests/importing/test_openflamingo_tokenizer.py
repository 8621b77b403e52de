"""OpenFlamingo's tokens join the language model's tokenizer in its order, whatever form its files have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peer_model import WORDS, write_tokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import DataError
from flamingo_rt.importing.openflamingo_tokenizer import END_OF_CHUNK, IMAGE, PAD, read_tokenizer
from flamingo_rt.processing.tokenizer import TextTokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The peers' tokenizer: w0 to w59, w2 ends a text."""
    write_tokenizer(tmp_path)
    return tmp_path


def change(folder: Path, edit) -> None:
    """Write tokenizer.json again after ``edit``."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    edit(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))


def say(folder: Path, name: str = "tokenizer_config.json", **content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def ids(tokenizer: Tokenizer, *texts: str) -> list[int | None]:
    return [tokenizer.token_to_id(text) for text in texts]


# The tokens that are added


def test_tokens_are_added_in_openflamingos_order(folder: Path) -> None:
    tokenizer, tokens = read_tokenizer(folder, None)
    assert tokens == TokensConfig(IMAGE, END_OF_CHUNK, "", "w2", PAD)
    assert ids(tokenizer, END_OF_CHUNK, IMAGE, PAD) == [WORDS, WORDS + 1, WORDS + 2]
    assert tokenizer.get_vocab_size() == WORDS + 3


def test_tokens_that_are_there_keep_their_ids(folder: Path) -> None:
    change(folder, lambda tokenizer: tokenizer.add_special_tokens([PAD, IMAGE]))
    tokenizer, tokens = read_tokenizer(folder, None)
    assert ids(tokenizer, PAD, IMAGE, END_OF_CHUNK) == [WORDS, WORDS + 1, WORDS + 2]
    assert (tokens.pad, tokenizer.get_vocab_size()) == (PAD, WORDS + 3)


def test_a_padding_token_of_the_language_model_is_kept(folder: Path) -> None:
    say(folder, eos_token="w2", pad_token="w1")
    tokenizer, tokens = read_tokenizer(folder, None)
    assert tokens.pad == "w1"
    assert ids(tokenizer, "w1", END_OF_CHUNK, IMAGE, PAD) == [1, WORDS, WORDS + 1, None]


def test_a_padding_token_that_only_the_configuration_has_comes_before_the_others(folder: Path) -> None:
    say(folder, eos_token="w2", pad_token="[PAD]")  # the transformers library gives it 60 too, while it loads
    tokenizer, tokens = read_tokenizer(folder, None)
    assert tokens.pad == "[PAD]"
    assert ids(tokenizer, "[PAD]", END_OF_CHUNK, IMAGE) == [WORDS, WORDS + 1, WORDS + 2]


def test_special_tokens_are_found_in_a_text_and_no_space_is_taken_with_them(tmp_path: Path) -> None:
    letters = ["a", " ", "<", "|", ">"]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    say(tmp_path, eos_token="a")
    tokenizer, tokens = read_tokenizer(tmp_path, None)
    image, chunk = ids(tokenizer, IMAGE, END_OF_CHUNK)
    assert tokenizer.encode("a <image> a<|endofchunk|> a").ids == [0, 1, image, 1, 0, chunk, 1, 0]
    assert tokenizer.decode([0, 1, image, 1, 0], skip_special_tokens=True).count("image") == 0
    tokenizer.save(str(tmp_path / "imported.json"))
    text = TextTokenizer(tmp_path / "imported.json", tokens, 8)  # read as the runtime reads it
    assert (text.image_id, text.end_of_chunk_id, text.stop_ids) == (image, chunk, frozenset({0, chunk}))


def test_a_special_token_of_the_file_keeps_what_the_file_says_of_it(folder: Path) -> None:
    change(folder, lambda tokenizer: tokenizer.add_special_tokens([AddedToken("w2", lstrip=True, normalized=True)]))
    tokenizer, _ = read_tokenizer(folder, None)
    token = tokenizer.get_added_tokens_decoder()[2]
    assert (token.content, token.lstrip, token.normalized, token.special) == ("w2", True, True, True)


def test_padding_and_truncation_that_the_file_asks_for_are_switched_off(folder: Path) -> None:
    def edit(tokenizer: Tokenizer) -> None:
        tokenizer.enable_truncation(2)
        tokenizer.enable_padding(length=9, pad_id=1, pad_token="w1")

    change(folder, edit)
    assert len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode("w3 w4 w5").ids) == 9
    tokenizer, _ = read_tokenizer(folder, None)
    assert tokenizer.encode("w3 w4 w5").ids == [3, 4, 5]
    saved = json.loads(tokenizer.to_str())
    assert (saved["padding"], saved["truncation"]) == (None, None)


# End of text


@pytest.mark.parametrize("value", ["w7", {"content": "w7", "lstrip": False, "__type": "AddedToken"}])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_the_end_of_text_is_what_the_tokenizers_files_say(folder: Path, name: str, value: object) -> None:
    (folder / "tokenizer_config.json").unlink()
    say(folder, name, eos_token=value)
    assert read_tokenizer(folder, 5)[1].eos == "w7"


def test_tokenizer_config_goes_before_the_map_unless_it_is_null(folder: Path) -> None:
    say(folder, "special_tokens_map.json", eos_token="w7", pad_token="w8")
    say(folder, eos_token="w9", pad_token=None)
    tokens = read_tokenizer(folder, None)[1]
    assert (tokens.eos, tokens.pad) == ("w9", "w8")


@pytest.mark.parametrize("content", [None, {}, {"eos_token": None}, {"eos_token": ""}, {"eos_token": 3}, []])
def test_the_end_of_text_is_the_models_where_no_file_says_it(folder: Path, content: object) -> None:
    (folder / "tokenizer_config.json").unlink()
    if content is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(content))
    assert read_tokenizer(folder, 5)[1].eos == "w5"


@pytest.mark.parametrize("eos_id", [None, 999, 2**40])
def test_a_text_without_an_end_is_an_error(folder: Path, eos_id: int | None) -> None:
    say(folder, model_max_length=5)
    with pytest.raises(DataError, match=f"{folder} does not say which token ends a text.*eos_token"):
        read_tokenizer(folder, eos_id)


def test_an_end_of_text_that_the_tokenizer_lacks_is_named(folder: Path) -> None:
    say(folder, eos_token="</s>")
    with pytest.raises(DataError, match=f"{folder}: .*'</s>'"):
        read_tokenizer(folder, 2)


# Beginning of text


@pytest.mark.parametrize(
    ("single", "expected"),
    [("w4 $A", "w4"), ("w4 $A w2", "w4"), ("$A w2", ""), ("$A", "")],
)
def test_the_beginning_of_text_is_what_the_tokenizer_puts_first(folder: Path, single: str, expected: str) -> None:
    def edit(tokenizer: Tokenizer) -> None:
        tokenizer.post_processor = processors.TemplateProcessing(single, special_tokens=[("w4", 4), ("w2", 2)])

    change(folder, edit)
    assert read_tokenizer(folder, None)[1].bos == expected


@pytest.mark.parametrize(("asked", "expected"), [(False, ""), (True, "w4"), (None, "w4")])
def test_a_configuration_that_asks_for_no_beginning_counts_before_the_tokenizer(
    folder: Path, asked: bool | None, expected: str
) -> None:
    def edit(tokenizer: Tokenizer) -> None:
        tokenizer.post_processor = processors.TemplateProcessing("w4 $A", special_tokens=[("w4", 4)])

    change(folder, edit)
    say(folder, eos_token="w2", add_bos_token=asked)
    assert read_tokenizer(folder, None)[1].bos == expected


@pytest.mark.parametrize("asked", [{}, {"add_bos_token": False}, {"add_bos_token": None}, {"add_bos_token": "true"}])
def test_a_named_beginning_that_the_tokenizer_does_not_put_first_is_none(folder: Path, asked: dict) -> None:
    say(folder, eos_token="w2", bos_token="w4", **asked)
    assert read_tokenizer(folder, None)[1].bos == ""


@pytest.mark.parametrize(("bos", "expected"), [("w4", "w4"), ({"content": "w4"}, "w4"), ("<s>", ""), (None, "")])
def test_a_beginning_that_the_configuration_asks_for_needs_no_post_processor(
    folder: Path, bos: object, expected: str
) -> None:
    say(folder, eos_token="w2", bos_token=bos, add_bos_token=True)
    assert read_tokenizer(folder, None)[1].bos == expected


# Forms of files


def byte_level(folder: Path, **config: object) -> Path:
    """OPT's form: a vocabulary of bytes, one merge, and </s> second."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", *alphabet, "ab"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    say(folder, eos_token={"content": "</s>"}, bos_token={"content": "</s>"}, pad_token={"content": "<pad>"}, **config)
    return folder


@pytest.mark.parametrize("add", [True, False])
def test_a_vocabulary_with_merges_is_read(tmp_path: Path, add: bool) -> None:
    tokenizer, tokens = read_tokenizer(byte_level(tmp_path, add_bos_token=add), None)
    assert tokens == TokensConfig(IMAGE, END_OF_CHUNK, "</s>" if add else "", "</s>", "<pad>")
    assert ids(tokenizer, "<pad>", "</s>", END_OF_CHUNK, IMAGE) == [0, 1, 259, 260]
    merged, letter, space = ids(tokenizer, "ab", "c", "Ġ")
    found = tokenizer.encode("ab c<image>").ids
    assert found == ([1] if add else []) + [merged, space, letter, 260]
    assert tokenizer.decode(tokenizer.encode("ab é 猫", add_special_tokens=False).ids) == "ab é 猫"


def test_the_named_tokens_of_a_vocabulary_with_merges_are_found_whole(tmp_path: Path) -> None:
    byte_level(tmp_path)
    tokenizer, tokens = read_tokenizer(tmp_path, None)
    merged, letter = ids(tokenizer, "ab", "c")
    assert tokenizer.encode("ab</s>c<pad>").ids == [merged, 1, letter, 0]
    assert tokenizer.decode([merged, 1, letter, 0], skip_special_tokens=True) == "abc"
    assert tokenizer.get_vocab_size() == 261  # none was added twice
    tokenizer.save(str(tmp_path / "imported.json"))
    text = TextTokenizer(tmp_path / "imported.json", tokens, 261)
    assert text.stop_ids == frozenset({1, 259})


def test_a_folder_goes_by_its_tokenizer_json_when_it_has_both(folder: Path) -> None:
    config = (folder / "tokenizer_config.json").read_text()
    byte_level(folder)
    (folder / "tokenizer_config.json").write_text(config)
    assert read_tokenizer(folder, None)[0].encode("w3 w4").ids == [3, 4]


def test_the_file_itself_may_be_given(folder: Path) -> None:
    tokenizer, tokens = read_tokenizer(folder / "tokenizer.json", None)
    assert (tokenizer.encode("w3").ids, tokens.eos) == ([3], "w2")


def test_a_sentencepiece_model_alone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(DataError, match=r"tokenizer.model is there.*save_pretrained.*tokenizer.json"):
        read_tokenizer(tmp_path, 2)
    with pytest.raises(DataError, match=r"tokenizer\.model is not a tokenizer\.json.*save_pretrained"):
        read_tokenizer(tmp_path / "tokenizer.model", 2)


@pytest.mark.parametrize("left", [None, "vocab.json", "merges.txt"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, left: str | None) -> None:
    byte_level(tmp_path)
    for name in {"vocab.json", "merges.txt"} - {left}:
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{tmp_path} holds no tokenizer.json.*--tokenizer") as caught:
        read_tokenizer(tmp_path, 2)
    assert "tokenizer.model" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff\xfe", b'{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_json_is_named(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=f"cannot read {folder / 'tokenizer.json'}"):
        read_tokenizer(folder, 2)


def test_a_cut_tokenizer_json_is_named(folder: Path) -> None:
    whole = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"cannot read {folder / 'tokenizer.json'}.*damaged"):
        read_tokenizer(folder, 2)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_damaged_byte_pairs_are_named(tmp_path: Path, name: str) -> None:
    byte_level(tmp_path)
    (tmp_path / name).write_bytes(b"{not json" if name == "vocab.json" else b"a b\nno such pair\n")
    with pytest.raises(DataError, match=f"cannot read {tmp_path / 'vocab.json'} with merges.txt"):
        read_tokenizer(tmp_path, 2)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_damaged_configuration_of_the_tokenizer_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    with pytest.raises(DataError, match=str(folder / name)):
        read_tokenizer(folder, 2)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_vocabulary_with_merges_beyond_measure_is_refused_unread(tmp_path: Path, name: str) -> None:
    for other in ("vocab.json", "merges.txt"):
        (tmp_path / other).write_text("{}")
    with (tmp_path / name).open("r+b") as file:
        file.truncate(3_000_000_000)  # a hole: it takes no space
    with pytest.raises(DataError, match=f"{name} has more than 100 MB"):
        read_tokenizer(tmp_path, None)
