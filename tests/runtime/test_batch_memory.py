"""Memory: what a batch needs is known before it is taken, and a batch that does not fit is refused."""

import subprocess
import sys
from dataclasses import replace

import pytest
from recording import RecordingEngine

from flamingo_rt.contract import LANGUAGE_MODEL, graph_specs
from flamingo_rt.errors import DataError
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.runtime import batch_memory
from flamingo_rt.runtime.activation_memory import prefill_bytes
from flamingo_rt.runtime.model import Model
from flamingo_rt.system_memory import MEMINFO

TOKEN = 2 * 2 * 2 * 16 * 4  # bytes of the cache: layers, keys and values, heads, width, float32


@pytest.fixture
def have(monkeypatch):
    """Sets how much memory there is."""
    return lambda count: monkeypatch.setattr(batch_memory, "available_bytes", lambda: count)


@pytest.fixture
def specs(config):
    return graph_specs(config)


def test_the_needed_memory_is_that_of_the_arrays_the_decoder_binds(flamingo, config, tokenizer, pictures, specs):
    backend = RecordingEngine(TorchBackend(flamingo))
    model = Model(backend, config, tokenizer)
    model.generate_batch([[pictures[0], "a", pictures[1], "b"], [pictures[2], "ab"]], max_new_tokens=5)
    bound = backend.of(LANGUAGE_MODEL)[0]
    arrays = [array for name, array in bound.inputs.items() if "ids" not in name and "index" not in name]
    taken = sum(array.nbytes for array in [*arrays, bound.outputs["logits"]])
    capacity = bound.inputs["past_key_values.0.key"].shape[2]
    needed = batch_memory.needed_bytes(specs, rows=2, capacity=capacity, visuals=2)
    assert taken <= needed <= taken + 2 * 8 * (2 * capacity + 1)  # plus input_ids and media_index


def test_a_token_more_needs_its_keys_and_values_in_every_layer(specs):
    ids = 2 * 8  # input_ids and media_index
    assert batch_memory.needed_bytes(specs, 3, 11, 1) - batch_memory.needed_bytes(specs, 3, 10, 1) == 3 * (TOKEN + ids)


def reading(config, rows, tokens=2, total=2):
    return prefill_bytes(config, rows, tokens, total)


@pytest.mark.parametrize("beams", [1, 3])
def test_an_answer_that_fits_is_given(beams, torch_model, specs, config, have):
    """Reckon with the beginning-of-text token, "x" and four more; beams read their prompt once."""
    have(batch_memory.needed_bytes(specs, beams, 6, 0) + reading(config, 1))
    assert torch_model.generate("x", max_new_tokens=4, beams=beams).result().tokens


def test_a_batch_that_does_not_fit_is_told_how_many_rows_would(torch_model, specs, config, have):
    have(3 * (batch_memory.needed_bytes(specs, 1, 6, 0) + reading(config, 1)) + 5)
    assert len(torch_model.generate_batch(["x"] * 3, max_new_tokens=4)) == 3
    with pytest.raises(DataError, match=r"4 rows of 6 tokens .* take .* MB, .* MB are available; 3 of these rows"):
        torch_model.generate_batch(["x"] * 4, max_new_tokens=4)


def test_beams_that_do_not_fit_are_counted_as_such(torch_model, specs, config, have):
    have(2 * batch_memory.needed_bytes(specs, 1, 6, 0) + reading(config, 1))
    with pytest.raises(DataError, match=r"5 beams of 6 tokens .*; 2 of these beams would fit"):
        torch_model.generate("x", beams=5, max_new_tokens=4)


def test_a_row_that_does_not_fit_is_told_how_many_tokens_would(torch_model, specs, config, have):
    have(batch_memory.needed_bytes(specs, 1, 30, 0) + reading(config, 1))
    with pytest.raises(DataError, match=r"one row of 66 tokens .*; 30 tokens would fit: use fewer shots"):
        torch_model.generate("x")
    have(10)
    with pytest.raises(DataError, match=r"; 0 tokens would fit"):
        torch_model.generate("x")


def test_rows_behind_a_prefix_are_read_one_at_a_time(torch_model, specs, config, have):
    shots = torch_model.prompt("Output: a")
    total = len(shots) + 1  # "x"
    have(batch_memory.needed_bytes(specs, 3, total + 4, 0) + reading(config, 1, 1, total))
    assert len(torch_model.generate_batch(["x"] * 3, prefix=shots, max_new_tokens=4)) == 3


