"""The image encoder of the recipe: EfficientNet-Lite2 as one ONNX file, and as a checkpoint of an external encoder.

    python -m recipes.photos.encoder [--overwrite]

Writes ``runs/photos/encoder.onnx`` and ``runs/photos/encoder``. Batch norms are not folded: the graph holds the numbers
of the package's file, bit for bit.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from flamingo_rt.config import PreprocessingConfig
from flamingo_rt.errors import DataError, FlamingoError
from flamingo_rt.files import check_file, check_output, replacing_file
from recipes.photos import FETCHED, WORK
from recipes.photos.efficientnet_lite import GRID, SIZE, WIDTH, EfficientNetLite2, read_efficientnet_lite2
from recipes.photos.fetch import fetched_folder
from recipes.photos.packages import ENCODER

ONNX, CHECKPOINT = WORK / "encoder.onnx", WORK / "encoder"
OPSET = 18
FEATURES = (GRID * GRID, WIDTH)
# As TensorFlow's EfficientNet-Lite: values of 0 to 255 less 127, over 128.
PREPROCESSING = PreprocessingConfig("crop", "bicubic", (127 / 255,) * 3, (128 / 255,) * 3)


def fetched_encoder(fetched: Path = FETCHED) -> EfficientNetLite2:
    """The fetched network. Raises `DataError` where it was not fetched, or is damaged."""
    files = sorted(fetched_folder(ENCODER, fetched).glob("*.pth"))
    if len(files) != 1:
        raise DataError(f"{fetched / ENCODER.name} holds {len(files)} files of weights, one was expected: remove it "
                        "and run python -m recipes.photos.fetch")
    return read_efficientnet_lite2(files[0])


def export_encoder(model: EfficientNetLite2, file: Path, overwrite: bool = False) -> None:
    """Write the encoder as one ONNX file: ``pixel_values`` float32 [N, 3, 260, 260] to ``features`` [N, 81, 1280].

    Raises `UsageError` where the file exists and may not be replaced, `DataError` where it cannot be written, and where
    the graph does not hold the model's weights bit for bit.
    """
    check_file(file, overwrite, "place")
    pixels = torch.zeros(2, 3, SIZE, SIZE)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with replacing_file(file) as beside:
        torch.onnx.export(
            model, (pixels,), beside, dynamo=True, opset_version=OPSET, optimize=False, external_data=False,
            input_names=["pixel_values"], output_names=["features"], dynamic_shapes={"pixel_values": {0: batch}},
            verbose=False,
        )
        check_weights(model, beside)


def check_weights(model: EfficientNetLite2, file: Path) -> None:
    """Raise `DataError` unless every tensor of the encoder is in the graph with the same bits."""
    held = {_bits(numpy_helper.to_array(each)) for each in onnx.load(file).graph.initializer}
    for name, tensor in model.state_dict().items():
        of_encoder = not name.startswith("fc.") and not name.endswith("num_batches_tracked")
        if of_encoder and _bits(tensor.numpy()) not in held:
            raise DataError(f"{file.name} does not hold {name} as the package's file does: this version of torch "
                            f"({torch.__version__}) changes weights when it exports; use another")


def _bits(array: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return array.shape, array.tobytes()


def main() -> int:
    """Export and import the encoder; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    overwrite = parser.parse_args().overwrite
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it says which libraries it does not find
    from flamingo_rt.importing.external_encoder import import_encoder

    try:
        check_output(CHECKPOINT, overwrite)
        export_encoder(fetched_encoder(), ONNX, overwrite)
        print(f"wrote {ONNX} ({ONNX.stat().st_size / 1e6:.1f} MB)", flush=True)
        import_encoder(ONNX, CHECKPOINT, SIZE, PREPROCESSING, features=FEATURES, overwrite=overwrite)
    except FlamingoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {CHECKPOINT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
