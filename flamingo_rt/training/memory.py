"""The memory that the processes of a run take on their host together, reckoned before a model is made."""

from __future__ import annotations

from flamingo_rt.model_memory import TRAINING, WEIGHTS, require_bytes
from flamingo_rt.training.sharding import World


def require_training_memory(parameters: int, trained: int, purpose: str, world: World) -> None:
    """Raise `DataError` where this host cannot train ``trained`` of a model's ``parameters`` parameters; every rank
    calls this before it makes its model.

    Each process first makes the whole model. Then it keeps its share of the weights, of the gradients and of AdamW's
    moments, on a GPU in the GPU's memory. Activations come on top.
    """
    more = TRAINING - WEIGHTS
    made = WEIGHTS * parameters * world.host_size
    kept = (WEIGHTS * parameters + more * trained) * world.host_size // world.size
    made_of = f"{parameters / 1e6:,.1f}M parameters, {WEIGHTS} bytes each; of these {trained / 1e6:,.1f}M are trained, "
    made_of += f"{more} bytes more each"
    if world.device.type == "cuda" or made > kept:
        made_of = f"{parameters / 1e6:,.1f}M parameters, {WEIGHTS} bytes each, whole in {world.host_size} processes"
    needed = made if world.device.type == "cuda" else max(made, kept)
    # One asks: another may have begun to make its model, in memory that this one would find taken.
    world.from_first(lambda: require_bytes(needed, purpose, made_of))