# Memory of prefill


def with_language(config, **changes):
    return replace(config, language=replace(config.language, **changes))


def test_without_a_bias_prefill_grows_with_the_tokens_alone(config):
    one = prefill_bytes(config, 1, 100, 100)
    assert prefill_bytes(config, 3, 200, 5000) == pytest.approx(6 * one)
    # Per token: three vectors of 32, and seven of the gated feed-forward's 64, float32, with the arena's gaps.
    assert one == pytest.approx(1.15 * 100 * 4 * (3 * 32 + 7 * 64))


@pytest.mark.parametrize(("positions", "pair"), [("alibi", 4 * 4), ("relative", 20 * 4 + 24)])
def test_a_position_bias_takes_a_number_for_each_pair_of_tokens_and_head(config, positions, pair):
    config = with_language(config, ff_width=640)  # its feed-forward is the largest layer, whatever positions add
    biased = with_language(config, positions=positions)
    more = prefill_bytes(biased, 2, 70, 90) - prefill_bytes(config, 2, 70, 90)
    assert more == pytest.approx(2 * 70 * 90 * pair, abs=1)


def test_every_token_has_a_score_for_every_latent_of_its_row_and_its_mask(config):
    latents, heads = config.resampler.latents, config.cross_attention.heads
    more = prefill_bytes(config, 2, 70, 90, visuals=5) - prefill_bytes(config, 2, 70, 90)
    assert more == pytest.approx(2 * 70 * 5 * latents * 4 * (heads + 3), abs=1)


def test_normed_queries_and_keys_are_held_beside_the_others(config):
    wide = with_language(config, head_width=64)  # so that attention is the largest layer
    more = prefill_bytes(replace(wide, language=replace(wide.language, query_key_norm=True)), 1, 100, 100)
    assert more - prefill_bytes(wide, 1, 100, 100) == pytest.approx(1.15 * 100 * 4 * 3 * (4 + 2) * 64, abs=1)


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from flamingo_rt.bundle import read_bundle
from flamingo_rt.bench.machine import reset_peak
from flamingo_rt.contract import GRAPHS
from flamingo_rt.engines.ort import OrtBackend
from flamingo_rt.runtime.decoder import Decoder, Row
from flamingo_rt.runtime.activation_memory import prefill_bytes

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def decoder(tokens):
    made = Decoder(backend, bundle.config, 1, tokens)
    ids = np.ones(tokens, dtype=np.int64)
    return made, [Row(ids, np.zeros_like(ids), [])]

bundle, tokens = read_bundle(Path(sys.argv[1])), 8000
backend = OrtBackend({name: bundle.graph_path(name) for name in GRAPHS}, bundle.config, threads=1)
first, rows = decoder(8)
first.prefill(rows)
long, rows = decoder(tokens)
for array in long._cache.buffers().values():
    array[:] = 1
reset_peak()
before = status("VmRSS")
long.prefill(rows)
print(prefill_bytes(bundle.config, 1, tokens, tokens) / (status("VmHWM") - before))
"""


@pytest.mark.skipif(not MEMINFO.exists(), reason="this system does not say what a process takes")
def test_a_prefill_takes_about_what_is_reckoned(bundle_folder):
    done = subprocess.run([sys.executable, "-c", MEASURED, str(bundle_folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0.4 < float(done.stdout) < 2.5, done.stdout


@pytest.mark.parametrize("call", [
    lambda model, parts: model.prompt(parts), lambda model, parts: model.score(parts, ["yes"]),
    lambda model, parts: model.generate(parts), lambda model, parts: model.generate(parts, beams=2),
], ids=["prompt", "score", "generate", "beams"])
def test_a_batch_that_does_not_fit_computes_nothing(call, flamingo, config, tokenizer, pictures, have):
    backend = RecordingEngine(TorchBackend(flamingo))
    have(1000)
    with pytest.raises(DataError, match=r"0.0 MB are available"):
        call(Model(backend, config, tokenizer), [pictures[0], "x"])
    assert not backend.bound


def test_a_batch_is_tried_where_the_available_memory_is_unknown(torch_model, have):
    have(None)
    assert torch_model.generate("x", max_new_tokens=2).result().tokens
