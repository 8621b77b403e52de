"""Small LLaMAs as GGUF files, and what their readers make of them: ``tests/fixtures/gguf``.

    python -m benchmarks.gguf_fixtures.write_gguf

``bytes.gguf`` has a byte-level tokenizer, grouped heads and a tied head, ``pieces.gguf`` a sentencepiece one, heads of
their own width and a head of its own. Logits are those of transformers, which dequantizes the files; token ids those of
llama.cpp, for every name of a pre-tokenizer: transformers takes one for all. Written with transformers 5.24.0,
sentencepiece 0.2.3, gguf 0.19.0 and xllamacpp 2026.10 (llama.cpp), in an environment with them and this project.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

from benchmarks.peers.random_weights import random_tensor
from flamingo_rt.child_process import child_environment, python_command

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "gguf"
PRE = ("gpt-2", "smollm", "llama-bpe", "qwen2", "default")
LAYERS = 2
SIZES = {
    "bytes": {"width": 64, "heads": 4, "kv_heads": 2, "head": 16, "ff": 96},
    "pieces": {"width": 64, "heads": 4, "kv_heads": 2, "head": 8, "ff": 64},
}
TYPES = {
    "bytes": {"token_embd": Type.Q8_0, "attn_q": Type.Q4_1, "attn_k": Type.Q8_0, "ffn_up": Type.F16},
    "pieces": {
        "token_embd": Type.F16, "output": Type.Q5_0, "attn_q": Type.Q4_0, "attn_k": Type.BF16, "ffn_up": Type.Q5_1
    },
}
TEXT = (
    "The quick brown fox, 12345 times; it's \"fine\" - isn't it? We'LL see. "
    "\u00c4\u00d6\u00dc\u00df \u00e9\u00e8 na\u00efve.\n"
    "def f(x: int) -> list[int]:\n\treturn [x ** 2 for _ in range(10)]   # 3.14e-5\n\n\n\u65e5\u672c\u8a9e\u306e "
    "\ud55c\uad6d\uc5b4 \u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 "
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 \U0001f469\u200d\U0001f680 \u00bd \u00b2 \u2167 "
    "\u0663\u0664\u0665 1,000,000.00   spaces    \r\n\r\n \u00a0\u3000 $x^2 + y_1 = {a|b}$ ~`^<=> the end "
)


def byte_level() -> dict[str, object]:
    """Metadata of a byte-level tokenizer that was learnt from this project's pages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator([*corpus(), TEXT * 3], trainer)
    state = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    return {
        "model": "gpt2", "pre": "smollm", "tokens": tokens, "token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "merges": [" ".join(pair) for pair in state["merges"]], "bos_token_id": 1, "eos_token_id": 2,
        "padding_token_id": 2, "add_bos_token": False,
    }


def pieces(folder: Path) -> dict[str, object]:
    """Metadata of a sentencepiece tokenizer that was learnt from this project's pages."""
    (folder / "corpus.txt").write_text("\n".join([*corpus(), TEXT * 3]), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "pieces"), vocab_size=520, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, character_coverage=0.98, max_sentence_length=100_000, minloglevel=2,
        user_defined_symbols=["<user>"], num_threads=1,
    )
    model = sentencepiece.SentencePieceProcessor(str(folder / "pieces.model"))
    numbers = range(model.vocab_size())
    types = [2 if model.is_unknown(n) else 3 if model.is_control(n) else 6 if model.is_byte(n) else 1 for n in numbers]
    types[model.piece_to_id("<user>")] = 4
    return {
        "model": "llama", "pre": "default", "tokens": [model.id_to_piece(n) for n in numbers],
        "scores": [model.get_score(n) for n in numbers], "token_type": types, "bos_token_id": 1, "eos_token_id": 2,
        "unknown_token_id": 0,
    }


