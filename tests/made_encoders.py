"""Small vision encoders of other projects: a torch module, the same as an ONNX graph, and graphs that spoil it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from small_model import TEXTS, small_config, small_flamingo
from torch import Tensor, nn

from flamingo_rt.checkpoints import StoredModel, open_checkpoint, save_checkpoint
from flamingo_rt.config import FlamingoConfig, PreprocessingConfig, TokensConfig
from flamingo_rt.importing.external_encoder import import_encoder
from flamingo_rt.training.parts import open_vision_part
from flamingo_rt.training.tokenizer_training import train_tokenizer

SIDE, WIDTH, CELLS = 16, 24, 16  # pixels of a side; features of a picture are 4 x 4 cells
FORMS = ("grid", "tokens", "vector")
PREPROCESSING = PreprocessingConfig("crop", "bilinear", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


class Encoder(nn.Module):
    """pixel_values [N, 3, 16, 16] -> a grid [N, 24, 4, 4], tokens [N, 16, 24], or a vector [N, 24]."""

    def __init__(self, form: str = "grid", seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.form, self.patches, self.mix = form, nn.Conv2d(3, WIDTH, 4, 4), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        grid = self.mix(torch.relu(self.patches(pixel_values)))
        if self.form == "grid":
            return grid
        return grid.mean((2, 3)) if self.form == "vector" else grid.flatten(2).mT


def features_of(module: Encoder, pixels: Tensor) -> Tensor:
    """Features [N, S, 24] as the contract has them, cell by cell."""
    given = module(pixels)
    if given.ndim == 2:
        return given[:, None]
    if given.ndim == 3:
        return given
    rows, columns = given.shape[2:]
    return torch.stack([given[:, :, row, column] for row in range(rows) for column in range(columns)], 1)


def encoder_graph(
    module: Encoder, *, given: str = "image", made: str = "embedding", shape: Sequence[Any] = ("batch", 3, SIDE, SIDE),
    dtype: int = TensorProto.FLOAT, after: Sequence[onnx.NodeProto] = (), outputs: Sequence[str] = (),
    inputs: Sequence[onnx.ValueInfoProto] = (), weights: Sequence[onnx.TensorProto] = (), opset: int = 13,
    domains: Sequence[str] = (), prefix: str = "w.",
) -> onnx.ModelProto:
    """The module's graph. ``after``: operators behind it, which make ``outputs``."""
    node = helper.make_node
    nodes = [
        node("Conv", [given, f"{prefix}patches", f"{prefix}patches.bias"], ["patches"], strides=[4, 4]),
        node("Relu", ["patches"], ["relu"]),
        node("Conv", ["relu", f"{prefix}mix", f"{prefix}mix.bias"], ["grid"], pads=[1, 1, 1, 1]),
    ]
    constants = [numpy_helper.from_array(array.detach().numpy(), name) for name, array in (
        (f"{prefix}patches", module.patches.weight), (f"{prefix}patches.bias", module.patches.bias),
        (f"{prefix}mix", module.mix.weight), (f"{prefix}mix.bias", module.mix.bias),
    )]
    if module.form == "grid":
        nodes[-1].output[0] = made
    elif module.form == "vector":
        nodes.append(node("GlobalAveragePool", ["grid"], ["pooled"]))
        nodes.append(node("Flatten", ["pooled"], [made]))
    else:
        constants.append(numpy_helper.from_array(np.array([0, WIDTH, -1], np.int64), "cells"))
        nodes += [node("Reshape", ["grid", "cells"], ["flat"]), node("Transpose", ["flat"], [made], perm=[0, 2, 1])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (outputs or [made])]
    picture = helper.make_tensor_value_info(given, dtype, shape)
    graph = helper.make_graph([*nodes, *after], "encoder", [picture, *inputs], values, [*constants, *weights])
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def written(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def with_weights_beside(path: Path, model: onnx.ModelProto, name: str = "weights.bin") -> Path:
    """The file of a model whose weights are in another file."""
    onnx.save_model(model, str(path), save_as_external_data=True, location=name, size_threshold=0)
    return path


def imported(folder: Path, module: Encoder | None = None, name: str = "encoder") -> Path:
    """The folder that import encoder writes of a module's graph."""
    file = written(folder / f"{name}.onnx", encoder_graph(module or Encoder()))
    import_encoder(file, folder / name, SIDE, PREPROCESSING)
    return folder / name


def external_checkpoint(folder: Path, encoder: Path) -> StoredModel:
    """A checkpoint of the small model with this encoder, in ``folder``; its head is not tied, and has a bias."""
    part, config = open_vision_part(encoder), small_config()
    config = replace(
        config, vision=part.config, preprocessing=part.preprocessing,
        language=replace(config.language, head_bias=True),
    )
    save_checkpoint(folder, external_flamingo(config, part.tensors["vision.graph"].read()),
                    train_tokenizer(TEXTS, config.language.vocab_size, TokensConfig()).to_str())
    return open_checkpoint(folder)


def external_flamingo(config: FlamingoConfig, graph: Tensor) -> nn.Module:
    model = small_flamingo(config)
    model.vision.load_state_dict({"graph": graph})
    return model
