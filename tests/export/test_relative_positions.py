"""Relative positions are projected when exporting; graphs compute what the model does that projects on every call."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import PIL.Image
import pytest
import torch
from small_model import TEXTS, small_config, small_flamingo
from torch import Tensor

import flamingo_rt.export.pipeline as pipeline
from flamingo_rt.bundle import read_bundle
from flamingo_rt.checkpoints import DTYPES, StoredModel
from flamingo_rt.config import TokensConfig
from flamingo_rt.contract import LANGUAGE_MODEL, RELATIVE_KEYS, graph_specs, past_name, present_name
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.export import tracing
from flamingo_rt.export.checks.parity import check_parity
from flamingo_rt.export.checks.parity_cases import CASES, compute_reference
from flamingo_rt.export.folding import folded_tensors
from flamingo_rt.export.graph_bytes import graph_weights
from flamingo_rt.export.graph_weights import Weights
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.export.quantization.calibration import read_prompts
from flamingo_rt.export.quantization.quantization_options import SCHEMES_OF, Quantize
from flamingo_rt.export.relative_positions import (
    PrecomputedRelativeBias,
    chunk_sizes,
    precompute_relative_bias,
    relative_key_tensors,
)
from flamingo_rt.export.streamed_model import streamed_model
from flamingo_rt.loading import load
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.naive import generate_naively
from flamingo_rt.model.positions import RelativeBias
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.training.tokenizer_training import train_tokenizer
from flamingo_rt.weights.lazy import LazyTensor

CHUNK = 200  # distances; the context has three chunks
CONFIG = replace(small_config(), language=replace(small_config().language, positions="relative", context=3 * CHUNK))
LANGUAGE = CONFIG.language


@pytest.fixture(scope="module")
def model() -> Flamingo:
    return small_flamingo(CONFIG)


@pytest.fixture(scope="module")
def stored(model: Flamingo) -> StoredModel:
    tokenizer = train_tokenizer(TEXTS, LANGUAGE.vocab_size, TokensConfig())
    return StoredModel(CONFIG, tokenizer.to_str(), lazy(model.state_dict()))


def lazy(tensors: dict[str, Tensor]) -> dict[str, LazyTensor]:
    return {
        name: LazyTensor(tuple(tensor.shape), tensor.dtype, Path("weights"), tensor.detach().clone)
        for name, tensor in tensors.items()
    }


@pytest.fixture(scope="module")
def traced(stored: StoredModel) -> dict[str, onnx_ir.Model]:
    """Each graph, with its weights to be read; factors are not folded, so that weights of any type fit."""
    tensors = relative_key_tensors(LANGUAGE, folded_tensors(stored.tensors))
    return dict(tracing.trace_graphs(CONFIG, "ort", Weights(tensors).bind, fold_factors=False))


@pytest.fixture(scope="module")
def exported(stored: StoredModel, traced, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The model as a bundle, exported once for each form."""
    folder = tmp_path_factory.mktemp("bundles")

    def again(config, lowering, bind, fold_factors, dtype) -> Iterator[tuple[str, onnx_ir.Model]]:
        for name, graph in traced.items():
            yield name, graph.clone()

    def bundle(form: str = "fp32") -> Path:
        if not (folder / form).exists():
            options = {"dtype": form} if form in DTYPES else {"quantize": quantize(form)}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pipeline, "trace_graphs", again)
                export_model(stored, folder / form, **options)
        return folder / form

    def quantize(scheme: str) -> Quantize:
        file = folder / "prompts.jsonl"
        PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            folder / "noise.png"
        )
        file.write_text("\n".join(json.dumps([{"image": "noise.png"}, text]) for text in 4 * TEXTS))
        return Quantize(scheme, calibration=read_prompts(file), min_cosine=0.9, max_changed=0.6)

    return bundle


def language_graph(bundle: Path) -> onnx.GraphProto:
    return onnx.load(read_bundle(bundle).graph_path(LANGUAGE_MODEL)).graph


