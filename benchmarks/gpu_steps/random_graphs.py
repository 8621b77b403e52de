"""A bundle of a preset's shape with random weights in any lowering, and the prompts of ``flamingo-rt bench`` for peers.

    python -m benchmarks.gpu_steps.random_graphs --model openflamingo-3b --lowering tensorrt --compute fp16 --out BUNDLE

``flamingo-rt bench --preset`` makes such bundles for ONNX Runtime alone. ``--prompts FOLDER`` writes the prompts that
``bench`` measures, without shots and with ``--shots``, as every system of the comparison reads them. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import PIL.Image
from tokenizers import Tokenizer

from benchmarks.comparison.shapes import shape_of
from benchmarks.comparison.workload_folder import write_folder
from benchmarks.peers.answer_timing import emit
from benchmarks.processes import folder_bytes
from flamingo_rt.bench.workload import CAPTION, Pictures
from flamingo_rt.bundle import Bundle, is_bundle, read_bundle
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.export.random_model import random_model
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.processing.tasks import caption_prompt, caption_shot
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.processing.visuals import Image

SEED = 20_261_123


def export_random(model: str, out: Path, lowering: str, compute: str, compare: bool) -> None:
    """Export random weights of the shape ``model`` unless the bundle is there. Raises `FlamingoError`.

    Without ``compare`` the graphs are not compared with PyTorch, which takes minutes at a size of gigabytes.
    """
    if not is_bundle(out):
        random = random_model(shape_of(model))
        export_model(random, out, lowering=lowering, compute=compute, overwrite=True, compare=compare)


def write_prompts(bundle: Bundle, shots: int, folder: Path) -> None:
    """Write the prompts of ``flamingo-rt bench``, without shots and with ``shots``, and their pictures in the encoder's
    size; nothing where the folder is whole already. Raises `FlamingoError`."""
    if (folder / "workload.json").is_file():
        return
    config, tokenizer = bundle.config, Tokenizer.from_file(str(bundle.tokenizer_path))
    size = (config.vision.image_size,) * 2
    pictures = [PIL.Image.open(io.BytesIO(image.source)).resize(size) for image in Pictures(SEED).take(shots + 1)]
    write_folder(folder, config, tokenizer, pictures, [case(bundle, count) for count in (0, shots)])


def case(bundle: Bundle, shots: int) -> dict[str, Any]:
    """One prompt: its token ids, and the numbers of its pictures in reading order, the query's 0."""
    config, blank = bundle.config, Image(b"")
    tokenizer = TextTokenizer(bundle.tokenizer_path, config.tokens, config.language.vocab_size)
    parts = [part for _ in range(shots) for part in caption_shot(config, blank, CAPTION)]
    ids = build_prompt([*parts, *caption_prompt(config, blank)], tokenizer).input_ids.tolist()
    return {"shots": shots, "input_ids": ids, "pictures": [*range(1, shots + 1), 0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a preset, or openflamingo-small")
    parser.add_argument("--lowering", required=True)
    parser.add_argument("--compute", required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE")
    parser.add_argument("--compare", action="store_true", help="compare with PyTorch, and store reference outputs")
    parser.add_argument("--prompts", type=Path, metavar="FOLDER")
    parser.add_argument("--shots", type=int, default=32)
    options = parser.parse_args()
    export_random(options.model, options.out, options.lowering, options.compute, options.compare)
    if options.prompts:
        write_prompts(read_bundle(options.out), options.shots, options.prompts)
    emit({"bundle": str(options.out), "bytes": folder_bytes(options.out)})


if __name__ == "__main__":
    main()
