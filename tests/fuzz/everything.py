"""Imports what children need, so that a fork has it at once.

Nothing here may start a thread that children need: they would not have it. The one that onnxruntime starts they do not.
"""

from __future__ import annotations

import cv2  # noqa: F401
import matplotlib  # noqa: F401
import onnxruntime  # noqa: F401
import PIL.features  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch  # noqa: F401

import flamingo_rt.bench  # noqa: F401
import flamingo_rt.checkpoints  # noqa: F401
import flamingo_rt.export.pipeline  # noqa: F401
import flamingo_rt.importing.openflamingo  # noqa: F401
import flamingo_rt.loading  # noqa: F401
import flamingo_rt.runtime.model  # noqa: F401
import flamingo_rt.training.trainer  # noqa: F401
from flamingo_rt.cli import COMMANDS
from flamingo_rt.presets import preset

for _module, _ in COMMANDS.values():
    __import__(_module)
# The first model on the meta device makes torch import hundreds of modules more.
flamingo_rt.checkpoints.expected_shapes(preset("tiny"))
