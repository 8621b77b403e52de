"""Weights in the graphs: exactly the model's values, each stored once, read when it is written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import numpy_helper
from small_model import small_config, small_flamingo
from torch import Tensor

from flamingo_rt.checkpoints import DTYPES
from flamingo_rt.config import FlamingoConfig, ViTConfig
from flamingo_rt.contract import GRAPHS, LANGUAGE_MODEL
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.export.checks.parity import check_parity
from flamingo_rt.export.checks.parity_cases import compute_reference
from flamingo_rt.export.graph_weights import Weights, parts_of, save_graph
from flamingo_rt.export.tracing import trace_graphs
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.positions import alibi_slopes
from flamingo_rt.weights.lazy import LazyTensor

# A tied head, learnt positions (a second Gather of weights), biases; most matrices have more than 1024 numbers.
CONFIG: FlamingoConfig = replace(
    small_config(),
    vision=ViTConfig(image_size=32, patch_size=16, width=40, layers=1, heads=2, ff_width=48),
    language=replace(
        small_config().language, width=36, heads=6, kv_heads=3, head_width=16, layers=2, positions="learnt",
        attention_bias=True, ff_bias=True, tied_head=True,
    ),
)
HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
SMALL = 1024  # numbers; the optimizer compares tensors of up to this many, to store equal ones once


@dataclass(frozen=True)
class Traced:
    """A model in memory, its graphs before `Weights.store`, and what was read: while tracing, and until now."""

    model: Flamingo
    graphs: dict[str, onnx_ir.Model]
    while_tracing: Counter[str]
    reads: Counter[str]


def lazy(model: Flamingo, reads: Counter[str]) -> dict[str, LazyTensor]:
    def reader(name: str, values: Tensor) -> Callable[[], Tensor]:
        def read() -> Tensor:
            reads[name] += 1
            return values.clone()

        return read

    return {
        name: LazyTensor(tuple(t.shape), t.dtype, Path("weights"), reader(name, t.detach()), name)
        for name, t in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def traced() -> Traced:
    model, reads = small_flamingo(CONFIG), Counter()
    graphs = dict(trace_graphs(CONFIG, "ort", Weights(lazy(model, reads)).bind))
    return Traced(model, graphs, reads.copy(), reads)


@pytest.fixture(scope="module")
def unfolded(traced: Traced) -> dict:
    """The graphs whose matrices are to be rounded: no gate is multiplied into them."""
    return dict(trace_graphs(CONFIG, "ort", Weights(lazy(traced.model, Counter())).bind, fold_factors=False))


@pytest.fixture(scope="module")
def saved(traced: Traced, unfolded: dict, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """The graphs on disk with matrices of a type, written once for each."""
    folder = tmp_path_factory.mktemp("graphs")

    def save(dtype: str) -> dict[str, Path]:
        paths = {name: folder / dtype / f"{name}.onnx" for name in GRAPHS}
        if not (folder / dtype).exists():
            (folder / dtype).mkdir()
            for name, graph in (traced.graphs if dtype == "fp32" else unfolded).items():
                copy = graph.clone()
                Weights(lazy(traced.model, Counter()), DTYPES[dtype]).store(copy)
                save_graph(copy, paths[name])
        return paths

    return save


@dataclass(frozen=True)
class Stored:
    """An initializer that holds tensors of the model, side by side."""

    tensor: onnx.TensorProto
    parts: list[str]
    transposed: bool
    found: Tensor

    def expected(self, model: Flamingo, dtype: torch.dtype = torch.float32, gated: bool = True) -> Tensor:
        """Expected content: the parts, rounded to ``dtype``, times the gate behind each if ``gated``."""
        parts = [model.state_dict()[name].to(dtype).float() for name in self.parts]
        if gated:
            parts = [part * gate_behind(model, name) for part, name in zip(parts, self.parts, strict=True)]
        return torch.cat([part.t() for part in parts], dim=1) if self.transposed else parts[0]


def weights(name: str, path: Path, traced: Traced) -> Iterator[Stored]:
    """The initializers of a saved graph that are made of tensors of the model."""
    state, values = traced.model.state_dict(), traced.graphs[name].graph.initializers
    for tensor in onnx.load(path).graph.initializer:
        parts = [part for part, _ in parts_of(values[tensor.name])] if tensor.name in values else []
        if parts and set(parts) <= set(state):
            yield Stored(tensor, parts, ".transposed" in tensor.name, values_of(tensor))


def gate_behind(model: Flamingo, name: str) -> Tensor | float:
    """Factor on a matrix's products: the gate behind the last matrices of a cross-attention layer, else 1."""
    for last, gate in (("output.weight", "attention_gate"), ("ff.down.weight", "ff_gate")):
        if name.startswith("cross_attention.layers.") and name.endswith(last):
            return model.state_dict()[name.removesuffix(last) + gate].tanh()
    return 1.0


def values_of(tensor: onnx.TensorProto) -> Tensor:
    """Values of a tensor of any type, in float32."""
    return torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32))


def matrices(model: Flamingo) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim > 1}


# Tracing


