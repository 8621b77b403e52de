"""A bundle with random weights in any lowering, or the prompts of ``flamingo-rt bench`` as files for the peers.

    python -m benchmarks.gpu_steps.random_graphs --model openflamingo-3b --lowering tensorrt --compute fp16 --out BUNDLE
    python -m benchmarks.gpu_steps.random_graphs --model openflamingo-3b --shots 32 --prompts FOLDER

``flamingo-rt bench --preset`` makes such bundles for ONNX Runtime alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import PIL.Image
from tokenizers import Tokenizer

from benchmarks.comparison.shapes import shape_of
from benchmarks.comparison.workload_folder import DESCRIPTION, write_folder
from benchmarks.peers.answer_timing import emit
from benchmarks.processes import folder_bytes
from benchmarks.random_sources import language_settings
from flamingo_rt.bench.workload import CAPTION, Pictures
from flamingo_rt.checkpoints import StoredModel
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.export.random_model import random_model
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.processing.tasks import caption_prompt, caption_shot
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.processing.visuals import Image

SEED = 20_261_123


def write_prompts(model: StoredModel, shots: int, folder: Path) -> None:
    """Write the prompts that bench measures without shots and with ``shots``, their pictures in the encoder's size, and
    the model's sizes for open_flamingo; nothing where the folder is whole already."""
    if (folder / DESCRIPTION).is_file():
        return
    config, blank, cases = model.config, Image(b""), []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(model.tokenizer, encoding="utf-8")
    tokenizer = TextTokenizer(folder / "tokenizer.json", config.tokens, config.language.vocab_size)
    for count in (0, shots):
        parts = [part for _ in range(count) for part in caption_shot(config, blank, CAPTION)]
        ids = build_prompt([*parts, *caption_prompt(config, blank)], tokenizer).input_ids.tolist()
        cases.append({"shots": count, "input_ids": ids, "pictures": [*range(1, count + 1), 0]})
    vision = config.vision
    (folder / "shape.json").write_text(json.dumps({
        "vision_width": vision.width, "vision_layers": vision.layers, "patch": vision.patch_size,
        "picture": vision.image_size, "language": language_settings(config), "rows": config.language.vocab_size,
        "interval": config.cross_attention.interval,
    }), encoding="utf-8")
    pictures = [PIL.Image.open(io.BytesIO(image.source)) for image in Pictures(SEED).take(shots + 1)]
    pictures = [picture.resize((vision.image_size,) * 2) for picture in pictures]
    write_folder(folder, config, Tokenizer.from_str(model.tokenizer), pictures, cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a preset with a ViT, or openflamingo-small")
    parser.add_argument("--lowering")
    parser.add_argument("--compute")
    parser.add_argument("--out", type=Path, metavar="BUNDLE")
    parser.add_argument("--compare", action="store_true", help="compare with PyTorch, and store reference outputs")
    parser.add_argument("--prompts", type=Path, metavar="FOLDER")
    parser.add_argument("--shots", type=int, default=32)
    options = parser.parse_args()
    model = random_model(shape_of(options.model))
    if options.prompts:
        write_prompts(model, options.shots, options.prompts)
    if options.out:
        how = {"lowering": options.lowering, "compute": options.compute, "compare": options.compare}
        export_model(model, options.out, overwrite=True, **how)
        emit({"bundle": str(options.out), "bytes": folder_bytes(options.out)})


if __name__ == "__main__":
    main()