def corpus() -> list[str]:
    return [path.read_text(encoding="utf-8")[:20_000] for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md")]


def write(path: Path, name: str, tokenizer: dict[str, object]) -> None:
    """A model's file. Queries and keys are given as transformers has them, and permuted as llama.cpp's converter
    does."""
    size, rows = SIZES[name], len(tokenizer["tokens"])
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(size["width"])
    writer.add_feed_forward_length(size["ff"])
    writer.add_head_count(size["heads"])
    writer.add_head_count_kv(size["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(size["head"])
    writer.add_vocab_size(rows)
    if name == "pieces":
        writer.add_key_length(size["head"])
        writer.add_value_length(size["head"])
    add = {"model": writer.add_tokenizer_model, "pre": writer.add_tokenizer_pre, "tokens": writer.add_token_list,
           "merges": writer.add_token_merges, "token_type": writer.add_token_types, "scores": writer.add_token_scores,
           "bos_token_id": writer.add_bos_token_id, "eos_token_id": writer.add_eos_token_id,
           "padding_token_id": writer.add_pad_token_id, "add_bos_token": writer.add_add_bos_token,
           "unknown_token_id": writer.add_unk_token_id}
    for key, value in tokenizer.items():
        add[key](value)
    width, ff = size["width"], size["ff"]
    inner, inner_kv = size["heads"] * size["head"], size["kv_heads"] * size["head"]
    tensors = {"token_embd": (rows, width), "output_norm": (width,)}
    if name == "pieces":
        tensors["output"] = (rows, width)
    for layer in range(LAYERS):
        tensors |= {f"blk.{layer}.{key}": shape for key, shape in {
            "attn_norm": (width,), "attn_q": (inner, width), "attn_k": (inner_kv, width), "attn_v": (inner_kv, width),
            "attn_output": (width, inner), "ffn_norm": (width,), "ffn_gate": (ff, width), "ffn_up": (ff, width),
            "ffn_down": (width, ff),
        }.items()}
    for key, shape in tensors.items():
        values = random_tensor(3, f"{key}.weight", shape)
        short = key.rpartition(".")[2]
        if short in ("attn_q", "attn_k"):
            heads = size["heads" if short == "attn_q" else "kv_heads"]
            values = values.reshape(heads, 2, -1, width).swapaxes(1, 2).reshape(shape)
        kind = TYPES[name].get(short, Type.Q8_0 if len(shape) == 2 and shape[1] % 32 == 0 else Type.F32)
        writer.add_tensor(f"{key}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    FIXTURES.mkdir(parents=True, exist_ok=True)
    answers: dict[str, object] = {"text": TEXT, "ids": {}}
    logits = {}
    with tempfile.TemporaryDirectory() as made:
        tokenizers = {"bytes": byte_level(), "pieces": pieces(Path(made))}
        for name, tokenizer in tokenizers.items():
            write(FIXTURES / f"{name}.gguf", name, tokenizer)
            model = AutoModelForCausalLM.from_pretrained(FIXTURES, gguf_file=f"{name}.gguf", dtype=torch.float32).eval()
            ids = torch.arange(0, 480, 37)[None]
            with torch.no_grad():
                logits[name] = model(ids).logits[0].numpy()
        for pre in PRE:
            file = Path(made) / f"{pre}.gguf"
            write(file, "bytes", {**tokenizers["bytes"], "pre": pre})
            answers["ids"][pre] = llama_cpp(file)
        answers["ids"]["pieces"] = llama_cpp(FIXTURES / "pieces.gguf")
    (FIXTURES / "token_ids.json").write_text(json.dumps(answers) + "\n", encoding="utf-8")
    np.savez_compressed(FIXTURES / "logits.npz", **logits)


def llama_cpp(file: Path, port: int = 18500) -> list[int]:
    """The ids of `TEXT`, without tokens around it, from llama.cpp's server in a process of its own."""
    server = subprocess.Popen(
        python_command("benchmarks.gguf_fixtures.llama_cpp_server", str(file), str(port)), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env=child_environment({"PYTHONPATH": str(ROOT)}),
    )
    try:
        address = server.stdout.readline().strip()
        body = json.dumps({"content": TEXT, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(f"{address}/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["tokens"]
    finally:
        server.communicate("")


if __name__ == "__main__":
    main()