def close(found: np.ndarray, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 1
    assert np.abs(found - expected.numpy()).max() <= 2e-5 * scale


def expected_logits(model: Flamingo, ids: np.ndarray) -> Tensor:
    """Logits of each token of one row [T]."""
    text = torch.from_numpy(ids)[None]
    with torch.no_grad():
        return model.read(text, torch.zeros_like(text), None, None)[0][0]


def random_ids(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, LANGUAGE.vocab_size, shape)


# In PyTorch


@pytest.mark.parametrize(("context", "sizes"), [
    (1, (1, 1)), (96, (1, 96)), (256, (1, 256)), (257, (2, 129)), (600, (3, CHUNK)), (2048, (8, 256)),
    (2049, (8, 257)), (32768, (8, 4096)),
])
def test_chunks_hold_every_distance_of_the_context(context: int, sizes: tuple[int, int]) -> None:
    assert chunk_sizes(context) == sizes
    assert sizes[0] * sizes[1] >= context


@pytest.mark.parametrize("keys", [1, 37, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_precomputed_relative_keys_give_the_scores_of_projected_ones(keys: int) -> None:
    torch.manual_seed(keys)
    projecting, precomputed = RelativeBias(LANGUAGE), PrecomputedRelativeBias(LANGUAGE)
    name = "language.layers.0.attention.bias"
    with torch.no_grad():
        projecting.bias.normal_()
    tensors = relative_key_tensors(LANGUAGE, lazy({f"{name}.{k}": v for k, v in projecting.state_dict().items()}))
    precomputed.load_state_dict({k.removeprefix(f"{name}."): v.read() for k, v in tensors.items()})
    tokens = min(5, keys)
    ends = torch.tensor([keys, max(tokens, keys // 2)])  # rows of two lengths
    positions = ends[:, None] - tokens + torch.arange(tokens)
    query = torch.randn(2, tokens, LANGUAGE.heads, LANGUAGE.head_width)
    with torch.no_grad():
        expected, found = projecting(query, positions, keys), precomputed(query, positions, keys)
    seen = torch.arange(keys) <= positions[:, None, :, None]
    assert expected.shape == found.shape == (2, LANGUAGE.heads, tokens, keys)
    assert expected.std() > 0.05
    torch.testing.assert_close(found.where(seen, 0), expected.where(seen, 0), rtol=1e-5, atol=1e-6)


def test_projections_alone_are_replaced_and_nothing_is_read(stored: StoredModel) -> None:
    def read() -> Tensor:
        raise AssertionError("read")

    unread = {name: replace(tensor, read=read) for name, tensor in stored.tensors.items()}
    replaced = relative_key_tensors(LANGUAGE, unread)
    projections = {f"language.layers.{layer}.attention.bias.projection.weight" for layer in range(LANGUAGE.layers)}
    chunks = {f"language.layers.{layer}.attention.bias.{RELATIVE_KEYS}.{chunk}.weight"
              for layer in range(LANGUAGE.layers) for chunk in range(3)}
    assert set(unread) - set(replaced) == projections
    assert set(replaced) - set(unread) == chunks
    assert all(replaced[name] is unread[name] for name in set(replaced) & set(unread))
    with pytest.raises(AssertionError, match="read"):
        replaced[min(chunks)].read()


@pytest.mark.parametrize("positions", ["learnt", "alibi", "rotary"])
def test_other_positions_have_no_distances_to_project(positions: str) -> None:
    config = replace(small_config(), language=replace(LANGUAGE, positions=positions, context=9))
    model = Flamingo(config)
    tensors, modules = lazy(model.state_dict()), list(model.modules())
    assert relative_key_tensors(config.language, tensors) == tensors
    precompute_relative_bias(model)
    assert list(model.modules()) == modules


def test_the_tensors_are_those_of_the_precomputed_model(stored: StoredModel, model: Flamingo) -> None:
    plain = Flamingo(CONFIG)
    precompute_relative_bias(plain)
    tensors = relative_key_tensors(LANGUAGE, stored.tensors)
    plain.load_state_dict({name: tensor.read() for name, tensor in tensors.items()})  # exactly
    assert not any(isinstance(module, RelativeBias) for module in plain.modules())
    assert any(isinstance(module, RelativeBias) for module in model.modules())
    ids = torch.randint(LANGUAGE.vocab_size, (2, 2 * CHUNK + 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = (each(ids, torch.zeros_like(ids))[0] for each in (model, plain))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_streamed_model_reads_the_chunks_that_a_text_reaches(stored: StoredModel, model: Flamingo) -> None:
    read: list[str] = []

    def recorded(name: str, tensor: LazyTensor) -> LazyTensor:
        return replace(tensor, read=lambda: read.append(name) or tensor.read())

    tensors = relative_key_tensors(LANGUAGE, folded_tensors(stored.tensors))
    streamed = streamed_model(CONFIG, {name: recorded(name, tensor) for name, tensor in tensors.items()})
    for tokens, chunks in ((CHUNK, "0"), (CHUNK + 1, "01")):
        read.clear()
        ids = random_ids(tokens)
        close(expected_logits(streamed, ids).numpy(), expected_logits(model, ids))
        assert sorted(name for name in read if f".{RELATIVE_KEYS}." in name) == [
            f"language.layers.{layer}.attention.bias.{RELATIVE_KEYS}.{chunk}.weight"
            for layer in range(LANGUAGE.layers) for chunk in chunks
        ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_projections_stored_in_half_precision_are_not_rounded_again(stored: StoredModel, dtype: torch.dtype) -> None:
    half = {name: tensor.to(dtype) for name, tensor in stored.tensors.items()}
    name = "language.layers.1.attention.bias"
    found = relative_key_tensors(LANGUAGE, half)[f"{name}.{RELATIVE_KEYS}.1.weight"]
    same = {key: tensor.to(torch.float32) for key, tensor in half.items()}
    expected = relative_key_tensors(LANGUAGE, same)[f"{name}.{RELATIVE_KEYS}.1.weight"]
    assert found.dtype == found.read().dtype == torch.float32
    assert tuple(found.read().shape) == found.shape == (LANGUAGE.heads, LANGUAGE.head_width, CHUNK)
    assert torch.equal(found.read(), expected.read())


# Through ONNX Runtime


def test_the_graph_is_the_model_that_projects(exported, model: Flamingo) -> None:
    """Run every case of the comparison: with and without pictures, ragged, continued by one and by several tokens."""
    backend = OrtBackend({LANGUAGE_MODEL: read_bundle(exported()).graph_path(LANGUAGE_MODEL)}, CONFIG, threads=1)
    assert len({len(case.lengths) for case in CASES}) > 1
    assert check_parity(compute_reference(model), backend, CONFIG, 2e-5, graphs=(LANGUAGE_MODEL,))[LANGUAGE_MODEL] > 0


class Session:
    """Texts without pictures through the graph, with a cache of ``capacity`` tokens."""

    def __init__(self, bundle: Path, rows: int, capacity: int) -> None:
        self.backend = OrtBackend({LANGUAGE_MODEL: read_bundle(bundle).graph_path(LANGUAGE_MODEL)}, CONFIG, threads=1)
        spec, sizes = graph_specs(CONFIG)[LANGUAGE_MODEL], {"B": rows, "C": capacity, "S": CONFIG.resampler.latents}
        self.fixed = {tensor.name: np.zeros(tensor.resolve(sizes), np.float32) for tensor in spec.inputs
                      if "T" not in tensor.shape and tensor.dtype == "float32"}
        self.rows = rows

    def take(self, ids: np.ndarray, lengths: list[int]) -> np.ndarray:
        """Logits of the new tokens ids [B, T] behind ``lengths`` cached ones."""
        count = ids.shape[1]
        logits = np.empty((self.rows, count, LANGUAGE.vocab_size), np.float32)
        inputs = {
            "input_ids": np.ascontiguousarray(ids), "media_index": np.zeros_like(ids),
            "cache_length": np.array(lengths), "logits_index": np.tile(np.arange(count), (self.rows, 1)),
        }
        present = {present_name(layer, part): self.fixed[past_name(layer, part)]
                   for layer in range(LANGUAGE.layers) for part in ("key", "value")}
        self.backend.bind(LANGUAGE_MODEL, {**inputs, **self.fixed}, {"logits": logits, **present})()
        return logits


def test_texts_longer_than_a_chunk_are_continued_to_the_end_of_the_context(exported, model: Flamingo) -> None:
    """Prefill, several tokens over the end of a chunk, single ones up to it and over it, up to the last distance."""
    ids = random_ids(1, 3 * CHUNK)
    session, start = Session(exported(), 1, 3 * CHUNK), 0
    expected = expected_logits(model, ids[0])
    for count in (CHUNK - 3, 1, 1, 1, 1, CHUNK - 5, 7, CHUNK - 5, 1, 1):
        piece = slice(start, start + count)
        close(session.take(ids[:, piece], [start])[0], expected[piece])
        start += count
    assert start == 3 * CHUNK


def test_rows_of_other_chunks_are_decoded_together(exported, model: Flamingo) -> None:
    """A ragged batch whose shortest row needs one chunk and whose longest needs all."""
    lengths, steps = [2 * CHUNK + 5, 31, CHUNK - 1], 3
    ids = random_ids(3, max(lengths) + steps)
    rows = [np.concatenate([ids[row, :length], ids[row, max(lengths) :]]) for row, length in enumerate(lengths)]
    expected = [expected_logits(model, row) for row in rows]
    session = Session(exported(), 3, max(lengths) + steps)
    logits = session.take(ids[:, : max(lengths)], [0, 0, 0])
    for row, length in enumerate(lengths):
        close(logits[row, :length], expected[row][:length])
    for step in range(steps):
        logits = session.take(ids[:, max(lengths) + step][:, None], [length + step for length in lengths])
        for row, length in enumerate(lengths):
            close(logits[row], expected[row][length + step :][:1])


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_cache_beyond_the_last_distance_is_refused(exported, tokens: int) -> None:
    session = Session(exported(), 1, 4 * CHUNK)
    session.take(random_ids(1, 3 * CHUNK), [0])
    with pytest.raises(Exception, match=r"(?i)split"):
        session.take(random_ids(1, tokens), [3 * CHUNK])


def test_the_numbers_of_a_chunk_that_is_not_reached_do_not_matter(exported, tmp_path: Path) -> None:
    """Fill it with NaN: the logits must stay finite."""
    path = tmp_path / "language_model.onnx"
    proto = onnx.load(read_bundle(exported()).graph_path(LANGUAGE_MODEL))
    spoiled = [tensor for tensor in proto.graph.initializer if f".{RELATIVE_KEYS}.1." in tensor.name]
    assert len(spoiled) == LANGUAGE.layers
    for tensor in spoiled:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(tensor.dims), np.nan, np.float32), tensor.name))
    onnx.save(proto, path)
    session = Session(exported(), 1, CHUNK + 1)
    session.backend = OrtBackend({LANGUAGE_MODEL: path}, CONFIG, threads=1)
    assert np.isfinite(session.take(random_ids(1, CHUNK), [0])).all()
    assert np.isnan(session.take(random_ids(1, 1), [CHUNK])).all()


def test_the_graph_multiplies_with_chunks_and_projects_nothing(exported) -> None:
    graph = language_graph(exported())
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    chunks = {name for name in dims if f".{RELATIVE_KEYS}." in name}
    assert len(chunks) == 3 * LANGUAGE.layers
    assert {dims[name] for name in chunks} == {(LANGUAGE.heads, LANGUAGE.head_width, CHUNK)}
    assert not [name for name in dims if "bias.projection" in name]
    assert not {"Sin", "Cos", "Einsum"} & {node.op_type for node in graph.node}
    multiplied = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
    assert sorted(name for name in multiplied if name in chunks) == sorted(chunks)
    # Only the layers' own matrices are left: no table is transposed, cut or copied first.
    assert all(name in dims for name in multiplied)


def test_a_run_reads_the_distances_that_its_context_reaches(exported) -> None:
    weights = graph_weights(read_bundle(exported()).graph_path(LANGUAGE_MODEL))
    distance = LANGUAGE.layers * LANGUAGE.heads * LANGUAGE.head_width * 4
    assert weights.each_distance == distance
    assert weights.stored - weights.each_run == 3 * CHUNK * distance + LANGUAGE.vocab_size * weights.each_token
    assert weights.read(2, 9.5) == weights.each_run + 2 * weights.each_token + 9.5 * distance


# In other forms


def test_chunks_are_halved_with_the_other_matrices(exported, stored: StoredModel) -> None:
    """Check the stored bits; the export itself checks that the graph computes with them."""
    keys = relative_key_tensors(LANGUAGE, stored.tensors)
    graph = language_graph(exported("bf16"))
    chunks = {tensor.name: tensor for tensor in graph.initializer if f".{RELATIVE_KEYS}." in tensor.name}
    assert {tensor.data_type for tensor in chunks.values()} == {onnx.TensorProto.BFLOAT16}
    for name, tensor in chunks.items():
        expected = keys[name.removeprefix("model.")].read().to(torch.bfloat16)
        bits = np.frombuffer(tensor.raw_data, np.int16)
        assert np.array_equal(bits, expected.view(torch.int16).numpy().ravel()), name
    assert graph_weights(read_bundle(exported("bf16")).graph_path(LANGUAGE_MODEL)).each_distance * 2 == graph_weights(
        read_bundle(exported()).graph_path(LANGUAGE_MODEL)
    ).each_distance


@pytest.mark.parametrize("scheme", SCHEMES_OF["ort"])
def test_a_quantized_graph_keeps_its_chunks_and_answers(exported, stored: StoredModel, scheme: str) -> None:
    bundle = exported(scheme)
    keys = relative_key_tensors(LANGUAGE, stored.tensors)
    tensors = {tensor.name: tensor for tensor in language_graph(bundle).initializer}
    chunks = {name: tensor for name, tensor in tensors.items() if f".{RELATIVE_KEYS}." in name}
    assert len(chunks) == 3 * LANGUAGE.layers
    for name, tensor in chunks.items():
        expected = keys[name.removeprefix("model.")].read().numpy()
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), expected), name
    assert sum(name.endswith(".packed") for name in tensors) > 8
    record = read_bundle(bundle).quantization
    assert record is not None
    assert record["rounding"] == ("nearest" if scheme == "int8" else "gptq")
    answer = load(bundle).generate(["Output: a"], max_new_tokens=8).result()
    assert len(answer.tokens) > 0


def test_a_bundle_answers_like_the_model_that_projects(exported, model: Flamingo) -> None:
    runtime = load(exported())
    text = " ".join(TEXTS * 3)
    prompt = build_prompt([text], runtime.tokenizer)
    assert CHUNK < len(prompt) < 2 * CHUNK
    found = runtime.generate([text], max_new_tokens=6).result()
    ids, media_index = prompt.input_ids.tolist(), prompt.media_index.tolist()
    assert list(found.tokens) == generate_naively(model, ids, media_index, [], 6, runtime.tokenizer.stop_ids)