def test_no_large_tensor_is_read_while_tracing(traced: Traced) -> None:
    state = traced.model.state_dict()
    assert all(state[name].numel() <= SMALL for name in traced.while_tracing)
    assert sum(tensor.numel() > SMALL for tensor in state.values()) > 20


def test_the_weights_of_linear_layers_are_stored_transposed(traced: Traced, saved) -> None:
    linear = {f"{name}.weight" for name, m in traced.model.named_modules() if isinstance(m, torch.nn.Linear)}
    stored = set()
    for name, path in saved("fp32").items():
        for each in weights(name, path, traced):
            stored |= set(each.parts) if each.transposed else set()
            assert each.transposed or not set(each.parts) & linear
    assert stored == linear


def test_matrices_of_one_input_are_stored_side_by_side(traced: Traced, saved) -> None:
    """Queries, keys and values; the media's keys and values of all layers; of an encoder with biases too."""
    merged = {}
    for name, path in saved("fp32").items():
        merged[name] = {tuple(part.rpartition(".attention.")[2] for part in each.parts)
                        for each in weights(name, path, traced) if len(each.parts) > 1}
    assert merged["language_model"] == {("query.weight", "key.weight", "value.weight")}
    assert ("resampler.layers.0.key.weight", "resampler.layers.0.value.weight") in merged["resampler"]
    layers = [f"cross_attention.layers.{layer}.{part}.weight" for layer in CONFIG.cross_layers
              for part in ("key", "value")]
    assert tuple(layers) in merged["resampler"]
    assert {len(parts) for parts in merged["vision_encoder"]} == {3}


def test_only_a_tied_embedding_is_transposed_at_run_time(traced: Traced) -> None:
    found = []
    for graph in traced.graphs.values():
        for node in graph.graph:
            if node.op_type == "Transpose" and node.inputs[0].is_initializer():
                found.append(node.inputs[0].name)
    assert found == ["model.language.embedding.weight"]


# Stored tensors


def test_initializers_hold_exactly_the_models_values(traced: Traced, saved) -> None:
    seen: Counter[str] = Counter()
    for name, path in saved("fp32").items():
        for each in weights(name, path, traced):
            assert each.tensor.data_type == onnx.TensorProto.FLOAT
            if any(gate_behind(traced.model, part) != 1 for part in each.parts):
                torch.testing.assert_close(each.found, each.expected(traced.model), rtol=1e-6, atol=0)
            else:
                assert torch.equal(each.found, each.expected(traced.model)), each.tensor.name
            seen.update(each.parts)
    assert set(matrices(traced.model)) <= set(seen)
    assert set(seen.values()) == {1}, "stored twice"


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", onnx.TensorProto.BFLOAT16), ("fp16", onnx.TensorProto.FLOAT16)])
def test_matrices_are_rounded_to_half_precision_and_vectors_are_not(traced: Traced, saved, dtype: str, kind) -> None:
    halved, whole = set(), set()
    for name, path in saved(dtype).items():
        for each in weights(name, path, traced):
            halve = len(each.tensor.dims) > 1
            assert each.tensor.data_type == (kind if halve else onnx.TensorProto.FLOAT), each.parts
            (halved if halve else whole).update(each.parts)
            # Gates are not folded into rounded matrices: the product would be rounded a second time.
            expected = each.expected(traced.model, DTYPES[dtype] if halve else torch.float32, gated=False)
            assert torch.equal(each.found, expected), each.parts
    assert halved == set(matrices(traced.model))
    assert len(whole) > 20


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_every_use_of_a_half_precision_matrix_is_cast(saved, dtype: str) -> None:
    """Find the cast behind the matrix, behind a Gather of its rows, or behind the Transpose of a tied embedding."""
    movers: Counter[str] = Counter()
    for path in saved(dtype).values():
        graph = onnx.load(path, load_external_data=False).graph
        half = {tensor.name for tensor in graph.initializer if tensor.data_type in HALF}
        assert half
        moved = set()
        for node in graph.node:
            for name in half & set(node.input):
                assert node.op_type in ("Cast", "Gather", "Transpose"), (node.op_type, name)
                if node.op_type != "Cast":
                    moved.add(node.output[0])
                    movers[node.op_type] += 1
        for node in graph.node:
            if moved & set(node.input):
                assert node.op_type == "Cast"
        casts = [node for node in graph.node if node.op_type == "Cast" and (half | moved) & set(node.input)]
        assert all(node.attribute[0].i == onnx.TensorProto.FLOAT for node in casts)
        assert half | moved >= {name for node in casts for name in node.input} >= moved
    assert movers == {"Gather": 2, "Transpose": 1}  # tokens and positions; the head


def test_constants_of_the_graph_are_not_rounded() -> None:
    """ALiBi's slopes are no weights; with 32 heads most of them are no numbers of bfloat16."""
    language = replace(CONFIG.language, positions="alibi", heads=32, kv_heads=32, head_width=4, layers=1)
    config = replace(CONFIG, language=language)
    model = small_flamingo(config)
    weights = Weights(lazy(model, Counter()), DTYPES["bf16"])
    for name, graph in trace_graphs(config, "ort", weights.bind):
        weights.store(graph)
        if name == LANGUAGE_MODEL:
            constants = [
                value.const_value.numpy() for key, value in graph.graph.initializers.items()
                if parts_of(value)[0][0] not in model.state_dict()
            ]
    slopes = alibi_slopes(32, language.alibi_max_bias).numpy()
    assert any(value.dtype == np.float32 and np.array_equal(value.ravel(), slopes) for value in constants)


