"""EfficientNet-Lite2 as the recipe writes it: its padding, its sizes, its weights, its graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flamingo_rt.errors import DataError, UsageError
from recipes.photos.efficientnet_lite import (
    CLASSES,
    GRID,
    SIZE,
    WIDTH,
    EfficientNetLite2,
    SameConv2d,
    own_name,
    read_efficientnet_lite2,
)
from recipes.photos.encoder import check_weights, export_encoder, fetched_encoder


@pytest.fixture(scope="module")
def model() -> EfficientNetLite2:
    torch.manual_seed(0)
    made = EfficientNetLite2().eval()
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
    return made


def their_name(name: str) -> str:
    """A tensor's name in the package's file."""
    return ".".join(f"_{part}" if part not in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
                    and not part.isdigit() else part for part in name.split("."))


@pytest.mark.parametrize(("kernel", "stride", "side"), [
    (3, 2, 12), (3, 2, 13), (5, 2, 13), (5, 2, 12), (3, 1, 9), (5, 1, 8), (1, 1, 4), (3, 2, 2),
])
def test_padding_is_tensorflows(kernel: int, stride: int, side: int) -> None:
    torch.manual_seed(kernel)
    convolution = SameConv2d(2, 2, kernel, stride, side, 2)
    pixels = torch.randn(1, 2, side, side)
    out = -(-side // stride)
    total = max((out - 1) * stride + kernel - side, 0)
    padded = torch.zeros(1, 2, side + total, side + total)
    padded[:, :, total // 2 : total // 2 + side, total // 2 : total // 2 + side] = pixels
    expected = torch.zeros(1, 2, out, out)
    for channel in range(2):
        for row in range(out):
            for column in range(out):
                top, left = row * stride, column * stride
                window = padded[0, channel, top : top + kernel, left : left + kernel]
                expected[0, channel, row, column] = (window * convolution.weight[channel, 0]).sum()
    with torch.no_grad():
        torch.testing.assert_close(convolution(pixels), expected, rtol=1e-5, atol=1e-6)


def test_its_size_is_the_published_one(model: EfficientNetLite2) -> None:
    assert sum(tensor.numel() for tensor in model.parameters()) == 6_092_072  # "6.1M"
    assert len(model.blocks) == 21
    assert [type(block.bn2).__name__ for block in model.blocks] == ["BatchNorm2d"] * 21
    assert [block.bn2.num_features for block in model.blocks] == [  # type: ignore[union-attr]
        16, *[24] * 3, *[48] * 3, *[88] * 4, *[120] * 4, *[208] * 5, 352]


def test_features_are_the_grid_row_by_row_and_the_classifier_reads_their_mean(model: EfficientNetLite2) -> None:
    grids = []
    handle = model.bn1.register_forward_hook(lambda module, given, out: grids.append(out.clamp(0, 6)))
    with torch.no_grad():
        features = model(torch.randn(1, 3, SIZE, SIZE))
        logits = model.classify(features)
    handle.remove()
    assert features.shape == (1, GRID * GRID, WIDTH)
    assert torch.equal(features[0, 2 * GRID + 5], grids[0][0, :, 2, 5])
    assert logits.shape == (1, CLASSES)
    torch.testing.assert_close(logits, model.fc(grids[0].mean((2, 3))))


def test_weights_are_read_by_the_packages_names(model: EfficientNetLite2, tmp_path: Path) -> None:
    theirs = {their_name(name): tensor for name, tensor in model.state_dict().items()}
    assert "_blocks.0._depthwise_conv.weight" in theirs
    assert all(own_name(name) in model.state_dict() for name in theirs)
    torch.save(theirs, tmp_path / "weights.pth")
    read = read_efficientnet_lite2(tmp_path / "weights.pth")
    assert not read.training
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(DataError, match="cannot be read"):
        read_efficientnet_lite2(tmp_path / "bad.pth")
    for content in ({"_conv_stem.weight": torch.zeros(1)}, [1], {1: torch.zeros(1)}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(DataError, match="does not hold EfficientNet-Lite2"):
            read_efficientnet_lite2(tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"recipes\.photos\.fetch"):
        fetched_encoder(tmp_path)


@pytest.mark.slow
def test_the_graph_computes_the_features_with_the_weights_own_bits(model: EfficientNetLite2, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    file = tmp_path / "encoder.onnx"
    export_encoder(model, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        pixels = torch.randn(count, 3, SIZE, SIZE)
        with torch.no_grad():
            expected = model(pixels).numpy()
        np.testing.assert_allclose(session.run(["features"], {"pixel_values": pixels.numpy()})[0], expected, atol=1e-4)
    with pytest.raises(UsageError, match="already exists"):
        export_encoder(model, file)
    with torch.no_grad():
        model.bn1.weight[0] += 1e-6
    with pytest.raises(DataError, match=r"bn1\.weight"):
        check_weights(model, file)
