"""The memory that the processes of a run take on their host together, reckoned before a model is made."""

from __future__ import annotations

from flamingo_rt.model_memory import TRAINING, WEIGHTS, require_bytes
from flamingo_rt.training.sharding import World


def require_training_memory(parameters: int, purpose: str, world: World) -> None:
    """Raise `DataError` where this host cannot train ``parameters`` parameters; every rank calls this before it makes
    its model.

    Each process first makes the whole model. Then it keeps its share of the weights, of their gradients and of AdamW's
    moments, on a GPU in the GPU's memory. Activations come on top.
    """
    made, kept = WEIGHTS * parameters * world.host_size, TRAINING * parameters * world.host_size // world.size
    made_of = f"{parameters / 1e6:,.1f}M parameters, {TRAINING} bytes each"
    if world.device.type == "cuda" or made > kept:
        made_of = f"{parameters / 1e6:,.1f}M parameters, {WEIGHTS} bytes each, whole in {world.host_size} processes"
    needed = made if world.device.type == "cuda" else max(made, kept)
    # One asks: another may have begun to make its model, in memory that this one would find taken.
    world.from_first(lambda: require_bytes(needed, purpose, made_of))
