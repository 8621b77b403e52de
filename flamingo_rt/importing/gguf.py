"""A LLaMA language model in one GGUF file, llama.cpp's format, quantized or not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from flamingo_rt.config import LanguageConfig
from flamingo_rt.errors import DataError
from flamingo_rt.importing.family import Family, head_width, plain
from flamingo_rt.importing.frozen_parts import LanguageFolder
from flamingo_rt.importing.gguf_tokenizer import read_gguf_tokenizer, special_ids, stated_in
from flamingo_rt.importing.openflamingo_tokenizer import add_tokens, load_tokenizer, stated_tokens
from flamingo_rt.importing.settings import Settings
from flamingo_rt.importing.sources import Source, TensorSlice
from flamingo_rt.printable import printable
from flamingo_rt.weights.gguf_files import GgufFile, open_gguf
from flamingo_rt.weights.lazy import LazyTensor

ARCHITECTURE = "llama"
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
TIED = "(tied)"  # whether the file has no head of its own; no key of a file is in parentheses
# Keys of the architecture that are read, or that must have the value that changes nothing. Another one may change the
# computation, and is refused.
SIZES = (
    "block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length", "rope.freq_base",
    "rope.dimension_count", "context_length", "vocab_size",
)
REQUIRED = (*SIZES[:4], "attention.layer_norm_rms_epsilon", "context_length")
NEUTRAL: dict[str, object] = {
    "rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.scale_linear": 1.0, "expert_count": 0,
    "expert_used_count": 0, "attention.causal": True, "attention.sliding_window": 0, "attention.clamp_kqv": 0.0,
    "use_parallel_residual": False, "tensor_data_layout": "", "logit_scale": 1.0, "embedding_scale": 1.0,
    "residual_scale": 1.0,
}
FACTORS = "rope_freqs.weight"
LONGEST = 80  # characters of a key or value in a message
# Our layers -> the file's.
LAYERS = {
    "attention.query": "attn_q", "attention.key": "attn_k", "attention.value": "attn_v",
    "attention.output": "attn_output", "attention_norm": "attn_norm", "ff_norm": "ffn_norm", "ff.gate": "ffn_gate",
    "ff.up": "ffn_up", "ff.down": "ffn_down",
}


def _config(settings: Settings, rows: int) -> LanguageConfig:
    width, heads = settings.integer("llama.embedding_length"), settings.integer("llama.attention.head_count")
    stated = settings.get("llama.attention.key_length") is not None
    per_head = settings.integer("llama.attention.key_length") if stated else head_width(settings, width, heads)
    settings.must({"llama.attention.value_length": per_head, "llama.rope.dimension_count": per_head})
    return LanguageConfig(
        vocab_size=rows, width=width, layers=settings.integer("llama.block_count"), heads=heads,
        kv_heads=settings.integer("llama.attention.head_count_kv", heads), head_width=per_head,
        ff_width=settings.integer("llama.feed_forward_length"), context=settings.integer("llama.context_length"),
        norm="rmsnorm", norm_eps=settings.number("llama.attention.layer_norm_rms_epsilon", 0.0),
        norm_bias=False, positions="rotary", rotary_base=settings.number("llama.rope.freq_base", 10000.0),
        activation="swiglu", attention_bias=False, attention_output_bias=False, tied_head=settings.flag(TIED),
    )


def _tensors(source: Source, config: LanguageConfig) -> dict[str, TensorSlice]:
    slices = plain("norm", "output_norm", False)
    for layer in range(config.layers):
        for ours, theirs in LAYERS.items():
            slices |= plain(f"layers.{layer}.{ours}", f"blk.{layer}.{theirs}", False)
    return slices


LLAMA_GGUF = Family("LLaMA, GGUF", "blk", EMBEDDING, HEAD, _config, _tensors)


def open_gguf_language(path: Path, tokenizer: Path | None = None) -> LanguageFolder:
    """The LLaMA in a GGUF file, with its own tokenizer or the one in ``tokenizer``, a folder or a file.

    Raises `DataError` for a file that is damaged, of another architecture, or that computes what is not supported; for
    a tokenizer that cannot be used; `ModuleNotFoundError` without the gguf package.
    """
    file = open_gguf(path)
    found = file.metadata.get("general.architecture")
    if not isinstance(found, str) or found != ARCHITECTURE:
        raise DataError(
            f"{path}: general.architecture is {printable(str(found)[:80])!r}; only {ARCHITECTURE!r} can be imported"
        )
    _check(file)
    settings = Settings(path, {**file.metadata, TIED: HEAD not in file.tensors})
    settings.must({f"{ARCHITECTURE}.{key}": value for key, value in NEUTRAL.items()})
    source = Source("the language model (LLaMA, GGUF)", path, _unpermuted(file.tensors, settings))
    settings.agree({"llama.block_count": source.layers("blk")})
    if tokenizer is None:
        loaded, place, stated = read_gguf_tokenizer(file), path, stated_in(file)
    else:
        loaded, place, stated = load_tokenizer(tokenizer), tokenizer, stated_tokens(tokenizer)
    known = loaded.get_vocab()
    tokens = add_tokens(loaded, place, stated, *special_ids(file))
    return LanguageFolder(settings, LLAMA_GGUF, source, loaded, tokens, known)


def _check(file: GgufFile) -> None:
    """Raise `DataError` for what no `Settings` can check, and for what would change the computation."""
    metadata = file.metadata
    if str(metadata.get("split.count", 0)) not in ("0", "1"):
        raise DataError(
            f"{file.path} is one of several files of a model: join them with llama.cpp's llama-gguf-split --merge"
        )
    if str(metadata.get("general.type", "model")) != "model":
        raise DataError(f"{file.path}: general.type is not 'model': give the file of a whole language model")
    for key in REQUIRED:
        if f"{ARCHITECTURE}.{key}" not in metadata:
            raise DataError(f"{file.path} lacks {ARCHITECTURE}.{key}: convert the original model again")
    for key, value in metadata.items():
        if not key.startswith(f"{ARCHITECTURE}."):
            continue
        if not isinstance(value, (bool, int, float, str)) or len(str(value)) > LONGEST:
            raise DataError(f"{file.path}: {printable(key[:LONGEST])} is a list or a long text: layers that differ "
                            "cannot be imported")
        if key.removeprefix(f"{ARCHITECTURE}.") not in (*SIZES, *NEUTRAL):
            raise DataError(
                f"{file.path}: {printable(key[:LONGEST])} is {printable(str(value))}; this key is not known, and may "
                "change the result: it cannot be imported"
            )
    if FACTORS in file.tensors:
        raise DataError(f"{file.path}: tensor {FACTORS} scales the rotary embeddings, which cannot be imported: take "
                        "a model without rope scaling")


def _unpermuted(tensors: Mapping[str, LazyTensor], settings: Settings) -> dict[str, LazyTensor]:
    """The tensors with the rows of queries and keys as the transformers library has them.

    A rotated pair is two neighbouring rows of a head in the file, for llama.cpp, and lies half a head apart here.
    """
    heads = settings.integer("llama.attention.head_count")
    counts = {"attn_q": heads, "attn_k": settings.integer("llama.attention.head_count_kv", heads)}
    found = dict(tensors)
    for name, tensor in tensors.items():
        match = re.fullmatch(r"blk\.\d+\.(attn_[qk])\.weight", name)
        if match:
            found[name] = replace(tensor, read=partial(_read_halves, tensor, counts[match[1]]))
    return found


def _read_halves(tensor: LazyTensor, heads: int) -> Tensor:
    pairs = tensor.read().unflatten(0, (heads, -1, 2))  # [heads, half a head, 2, width]
    return pairs.transpose(1, 2).reshape(tensor.shape).contiguous()
