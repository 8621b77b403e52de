"""Fine-tuning on a folder of pictures of one's own: how many captions of held-out ones are right before and after.

    python -m benchmarks.finetune_pictures [--models tiny,openflamingo] [--pictures 200] [--held-out 50] [--steps N]

The pictures are charts that matplotlib draws (`drawn_charts.py`); no model here has seen one. Fine-tuned are the
packaged model's checkpoint, ``models/tiny``, and a small OpenFlamingo of random weights that ``flamingo-rt import``
reads from the three files of its kind. Everything goes through the commands: train, export, and answers of the
exported bundle. An answer is right when it is the caption, word by word. The last line is JSON, which is also written
to ``benchmarks/results``. Needs the extras ``train``, ``export`` and ``bench``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flamingo_rt
from benchmarks.dated_result import RESULTS, write_result
from benchmarks.drawn_charts import Chart, draw_chart, write_chart_folder
from benchmarks.processes import ROOT, toolkit
from benchmarks.random_sources import write_sources
from flamingo_rt import Image
from flamingo_rt.config import FlamingoConfig, ViTConfig
from flamingo_rt.presets import preset
from flamingo_rt.training.run_log import log_path, read_log

LEARNT, HELD_OUT = 1, 2  # seeds of the charts
LONGEST = 48  # tokens of an answer
AVERAGED = 10  # steps of a loss in the table


@dataclass(frozen=True)
class Way:
    """A way to fine-tune a model: options of ``flamingo-rt train flamingo``."""

    steps: int
    batch: int
    learning_rate: float
    unfreeze: str = ""
    lora: int = 0

    def arguments(self) -> list[str]:
        """The options of the command, beside where it starts, its data and its output."""
        return [
            "--steps", str(self.steps), "--learning-rate", str(self.learning_rate), "--warmup-steps", "20",
            "--schedule", "cosine", *(["--unfreeze", self.unfreeze] if self.unfreeze else []),
            *(["--lora", str(self.lora)] if self.lora else []),
        ]


WAYS = {
    # Its encoder knows drawn scenes alone, so that is trained too.
    "tiny": Way(steps=300, batch=16, learning_rate=1e-3, unfreeze="vision,language"),
    # Its frozen parts are of random weights, and know nothing.
    "openflamingo": Way(steps=400, batch=16, learning_rate=1e-3, unfreeze="vision,language"),
}


def small_openflamingo() -> FlamingoConfig:
    """An OpenFlamingo of 64-pixel pictures and two language layers."""
    large = preset("openflamingo-3b")
    return replace(
        large, name="openflamingo-twin",
        vision=ViTConfig(image_size=64, patch_size=8, width=128, layers=2, heads=2, ff_width=512),
        resampler=replace(large.resampler, width=128, layers=2, latents=16, heads=2),
        cross_attention=replace(large.cross_attention, heads=2),
        language=replace(large.language, width=128, layers=2, heads=2, kv_heads=2, head_width=64, ff_width=512),
    )


def starting_checkpoint(name: str, work: Path) -> Path:
    """The checkpoint to fine-tune."""
    if name == "tiny":
        return ROOT / "models" / "tiny"
    sources, out = work / "sources", work / "imported"
    write_sources(small_openflamingo(), sources)
    toolkit("import", "openflamingo", "--checkpoint", str(sources / "checkpoint.pt"), "--vision",
            str(sources / "vision.safetensors"), "--language", str(sources / "language"), "--out", str(out))
    return out


def answers(checkpoint: Path, charts: Sequence[Chart], bundle: Path) -> list[str]:
    """Captions by the bundle that the checkpoint is exported to."""
    toolkit("export", "--ckpt", str(checkpoint), "--out", str(bundle))
    model = flamingo_rt.load(bundle)
    prompts = [model.caption_prompt(Image(chart.image)) for chart in charts]
    return [result.text.strip() for result in model.generate_batch(prompts, max_new_tokens=LONGEST)]


def share_right(found: Sequence[str], charts: Sequence[Chart]) -> float:
    """Share of the answers that are the captions, from 0 to 1."""
    return sum(text == chart.caption for text, chart in zip(found, charts, strict=True)) / len(charts)


def losses(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Mean losses of the first and of the last `AVERAGED` steps of a log."""
    found = [line["loss"][name] for line in lines]
    return statistics.mean(found[:AVERAGED]), statistics.mean(found[-AVERAGED:])


def fine_tune(start_from: Path, way: Way, data: Path, work: Path) -> tuple[Path, dict[str, Any]]:
    """Run the command; gives the checkpoint that it wrote, and how long it took with the losses."""
    out, begun = work / "tuned", time.monotonic()
    toolkit("train", "flamingo", "--start-from", str(start_from), "--data", f"{data},batch={way.batch},name=charts",
            "--out", str(out), *way.arguments())
    seconds = time.monotonic() - begun
    first, last = losses(list(read_log(log_path(out))), "charts")
    return out, {"seconds": round(seconds, 1), "first_loss": round(first, 4), "last_loss": round(last, 4)}


def measure(name: str, way: Way, data: Path, charts: Sequence[Chart], work: Path) -> dict[str, Any]:
    """One model: answers before and after."""
    start_from = starting_checkpoint(name, work)
    before = answers(start_from, charts, work / "bundle-before")
    tuned, trained = fine_tune(start_from, way, data, work)
    after = answers(tuned, charts, work / "bundle-after")
    wrong = [(text, chart.caption) for text, chart in zip(after, charts, strict=True) if text != chart.caption]
    return {
        "options": way.arguments(), "batch": way.batch, **trained, "right_before": share_right(before, charts),
        "right_after": share_right(after, charts), "answers_before": before[:5], "wrong_after": wrong[:10],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(WAYS), help="default: all")
    parser.add_argument("--pictures", type=int, default=200, help="to learn from; default %(default)s")
    parser.add_argument("--held-out", type=int, default=50, help="to ask about; default %(default)s")
    parser.add_argument("--steps", type=int, help="of each run; default: those of the model's way")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    names = options.models.split(",")
    if set(names) - set(WAYS):
        parser.error(f"--models {options.models}: known are {', '.join(WAYS)}")
    charts = [draw_chart(HELD_OUT, index) for index in range(options.held_out)]
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        data = write_chart_folder(Path(folder) / "charts", options.pictures, LEARNT)
        for name in names:
            way = replace(WAYS[name], steps=options.steps or WAYS[name].steps)
            work = Path(folder) / name
            work.mkdir()
            found = measured[name] = measure(name, way, data, charts, work)
            print(f"{name:14} {found['right_before']:.0%} right before, {found['right_after']:.0%} after; "
                  f"loss {found['first_loss']:.3f} to {found['last_loss']:.3f}; {found['seconds']:.0f} s", flush=True)
    settings = {"pictures": options.pictures, "held_out": options.held_out, "models": names}
    path = write_result(options.results, "finetune-pictures", settings, measured)
    print(json.dumps({"result": str(path), **measured}))


if __name__ == "__main__":
    main()
