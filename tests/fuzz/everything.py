"""Imports what children need, so that a fork has it at once; nothing here may start a thread."""

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

for _module, _ in COMMANDS.values():
    __import__(_module)
