"""What must be computed in float32 in a graph of half precision?

    python -m benchmarks.half_precision [--checkpoint models/tiny] [--scenes 100] [--json]

The model is computed in PyTorch in fp16 and bf16, each operation rounded, norms and softmax written out
(`rounded_model.py`), with one kind of layer after the other kept in float32; and compared with float32: the logits of
the prompts that quantization is measured on, each graph's results going into the next, and captions of drawn scenes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.rounded_model import HEAD, KINDS, NORMS, SOFTMAX, RoundedBackend, Rounding, cosine, model_in
from flamingo_rt.checkpoints import StoredModel, open_checkpoint
from flamingo_rt.errors import FlamingoError
from flamingo_rt.evaluation.scene_accuracy import scene_accuracy
from flamingo_rt.export.checks.parity_cases import Reference, answer
from flamingo_rt.export.quantization.calibration import drawn_scenes
from flamingo_rt.export.quantization.calibration_cases import encode_prompts
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.runtime.model import Model

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
CHECKPOINT = Path(__file__).parent.parent / "models" / "tiny"
GRAPHS_KEEP = (NORMS, *SOFTMAX.values())  # what graphs of basic operators compute in float32


@dataclass(frozen=True)
class Cost:
    """How far from float32: ``cosine`` of the logits (mean, and of the worst prompt), their largest deviation, for how
    many tokens the likeliest next one is another, and captions right of those asked for (None: none were)."""

    kept: str
    cosine: float
    lowest_cosine: float
    deviation: float
    changed: int
    captions: int | None


def variants() -> dict[str, tuple[str, ...]]:
    """What is kept in float32, by the name of the row."""
    each = {f"{kind}": (kind,) for kind in KINDS}
    return {
        "nothing": (), **each, "norms and every softmax": GRAPHS_KEEP,
        "these and the head's product": (*GRAPHS_KEEP, HEAD), "all of these": KINDS,
    }


class Comparison:
    """One model in float32, and what it makes of the prompts and scenes."""

    def __init__(self, stored: StoredModel, folder: Path, scenes: int) -> None:
        self.stored, self.scenes = stored, scenes
        self.tokenizer = TextTokenizer(
            folder / "tokenizer.json", stored.config.tokens, stored.config.language.vocab_size
        )
        self.prompts = drawn_scenes(stored.config).measure
        self.exact = self._answers(model_in(stored, torch.float32), contextlib.nullcontext)

    @torch.no_grad()
    def _answers(self, model: Flamingo, within: Callable[[], Any]) -> Reference:
        dtype = model.language.embedding.weight.dtype
        vision = model.vision
        model.vision.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(dtype),))
        with within():
            reference = encode_prompts(model, self.tokenizer, self.prompts)
            answer(model, reference.cases)
        vision._forward_pre_hooks.popitem()
        return reference

    def cost(self, dtype: torch.dtype, name: str, kept: Collection[str] | None) -> Cost:
        """Of computing in ``dtype`` with the kinds in ``kept`` in float32; None: with PyTorch's own kernels."""
        model = model_in(self.stored, dtype)
        mode = None if kept is None else Rounding(model, dtype, kept)

        def within() -> Any:
            return contextlib.nullcontext() if mode is None else mode

        cosines, deviation, changed = [], 0.0, 0
        for found, exact in zip(self._answers(model, within).cases, self.exact.cases, strict=True):
            one, other = found.logits[0].float(), exact.logits[0]
            cosines.append(cosine(one, other))
            deviation = max(deviation, float((one - other).abs().max()))
            changed += int((one.argmax(-1) != other.argmax(-1)).sum())
        captions = self._captions(RoundedBackend(model, dtype, within))
        return Cost(
            name, float(torch.cat(cosines).mean()), float(min(each.mean() for each in cosines)), deviation, changed,
            captions,
        )

    def _captions(self, backend: RoundedBackend) -> int | None:
        if not self.scenes:
            return None
        accuracy = scene_accuracy(Model(backend, self.stored.config, self.tokenizer), self.scenes, 0)
        return sum(map(sum, accuracy.captions.values()))

    @property
    def tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(case.logits[0]) for case in self.exact.cases)


def table(dtype: str, costs: list[Cost], tokens: int, scenes: int) -> str:
    """A type's rows, in Markdown."""
    columns = ("cosine (lowest of a prompt)", "largest deviation", "tokens changed", "captions right")
    lines = [f"| {dtype}, in float32 | {' | '.join(columns)} |", "|---|---|---|---|---|"]
    for cost in costs:
        captions = "" if cost.captions is None else f"{cost.captions} of {scenes}"
        lines.append(
            f"| {cost.kept} | {cost.cosine:.6f} ({cost.lowest_cosine:.6f}) | {cost.deviation:.3f} | "
            f"{cost.changed} of {tokens} | {captions} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="default: that of the model in the package")
    parser.add_argument("--scenes", type=int, default=100, help="to caption; default %(default)s")
    parser.add_argument("--json", action="store_true", help="the figures as JSON alone")
    options = parser.parse_args()
    try:
        comparison = Comparison(open_checkpoint(options.checkpoint), options.checkpoint, options.scenes)
        costs: dict[str, list[Cost]] = {}
        for name, dtype in DTYPES.items():
            rows = {**variants(), "PyTorch's own kernels": None}
            costs[name] = [comparison.cost(dtype, row, kept) for row, kept in rows.items()]
            if not options.json:
                print(table(name, costs[name], comparison.tokens, options.scenes), end="\n\n", flush=True)
    except FlamingoError as error:
        raise SystemExit(str(error)) from error
    print(json.dumps({
        "torch": torch.__version__, "tokens": comparison.tokens, "scenes": options.scenes,
        "costs": {name: [asdict(cost) for cost in found] for name, found in costs.items()},
    }))


if __name__ == "__main__":
    main()
