"""LLaMAs in GGUF files: transformers' logits, llama.cpp's token ids, and refusals that name file and cause."""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer, pre_tokenizers

from flamingo_rt.errors import DataError
from flamingo_rt.importing import gguf_tokenizer
from flamingo_rt.importing.gguf import NEUTRAL
from flamingo_rt.importing.gguf_tokenizer import read_gguf_tokenizer
from flamingo_rt.model.language_model import LanguageModel
from flamingo_rt.training.parts import LanguagePart, open_language_part
from flamingo_rt.weights import gguf_files
from flamingo_rt.weights.gguf_files import GgufFile, is_gguf, open_gguf

FIXTURES = Path(__file__).parent.parent / "fixtures" / "gguf"
NAMES = ("bytes", "pieces")
BYTES = FIXTURES / "bytes.gguf"
SAVED = json.loads((FIXTURES / "token_ids.json").read_text(encoding="utf-8"))
PRE = sorted(SAVED["ids"].keys() - {"pieces"})


def model_of(part: LanguagePart) -> LanguageModel:
    model = LanguageModel(part.config).eval()
    model.load_state_dict({name.removeprefix("language."): tensor.read() for name, tensor in part.tensors.items()})
    return model


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_language_part(path)
    return str(caught.value)


@pytest.fixture
def file() -> GgufFile:
    return open_gguf(BYTES)


def rewritten(path: Path, changes: dict[str, object], tensors: dict[str, np.ndarray] | None = None) -> Path:
    """The model with the byte-level tokenizer, with other metadata (None: without it) and more tensors."""
    writer = gguf.GGUFWriter(path, str(changes.pop("general.architecture", "llama")))
    found = open_gguf(BYTES)
    for key, value in (dict(found.metadata) | changes).items():
        if key == "general.architecture" or value is None:
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value.tolist() if isinstance(value, np.ndarray) else value)
    values = {name: tensor.read().numpy() for name, tensor in found.tensors.items()}
    for name, array in (values | (tensors or {})).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# The values


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name: str) -> None:
    expected = torch.from_numpy(np.load(FIXTURES / "logits.npz")[name])
    part = open_language_part(FIXTURES / f"{name}.gguf")
    assert part.config.kv_heads < part.config.heads
    assert part.config.tied_head == (name == "bytes")
    ids = torch.arange(0, 480, 37)[None]
    with torch.no_grad():
        logits = model_of(part)(ids, torch.arange(ids.shape[1])[None])[0]
    assert expected.std() > 0.3
    torch.testing.assert_close(logits[:, : expected.shape[1]], expected, atol=1e-4, rtol=0)


