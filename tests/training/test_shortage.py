"""Too little memory in a step: the remedies are those that the stage accepts, and that are not taken yet."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flamingo_rt.errors import DataError
from flamingo_rt.training.options import RunOptions
from flamingo_rt.training.shortage import shortage_explained

PLAIN = RunOptions()
TAKEN = replace(PLAIN, checkpoint_activations=True, accumulate=4, precision="bf16")


@pytest.mark.parametrize(("options", "division", "said"), [
    (PLAIN, "parts", "to go on from a saved state with --resume, set checkpoint_activations or raise accumulate (now "
                     "1); to start anew with less, lower the batch of the data, or set precision to bf16"),
    (PLAIN, "ranks", "to go on from a saved state with --resume, set checkpoint_activations or divide the batch among "
                     "more GPUs or hosts (torchrun); to start anew with less, lower the batch of the data, or set "
                     "precision to bf16"),
    (TAKEN, "parts", "to go on from a saved state with --resume, raise accumulate (now 4); to start anew with less, "
                     "lower the batch of the data"),
    (TAKEN, "ranks", "to go on from a saved state with --resume, divide the batch among more GPUs or hosts (torchrun); "
                     "to start anew with less, lower the batch of the data"),
])
def test_only_what_the_stage_accepts_and_is_not_set_already_is_a_remedy(options, division, said) -> None:
    with pytest.raises(DataError) as caught, shortage_explained(options, 7, division):
        raise torch.OutOfMemoryError("none left")
    assert str(caught.value) == f"memory ran out at step 7 (none left): {said}"
