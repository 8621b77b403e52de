"""The memory that a run takes: that of its processes on their host together, reckoned before a model is made, and that
of a step, before the first."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flamingo_rt.config import LanguageConfig
from flamingo_rt.model_memory import TRAINING, WEIGHTS, require_bytes
from flamingo_rt.training.options import RunOptions
from flamingo_rt.training.sharding import World
from flamingo_rt.training.shortage import savings
from flamingo_rt.training.stage import Division

GRADIENT, MOMENTS = 4, 8  # bytes of a trained parameter, in float32


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


def decoder_bytes(
    language: LanguageConfig, gated: Sequence[int], tokens: int, options: RunOptions, learnt: int | None = None
) -> int:
    """Bytes of the activations that a decoder keeps for the backward pass of ``tokens`` tokens; ``gated`` are the
    widths of the feed-forward of its gated layers, ``learnt`` the positions whose logits are computed, by default all.

    A layer keeps about ten vectors of the model's width and three of its feed-forward's for each token. Where it is
    computed again it keeps what goes into it, and one layer at a time the rest. Of the logits there are three, two of
    them in float32 whatever the precision.
    """
    layers = [10 * language.width + 3 * width for width in (*[language.ff_width] * language.layers, *gated)]
    kept = len(layers) * language.width + max(layers) if options.checkpoint_activations else sum(layers)
    element = 2 if options.precision == "bf16" else 4
    logits = tokens if learnt is None else learnt
    return tokens * element * kept + logits * (element + 2 * 4) * language.vocab_size


def require_step_memory(
    activations: int, trained: int, has_moments: bool, options: RunOptions, division: Division, world: World
) -> None:
    """Raise `DataError` where the first step, which keeps ``activations`` bytes in each rank, does not fit: into the
    GPU's memory, or into the host's that its ranks share. Every rank calls this, when the model is made;
    ``has_moments``: so are the moments, by a run that goes on."""
    largest = max(world.gathered(activations))
    if not largest:
        return
    parameter = GRADIENT if has_moments else GRADIENT + MOMENTS
    needed = largest + parameter * trained // world.size
    made_of = f"{largest / 1e6:,.1f} MB of activations, and {parameter} bytes for each of {trained / 1e6:,.1f}M "
    made_of += "trained parameters"
    if world.size > 1:
        made_of += f", divided among {world.size} processes"
    resumed, anew = savings(options, division)
    remedy = f"{', '.join([*anew, *resumed])}, or take a machine with more memory"

    def check() -> None:
        if world.device.type == "cuda":
            require_bytes(needed, "a training step", made_of, remedy, _free_on_gpu(world.device))
        else:
            require_bytes(needed * world.host_size, "a training step", made_of, remedy)

    world.from_first(check)


def _free_on_gpu(device: torch.device) -> int:
    """Bytes that nothing holds, and those that torch holds without using them."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