def test_the_rows_of_known_tokens_are_the_files_and_new_ones_near_the_mean(file: GgufFile) -> None:
    part = open_language_part(BYTES)
    table, stored = part.tensors["language.embedding.weight"].read(), file.tensors["token_embd.weight"].read()
    assert torch.equal(table[: len(stored)], stored)
    new = [part.tokenizer.token_to_id(text) for text in (part.tokens.image, part.tokens.end_of_chunk)]
    assert sorted(new) == [len(stored), len(stored) + 1] == list(range(len(stored), len(table)))
    torch.testing.assert_close(table[new], stored.mean(0).expand(2, -1), atol=0.05 * stored.std().item(), rtol=0)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_every_quantization_is_read_as_the_package_reads_it(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    stored = gguf.quantize(values, Type[kind])
    writer.add_tensor("one", np.zeros(5, np.float32))
    writer.add_tensor("two", stored, raw_dtype=Type[kind])
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    read = open_gguf(tmp_path / "m.gguf").tensors["two"].read()
    assert (read.dtype, read.is_contiguous()) == (torch.float32, True)
    assert np.array_equal(read.numpy(), gguf.dequantize(stored, Type[kind]))
    assert np.abs(read.numpy() - values).max() < 0.3


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"])
def test_blocks_that_only_llama_cpp_writes_are_dequantized_by_the_package(tmp_path: Path, kind: str) -> None:
    _, nbytes = gguf.GGML_QUANT_SIZES[Type[kind]]
    stored = np.random.default_rng(0).integers(0, 60, (2, nbytes), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("one", stored, raw_dtype=Type[kind])
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    read = open_gguf(tmp_path / "m.gguf").tensors["one"].read()
    assert np.array_equal(read.numpy(), gguf.dequantize(stored, Type[kind]))


@pytest.mark.parametrize("name", NAMES)
def test_metadata_is_what_the_packages_reader_finds(name: str) -> None:
    reader, ours = gguf.GGUFReader(FIXTURES / f"{name}.gguf"), open_gguf(FIXTURES / f"{name}.gguf")
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(theirs) == list(ours.metadata)
    for key, value in ours.metadata.items():
        found = value.tolist() if isinstance(value, np.ndarray) else value
        assert found == pytest.approx(theirs[key], rel=1e-7) if isinstance(found, float) else found == theirs[key], key
    assert {tensor.name: tuple(tensor.shape.tolist()[::-1]) for tensor in reader.tensors} == {
        key: tensor.shape for key, tensor in ours.tensors.items()
    }


# Tokenizers


@pytest.mark.parametrize("pre", PRE)
def test_token_ids_are_those_of_llama_cpp(file: GgufFile, pre: str) -> None:
    tokenizer = read_gguf_tokenizer(replace(file, metadata={**file.metadata, "tokenizer.ggml.pre": pre}))
    text = SAVED["text"]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == SAVED["ids"][pre]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_names_of_pre_tokenizers_make_a_difference() -> None:
    assert len({tuple(SAVED["ids"][pre]) for pre in PRE}) == len(PRE)


def test_pieces_are_those_of_llama_cpp() -> None:
    tokenizer = read_gguf_tokenizer(open_gguf(FIXTURES / "pieces.gguf"))
    ids = tokenizer.encode(SAVED["text"], add_special_tokens=False).ids
    assert ids == SAVED["ids"]["pieces"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == SAVED["text"]


def test_smollms_words_are_those_of_its_own_tokenizer(file: GgufFile) -> None:
    """Its tokenizer.json has these two steps."""
    tokenizer = read_gguf_tokenizer(file)
    own = Tokenizer.from_str(tokenizer.to_str())
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert tokenizer.encode(SAVED["text"]).ids == own.encode(SAVED["text"]).ids


def test_special_tokens_are_whole_and_the_metadatas() -> None:
    part = open_language_part(BYTES)
    tokens = part.tokens
    assert (tokens.bos, tokens.eos, tokens.pad, tokens.stop) == ("", "<|im_end|>", "<|im_end|>", ())
    assert (tokens.image, tokens.end_of_chunk) == ("<image>", "<|endofchunk|>")
    text = "<|im_start|>a<image><|endofchunk|><|im_end|>"
    assert part.tokenizer.encode(text).tokens == ["<|im_start|>", "a", "<image>", "<|endofchunk|>", "<|im_end|>"]
    assert part.tokenizer.decode(part.tokenizer.encode(text).ids) == "a"
    other = open_language_part(FIXTURES / "pieces.gguf")
    assert (other.tokens.bos, other.tokens.eos, other.tokens.pad) == ("<s>", "</s>", "<PAD>")
    assert "<user>" in other.tokenizer.encode("a<user>b").tokens


def test_the_tokens_that_end_an_answer_are_all_named(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "m.gguf", {"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.add_bos_token": True})
    tokens = open_language_part(path).tokens
    assert (tokens.bos, tokens.eos, tokens.stop) == ("<|im_start|>", "<|im_end|>", ("<|endoftext|>",))


def test_another_tokenizer_may_be_given(tmp_path: Path) -> None:
    read_gguf_tokenizer(open_gguf(BYTES)).save(str(tmp_path / "tokenizer.json"))
    path = rewritten(tmp_path / "m.gguf", {"tokenizer.ggml.pre": "unheard-of"})
    assert open_language_part(path, tmp_path / "tokenizer.json").tokens.eos == "<|im_end|>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre is tekken; gpt-2, smollm.*--tokenizer"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is missing"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model is t5; gpt2, llama"),
        ({"tokenizer.ggml.tokens": None}, "no texts in tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": ["a", "b", "a"]}, "a token twice"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "the tokenizer cannot be made"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "token_type is not a number for each of 500 tokens"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "has 'a b c', not a pair"),
        ({"tokenizer.ggml.merges": ["unheard of"]}, "the tokenizer cannot be made"),
        ({"tokenizer.ggml.eos_token_id": None}, "which token ends a text.*eos_token_id"),
        ({"tokenizer.ggml.eos_token_id": 5000}, "eos_token_id is 5000, and there is no such token"),
        ({"tokenizer.ggml.add_bos_token": 3}, "add_bos_token is not true or false"),
        ({"tokenizer.ggml.eot_token_id": 5000}, "names the token 5000"),
    ],
)
def test_a_tokenizer_that_cannot_be_made_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_language_part(rewritten(tmp_path / "m.gguf", changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.remove_extra_whitespaces": True}, "remove_extra_whitespaces is not False"),
        ({"tokenizer.ggml.add_space_prefix": False}, "add_space_prefix is not True"),
        ({"tokenizer.ggml.scores": np.zeros(3)}, "scores are not 520 numbers"),
        ({"tokenizer.ggml.token_type": np.ones(520, np.int32)}, "0 unknown tokens"),
    ],
)
def test_pieces_that_cannot_be_made_are_refused(changes: dict[str, object], message: str) -> None:
    found = open_gguf(FIXTURES / "pieces.gguf")
    with pytest.raises(DataError, match=message):
        read_gguf_tokenizer(replace(found, metadata={**found.metadata, **changes}))


