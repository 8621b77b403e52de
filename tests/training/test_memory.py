"""The memory of a step, reckoned before the first: what saves some is counted, what a stage refuses is not offered."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_model import small_config
from toy_stage import ToyStage, two_datasets

from flamingo_rt import model_memory
from flamingo_rt.errors import DataError
from flamingo_rt.training.loop import train
from flamingo_rt.training.memory import decoder_bytes, require_step_memory
from flamingo_rt.training.options import RunOptions
from flamingo_rt.training.sharding import World

PLAIN = RunOptions(workers=0)
RECOMPUTED, HALF = replace(PLAIN, checkpoint_activations=True), replace(PLAIN, precision="bf16")


class Alike(World):
    """A process of several that all have the same."""

    def gathered(self, value):
        return [value] * self.size

    def from_first(self, make):
        return make()


@pytest.fixture
def needed(monkeypatch):
    """Gives the bytes that a step is said to need, of all processes of a host."""
    found = []

    def require(needed, *arguments) -> None:
        found.append((needed, arguments[2], arguments[3] if len(arguments) > 3 else None))

    monkeypatch.setattr("flamingo_rt.training.memory.require_bytes", require)

    def ask(options=PLAIN, division="parts", world=None, trained=0, has_moments=False):
        require_step_memory(1000, trained, has_moments, options, division, world or World())
        return found.pop()

    return ask


def test_activations_are_fewer_where_they_are_computed_again_and_smaller_in_bfloat16() -> None:
    language = small_config().language
    plain, recomputed, half = (decoder_bytes(language, [64, 64], 10, options) for options in (PLAIN, RECOMPUTED, HALF))
    layers = language.layers * (10 * language.width + 3 * language.ff_width) + 2 * (10 * language.width + 3 * 64)
    assert plain == 4 * 10 * (layers + 3 * language.vocab_size)
    assert half == 10 * (2 * layers + 10 * language.vocab_size)
    assert decoder_bytes(language, [64, 64], 10, PLAIN, 3) == 4 * (10 * layers + 3 * 3 * language.vocab_size)
    inputs, one = (language.layers + 2) * language.width, 10 * language.width + 3 * max(language.ff_width, 64)
    assert recomputed == 4 * 10 * (inputs + one + 3 * language.vocab_size)
    assert recomputed < plain


def test_a_run_that_goes_on_has_its_moments_already(needed) -> None:
    assert needed(trained=100)[0] == 1000 + 12 * 100
    assert needed(trained=100, has_moments=True)[0] == 1000 + 4 * 100


def test_processes_share_their_hosts_memory_and_not_their_gpus(needed, monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert needed(world=Alike(0, 4), trained=100)[0] == 2 * (1000 + 12 * 100 // 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (777, 999))
    found, _, available = needed(world=Alike(0, 4, torch.device("cuda")), trained=100)
    assert (found, available) == (1000 + 12 * 100 // 4, 777)


@pytest.mark.parametrize(("options", "division", "remedy"), [
    (PLAIN, "parts", "lower the batch of the data, set precision to bf16, set checkpoint_activations, raise accumulate "
                     "(now 1), or take a machine with more memory"),
    (replace(RECOMPUTED, precision="bf16"), "ranks", "lower the batch of the data, divide the batch among more GPUs or "
                                                     "hosts (torchrun), or take a machine with more memory"),
])
def test_only_what_is_not_set_and_not_refused_is_offered(needed, options, division, remedy) -> None:
    assert needed(options, division)[1] == remedy


def test_a_run_whose_first_step_does_not_fit_ends_before_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ToyStage, "activation_bytes", lambda self, batch: 10**9)
    monkeypatch.setattr(model_memory, "available_bytes", lambda: 10**9)
    seen = []
    with pytest.raises(DataError, match=r"^a training step needs at least 1\.0 GB of memory \(1,000\.0 MB of activ"):
        train(ToyStage(two_datasets()), PLAIN, tmp_path / "out", World(), on_step=seen.append)
    assert not seen
