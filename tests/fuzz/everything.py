"""Imports of everything that children need, so that a fork has it at once.

Nothing here may start a thread that children need, since a fork has none of the parent's. They do not need the one that
onnxruntime starts.
"""

from __future__ import annotations

import cv2  # noqa: F401
import matplotlib  # noqa: F401
import PIL.features  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch  # noqa: F401

import flamingo_rt.bench
import flamingo_rt.checkpoints
import flamingo_rt.export.pipeline
import flamingo_rt.importing.external_encoder
import flamingo_rt.importing.openflamingo
import flamingo_rt.loading
import flamingo_rt.runtime.model
import flamingo_rt.training.flamingo_start
import flamingo_rt.training.loop
from flamingo_rt.cli import COMMANDS
from flamingo_rt.engines.ort import import_onnxruntime
from flamingo_rt.presets import preset

import_onnxruntime()  # as the first import does in a user's process: its default logger is quiet then
for _module, _ in COMMANDS.values():
    __import__(_module)
# The first model on the meta device makes torch import hundreds of modules more.
flamingo_rt.checkpoints.expected_shapes(preset("tiny"))
