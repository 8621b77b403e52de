"""One of two ranks that compute a step of the vision stage together. Usage: vision_ranks.py RANK FOLDER"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from made_pairs import add_gradient, vision_stage

from flamingo_rt.training.sharding import World, shard, whole


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    world = World(rank, 2)
    stage = vision_stage(world)
    shard(stage.model, stage.shards(), world)
    for step in range(2):  # two datasets, or two parts: gradients are added up
        loss = add_gradient(stage, step, world)
    before = {name: whole(parameter.grad).clone() for name, parameter in stage.model.named_parameters()}
    norm = stage.clip(0.5)
    after = {name: whole(parameter.grad).clone() for name, parameter in stage.model.named_parameters()}
    temperature = stage.scalars()["temperature"]
    torch.save((loss, norm, temperature, before, after), f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


main(int(sys.argv[1]), sys.argv[2])
