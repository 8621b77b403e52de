"""The second of two ranks that compute gradients of the vision stage together. Usage: second_rank.py FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from made_pairs import added_gradients, meeting, vision_stage

from flamingo_rt.training.data.pair_batches import PairBatch

torch.set_num_threads(1)
folder = Path(sys.argv[1])
batches = [PairBatch(*tensors) for tensors in torch.load(folder / "batches.pt")]
with meeting(folder, 1) as world:
    found = added_gradients(vision_stage(world, captioning=0.5), batches, world, 0.5)
    torch.save(found.after, folder / "second.pt")
