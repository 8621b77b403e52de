"""Sharding among ranks, without a second one: what each holds and needs, and the environment that starts it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flamingo_rt import model_memory
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.training.memory import require_training_memory
from flamingo_rt.training.sharding import World, join_world, whole_state


class Alone(World):
    """A rank of several that waits for no other."""

    def from_first(self, make):
        return make()


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_gathers_all_tensors_and_the_first_one_keeps_them(monkeypatch, rank) -> None:
    asked = []
    monkeypatch.setattr("flamingo_rt.training.sharding.whole", lambda tensor: asked.append(tensor.shape) or tensor)
    model = nn.Linear(3, 2)
    state = whole_state(model, World(rank, 2))
    assert asked == [(2, 3), (2,)]
    assert list(state) == (["weight", "bias"] if rank == 0 else [])


@pytest.mark.parametrize(("size", "on_host", "device", "needed"), [
    (1, None, "cpu", 16), (2, None, "cpu", 16), (8, None, "cpu", 32), (8, "2", "cpu", 8), (8, "4", "cpu", 16),
    (8, "4", "cuda", 16), (1, None, "cuda", 4),
])
def test_memory_is_that_of_all_ranks_on_the_host(monkeypatch, size, on_host, device, needed) -> None:
    """``needed``: bytes a parameter, of whole models (4 bytes in each rank) or of what is kept (16 bytes, divided)."""
    if on_host is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", on_host)
    world = Alone(0, size, torch.device(device))
    monkeypatch.setattr(model_memory, "available_bytes", lambda: 1000 * needed)
    require_training_memory(1000, 1000, "training it", world)
    monkeypatch.setattr(model_memory, "available_bytes", lambda: 1000 * needed - 1)
    with pytest.raises(DataError, match=r"^training it needs at least .* bytes each"):
        require_training_memory(1000, 1000, "training it", world)


@pytest.mark.parametrize(("given", "said"), [
    ({"WORLD_SIZE": "2"}, "RANK, MASTER_PORT, MASTER_ADDR are missing or no number: start with torchrun"),
    ({"WORLD_SIZE": "two", "RANK": "0", "MASTER_PORT": "1", "MASTER_ADDR": "localhost"},
     "WORLD_SIZE is 'two' in the environment, and of what torchrun sets with it WORLD_SIZE is missing or no number"),
])
def test_an_environment_with_some_of_torchruns_variables_is_refused(monkeypatch, given, said) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("WORLD_SIZE", "RANK", "MASTER_PORT", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said):
        join_world()
