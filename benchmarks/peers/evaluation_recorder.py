"""OpenFlamingo's own evaluation on a small model, with every prompt, answer and score recorded.

The wheel of open_flamingo 2.0.1 has the evaluation but for ``eval/models/open_flamingo.py``, the class between it and
the model: that file is the repository's, at the commit that README.md names. What the evaluation imports and never
calls here is stood in for, and CIDEr, which needs Java: its input is recorded.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from PIL import Image

from benchmarks.peers.evaluation_items import CLASSES

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
NEVER_CALLED = {
    "pycocoevalcap": (), "pycocoevalcap.eval": ("COCOEvalCap",), "pycocotools": (), "pycocotools.coco": ("COCO",),
    "torchvision.datasets": ("ImageFolder",), "ok_vqa_utils": ("postprocess_ok_vqa_generation",),
}
SIBLINGS = ("utils", "classification_utils", "coco_metric", "eval_datasets", "eval_model", "rices", "vqa_metric")


def import_evaluation() -> Any:
    """The module ``evaluate`` of the wheel, which is written to be run as a script in its folder."""
    for name, attributes in NEVER_CALLED.items():
        module = types.ModuleType(name)
        for attribute in attributes:
            setattr(module, attribute, type(attribute, (), {}))
        sys.modules.setdefault(name, module)
    for name in SIBLINGS:  # imported by these names
        sys.modules[name] = importlib.import_module(f"open_flamingo.eval.{name}")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return importlib.import_module("open_flamingo.eval.evaluate")


def image_processor(image: Image.Image) -> torch.Tensor:
    """The result of open_clip's transforms for a picture of the encoder's size: nothing is resized or cropped."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).to(torch.float32) / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def make_recorder(source: Path, model: torch.nn.Module, tokenizer: Any) -> Any:
    """The evaluation's model (``source`` is its file) that records what it is asked and what it answers."""
    spec = importlib.util.spec_from_file_location("peer_eval_model", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Recorder(module.EvalModel):  # type: ignore[misc]
        """``calls``: a record for each prompt; ``demos``: the shots of the batch, which the evaluation may shuffle."""

        def __init__(self) -> None:  # the original downloads its parts
            self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor
            self.device, self.cast_dtype, self.autocast, self.lm_name = "cpu", None, nullcontext, "twin"
            self.tokenizer.padding_side = "left"
            self.calls: list[dict[str, Any]] = []
            self.demos: list[list[dict[str, Any]]] = []

        def get_outputs(self, batch_text: Any, batch_images: Any, **settings: Any) -> list[str]:
            outputs = super().get_outputs(batch_text=batch_text, batch_images=batch_images, **settings)
            self._record(batch_text, batch_images, [{"output": text, **settings} for text in outputs])
            return outputs

        def get_rank_classifications(self, batch_text: Any, batch_images: Any, names: Any, **settings: Any) -> Any:
            found = super().get_rank_classifications(batch_text, batch_images, names, **settings)
            other = super().get_rank_classifications(batch_text, batch_images, names,
                                                     **{**settings, "use_cache": not settings["use_cache"]})
            assert (found - other).abs().max() < 1e-4, "the peer's cache changes its likelihoods"
            self._record(batch_text, batch_images,
                         [{"likelihoods": [round(value, 6) for value in row]} for row in found.tolist()])
            return found

        def _record(self, texts: Any, images: Any, results: list[dict[str, Any]]) -> None:
            for text, pictures, demos, result in zip(texts, images, self.demos, results, strict=True):
                names = [name_of(picture) for picture in pictures]
                self.calls.append({
                    "query": names[-1], "shots": [name_of(demo["image"]) for demo in demos], "pictures": len(names),
                    "prompt": text, "ids": self.tokenizer(text)["input_ids"], **result,
                })

    return Recorder()


def name_of(image: Image.Image) -> str:
    return Path(image.filename).name  # type: ignore[attr-defined]


def record_demos(evaluate: Any, recorder: Any) -> None:
    """Keep the shots that the evaluation draws for each batch. Its random numbers stay its own."""
    draw = evaluate.utils.sample_batch_demos_from_query_set

    def drawn(*arguments: Any) -> Any:
        recorder.demos = draw(*arguments)
        return recorder.demos

    evaluate.utils.sample_batch_demos_from_query_set = drawn


def record_scores(evaluate: Any) -> dict[str, Any]:
    """A dictionary that gets the captions that CIDEr would be given, and the accuracy of each question."""
    found: dict[str, Any] = {}

    def cider(result_path: str, annotations_path: str) -> dict[str, float]:
        found["captions"] = {f"{entry['image_id']}.png": entry["caption"]
                             for entry in json.loads(Path(result_path).read_text())}
        return {"CIDEr": 0.0}

    judge = importlib.import_module("vqa_metric")

    class Judge(judge.VQAEval):  # type: ignore[misc, name-defined]
        def evaluate(self, *arguments: Any) -> None:
            super().evaluate(*arguments)
            found["accuracies"] = dict(self.evalQA)

    evaluate.compute_cider, judge.VQAEval = cider, Judge
    return found


class LabelledPictures(torch.utils.data.Dataset):
    """Pictures with a class, as the evaluation's dataset of ImageNet gives them. It asks for ``ocr`` too."""

    def __init__(self, root: str) -> None:
        folder = Path(root).parent
        self._entries = json.loads((folder / f"{Path(root).name}.json").read_text())
        self._folder = folder

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, name = self._entries[index]
        image = Image.open(self._folder / file)
        image.load()
        return {"id": index, "image": image, "class_id": CLASSES.index(name), "class_name": name, "ocr": None}