def with_pieces(texts: list[str]) -> GgufFile:
    """The file with an unknown token and these pieces."""
    found, count = open_gguf(FIXTURES / "pieces.gguf"), 1 + len(texts)
    changes = {"tokens": ["<unk>", *texts], "scores": np.zeros(count, np.float32),
               "token_type": np.array([2, *[1] * len(texts)], np.int32)}
    return replace(found, metadata={**found.metadata, **{f"tokenizer.ggml.{key}": value
                                                         for key, value in changes.items()}})


def test_pieces_that_would_be_merged_in_too_many_ways_are_refused(monkeypatch) -> None:
    runs = ["c" * length for length in range(1, 65)]
    read_gguf_tokenizer(with_pieces(runs))
    monkeypatch.setattr(gguf_tokenizer, "MOST_MERGES", 2015)
    with pytest.raises(DataError, match="its pieces are more than 2,015 unions of two: give the original"):
        read_gguf_tokenizer(with_pieces(runs))
    monkeypatch.undo()
    with pytest.raises(DataError, match="a piece of 65 characters, more than 64"):
        read_gguf_tokenizer(with_pieces([*runs, "c" * 65]))


# What is refused


@pytest.mark.parametrize("key", sorted(NEUTRAL))
def test_settings_that_change_the_computation_are_refused(tmp_path: Path, key: str) -> None:
    neutral = NEUTRAL[key]
    other = not neutral if isinstance(neutral, bool) else "linear" if isinstance(neutral, str) else neutral + 3
    with pytest.raises(DataError, match=rf"llama\.{key} is .*only"):
        open_language_part(rewritten(tmp_path / "m.gguf", {f"llama.{key}": other}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "qwen3"}, "general.architecture is 'qwen3'; only 'llama'"),
        ({"general.type": [1, 2]}, "general.type is not 'model'"),
        ({"split.count": [1, 2]}, "one of several files"),
        ({"general.type": "adapter"}, "general.type is not 'model'"),
        ({"split.count": 3}, "one of several files.*--merge"),
        ({"llama.unheard_of": 1}, r"llama.unheard_of is 1; this key is not known"),
        ({"llama.block_count": None}, "lacks llama.block_count"),
        ({"llama.block_count": 0}, "llama.block_count is 0"),
        ({"llama.block_count": 3}, "llama.block_count is 3; the tensors have 2"),
        ({"llama.block_count": 1}, "llama.block_count is 1; the tensors have 2"),
        ({"llama.attention.head_count": 5}, "cannot be split into 5 heads"),
        ({"llama.attention.head_count_kv": [2, 1]}, "head_count_kv is a list"),
        ({"llama.attention.head_count_kv": 3}, "not a multiple"),
        ({"llama.attention.head_count_kv": 4}, r"blk.0.attn_k.weight has shape \[32, 64\]"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count is 8; only 16"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon is nan"),
        ({"llama.feed_forward_length": 64}, "ffn_gate.weight has shape"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = rewritten(tmp_path / "m.gguf", changes)
    with pytest.raises(DataError, match=message):
        open_language_part(path)


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.ffn_gate_exps.weight", "rope_freqs.weight", "other"])
def test_tensors_without_a_place_are_refused_by_name(tmp_path: Path, name: str) -> None:
    assert name in refusal(rewritten(tmp_path / "m.gguf", {}, {name: np.ones(64, np.float32)}))


# Damaged files


def test_what_is_not_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "is not a GGUF file" in refusal(path)
    path.write_bytes(b"")
    assert "cannot read" in refusal(path)
    (tmp_path / "model.bin").write_bytes(BYTES.read_bytes())
    assert open_language_part(tmp_path / "model.bin").config.layers == 2
    assert [is_gguf(place) for place in (path, tmp_path, tmp_path / "absent.gguf")] == [True, False, False]
    assert "is not a folder" in refusal(tmp_path / "absent.gguf")


@pytest.mark.parametrize("version", [1, 4, 3 << 24])
def test_other_versions_are_refused(tmp_path: Path, version: int) -> None:
    content = bytearray(BYTES.read_bytes())
    content[4:8] = struct.pack("<I", version)
    (tmp_path / "m.gguf").write_bytes(content)
    assert f"GGUF version {version}" in refusal(tmp_path / "m.gguf")


def test_a_file_cut_short_says_how_many_bytes_are_missing(tmp_path: Path) -> None:
    content, path = BYTES.read_bytes(), tmp_path / "m.gguf"
    path.write_bytes(content[:-70])
    assert "is cut short: 70 bytes are missing" in refusal(path)
    for length in range(4, 20_000, 997):  # within the header
        path.write_bytes(content[:length])
        assert "cannot read" in refusal(path) or "is cut short" in refusal(path)


@pytest.mark.parametrize("place", [8, 16, 24])
@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 2**32, 90_000])
def test_huge_counts_end_where_the_file_does(tmp_path: Path, place: int, count: int) -> None:
    """The counts of tensors and of keys, and the length of the first key."""
    content = bytearray(BYTES.read_bytes())
    content[place : place + 8] = struct.pack("<Q", count)
    (tmp_path / "m.gguf").write_bytes(content)
    assert "cannot read" in refusal(tmp_path / "m.gguf")