def test_float32_matrices_are_left_as_they_are(traced: Traced) -> None:
    for graph in traced.graphs.values():
        copy = graph.clone()
        Weights(lazy(traced.model, Counter())).store(copy)
        assert [node.op_type for node in copy.graph] == [node.op_type for node in graph.graph]
        assert [value.dtype for value in copy.graph.initializers.values()] == [
            value.dtype for value in graph.graph.initializers.values()
        ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_graphs_are_valid_and_compute_what_the_rounded_model_computes(traced: Traced, saved, dtype: str) -> None:
    paths = saved(dtype)
    for path in paths.values():
        onnx.checker.check_model(path)
    rounded = Flamingo(CONFIG).eval()
    rounded.load_state_dict({
        name: tensor.to(DTYPES[dtype]).float() if tensor.ndim > 1 else tensor
        for name, tensor in traced.model.state_dict().items()
    })
    parity = check_parity(compute_reference(rounded), OrtBackend(paths, CONFIG, threads=1), CONFIG, tolerance=2e-5)
    assert set(parity) == set(GRAPHS)


# Writing


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_large_weight_is_read_and_written_once(traced: Traced, tmp_path: Path, dtype: str) -> None:
    before, told = traced.reads.copy(), []
    for name, graph in traced.graphs.items():
        copy = graph.clone()
        Weights(lazy(traced.model, Counter()), DTYPES[dtype]).store(copy)
        save_graph(copy, tmp_path / f"{name}.onnx", lambda tensor, size: told.append((tensor, size)))
    reads = traced.reads - before
    large = {name: tensor for name, tensor in matrices(traced.model).items() if tensor.numel() > SMALL}
    assert {name: reads[name] for name in large} == dict.fromkeys(large, 1)
    values = {name: value for graph in traced.graphs.values() for name, value in graph.graph.initializers.items()}
    parts = {name: [part for part, _ in parts_of(values[name])] for name, _ in told}
    written = Counter(part for name, _ in told for part in parts[name])
    assert {name: written[name] for name in large} == dict.fromkeys(large, 1)
    itemsize, state = DTYPES[dtype].itemsize, traced.model.state_dict()
    for name, size in told:
        if set(parts[name]) & set(large):
            assert size == itemsize * sum(state[part].numel() for part in parts[name])


# A language model of ten matrices of 16 MB that are made when they are read, and a few small ones.
WRITE = """
import sys
from pathlib import Path

import torch

import flamingo_rt.export.tracing as graphs
from flamingo_rt.checkpoints import DTYPES, expected_shapes
from flamingo_rt.config import CrossAttentionConfig, FlamingoConfig, LanguageConfig, ResamplerConfig, ViTConfig
from flamingo_rt.export.graph_weights import Weights, save_graph
from flamingo_rt.weights.lazy import LazyTensor

config = FlamingoConfig(
    vision=ViTConfig(image_size=32, patch_size=16, width=32, layers=1, heads=2, ff_width=32),
    resampler=ResamplerConfig(width=32, layers=1, heads=2, head_width=16, latents=4),
    cross_attention=CrossAttentionConfig(heads=2, head_width=16, ff_multiplier=16),
    language=LanguageConfig(vocab_size=64, width=512, layers=2, heads=8, kv_heads=2, head_width=64, ff_width=8192,
                            activation="swiglu", context=64),
)

def memory(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) * 1024

used = []  # at each reading of a large tensor, wherever it happens

def made(name, shape):
    def read():
        if torch.Size(shape).numel() > 1e6:
            used.append(memory("VmRSS:"))
        return torch.full(shape, 0.01)
    return LazyTensor(shape, torch.float32, Path("made"), read, name)

weights = Weights({name: made(name, shape) for name, shape in expected_shapes(config).items()}, DTYPES[sys.argv[1]])
graphs.GRAPHS = ("language_model",)
(_, graph), = graphs.trace_graphs(config, "ort", weights.bind)
weights.store(graph)
before = memory("VmHWM:")
save_graph(graph, Path(sys.argv[2]))
written = Path(sys.argv[2] + ".data").stat().st_size
print(len(used), written, max(used) - used[0], memory("VmHWM:") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured through /proc")
def test_a_few_weights_are_in_memory_while_a_graph_is_written(tmp_path: Path) -> None:
    """Measured at every reading, and as the peak of the writing; memory is given back when it is freed."""
    command = [sys.executable, "-c", WRITE, "bf16", str(tmp_path / "graph.onnx")]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    count, written, growth, peak = map(int, done.stdout.split())
    assert count == 10
    assert written > 80e6  # 160 MB in float32
    assert growth < 60e6
    assert peak < 80e6  # the largest are two of them side by side, in float32, and their copy