def header(*values: bytes, tensors: int = 0, keys: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + b"".join(values)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name: str, sizes: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(text("a"), struct.pack("<IIQ", 9, 8, 2**60), keys=1), "an array of 1152921504606846976 values"),
        (header(text("a"), struct.pack("<IIQ", 9, 9, 1), keys=1), "an array of 1 values of type 9"),
        (header(text("a"), struct.pack("<IIQ", 9, 6, 4_000_000), keys=1), "are missing"),
        (header(text("a"), struct.pack("<I", 13), keys=1), "the unknown type 13"),
        (header(struct.pack("<Q", 2) + b"\xff\xff", struct.pack("<IB", 0, 1), keys=1), "not UTF-8"),
        (header(text("a"), struct.pack("<IB", 0, 1), text("a"), struct.pack("<IB", 0, 1), keys=2), "key a twice"),
        (header(text("general.alignment"), struct.pack("<II", 4, 3), keys=1), "alignment is 3"),
        (header(text("general.alignment"), struct.pack("<II", 4, 0), keys=1), "alignment is 0"),
        (header(tensor("a", (2,)), tensor("a", (2,)), tensors=2), "tensor a twice"),
        (header(tensor("a", (8,)), tensor("b", (8,)), bytes(64), tensors=2), "tensors a and b share bytes"),
        (header(tensor("a", (2**40, 2**40)), tensors=1), "has the shape"),
        (header(tensor("a", (2**40,)), tensors=1), "is cut short"),
        (header(tensor("a", (33,), 8), bytes(64), tensors=1), "in blocks of 32"),
        (header(tensor("a", (2,), 0, 7), bytes(64), tensors=1), "at offset 7"),
        (header(tensor("a", (2,), 77), bytes(64), tensors=1), "quantized as type 77, which is not read"),
        (header(tensor("a", (256,), 15), bytes(999), tensors=1), "quantized as Q8_K"),
        (header(tensor("a", (2,), 26), bytes(64), tensors=1), "quantized as I32"),
        (header(tensor("a", ()), tensors=1), "0 dimensions"),
        (header(tensor("a", (1,) * 5), tensors=1), "5 dimensions"),
        (header(text("general.architecture"), struct.pack("<IIQ2B", 9, 0, 2, 0, 1), keys=1), "general.architecture is"),
        (header(), "general.architecture is 'None'"),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_language_part(tmp_path / "m.gguf")


def test_headers_beyond_the_limits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_files, "MOST_HEADER_BYTES", 2000)
    assert "header has more than 2000 bytes" in refusal(BYTES)
    monkeypatch.undo()
    monkeypatch.setattr(gguf_files, "MOST_ITEMS", 500)
    assert "more than 500 texts" in refusal(BYTES)
    monkeypatch.setattr(gguf_files, "MOST_ITEMS", 499)
    assert "tokenizer.ggml.tokens is an array of 500 values" in refusal(BYTES)
    monkeypatch.undo()
    monkeypatch.setattr(gguf_files, "MOST_TENSORS", 19)
    assert "it states 20 tensors" in refusal(BYTES)


def test_every_changed_byte_of_a_header_is_read_or_refused(tmp_path: Path) -> None:
    content, random = BYTES.read_bytes(), np.random.default_rng(0)
    opened = 0
    for place in random.integers(4, 1500, 60).tolist():
        changed = bytearray(content)
        changed[place] ^= 1 << random.integers(8)
        (tmp_path / "m.gguf").write_bytes(changed)
        try:
            open_language_part(tmp_path / "m.gguf")
            opened += 1
        except DataError:
            pass
    assert opened < 60


def test_a_file_that_gets_shorter_is_told_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(BYTES.read_bytes())
    last = list(open_gguf(path).tensors.values())[-1]
    path.write_bytes(BYTES.read_bytes()[:-4000])
    with pytest.raises(DataError, match=r"bytes, \d+ are left"):
        last.read()


def test_without_the_package_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    gguf_files._known.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "gguf"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="gguf"):
        open_language_part(BYTES)
