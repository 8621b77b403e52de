"""Throughput of the three stages of ``flamingo-rt train``, and what ``--cache-features`` saves.

    python -m benchmarks.training_speed [--cases packaged,flamingo-10m,flamingo-768,vision,language,cache-10m,…]
                                        [--steps 30] [--batch 32]

Each case is a run of the command in a process of its own, and its log is read: the share of the machine's measured
matrix rate (MFU), the share of a step that is spent waiting for data, tokens in a second; medians of the steps after
the warm-up. ``packaged`` is the packaged model's bridge, recipes/tiny/flamingo.toml. The bridge of stage 3 starts from
checkpoints with random weights, of about 10M parameters and of width 768, and reads a folder of drawn scenes. The cache
is measured on a folder of pictures: an epoch without it, an epoch that fills it, and an epoch from it. ``cache-vit-b``
has CLIP ViT-B/16 as its encoder. The last line is JSON, which is also written to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.chosen_names import chosen_names
from benchmarks.dated_result import RESULTS, write_result
from benchmarks.processes import ROOT, run
from benchmarks.scene_folders import write_scene_folder
from benchmarks.starting_checkpoints import scene_tokenizer, sized, write_random_checkpoint
from flamingo_rt.child_process import python_command
from flamingo_rt.config import FlamingoConfig, ViTConfig
from flamingo_rt.parameter_count import reckon_parameters
from flamingo_rt.presets import preset
from flamingo_rt.training.config_file import options_text, read_options
from flamingo_rt.training.flops import matrix_rate
from flamingo_rt.training.options import DataOptions, FlamingoOptions, LanguageOptions, RunOptions, VisionOptions
from flamingo_rt.training.run_log import log_path, read_log

Options = VisionOptions | LanguageOptions | FlamingoOptions
STAGES: dict[type, str] = {VisionOptions: "vision", LanguageOptions: "language", FlamingoOptions: "flamingo"}
WARMUP = 3  # steps that are not counted: memory is reserved, FLOPs are counted


@dataclass(frozen=True)
class Settings:
    """``steps`` of each run that has no epochs, documents or pairs in a batch, pictures in the folder, options of
    every run beside these."""

    steps: int = 30
    batch: int = 32
    pictures: int = 200
    workers: int = 1
    precision: str = "fp32"
    compile: bool = False
    warmup: int = WARMUP

    def run(self, steps: int | None = None, seed: int = 0) -> RunOptions:
        """The options of a run."""
        return RunOptions(
            steps=steps or self.steps, seed=seed, workers=self.workers, precision=self.precision,
            compile=self.compile, save_seconds=1e6, warmup_steps=1,
        )


def flamingo_10m() -> FlamingoConfig:
    """About 10M parameters, 64-pixel pictures."""
    vision = ViTConfig(image_size=64, patch_size=8, width=256, layers=4, heads=4, ff_width=1024)
    return sized("flamingo-10m", 256, 3, vision, resampler_layers=2)


def flamingo_768() -> FlamingoConfig:
    """Width 768 from the encoder to the language model, few layers of each."""
    vision = ViTConfig(image_size=64, patch_size=8, width=768, layers=4, heads=12, ff_width=3072)
    return sized("flamingo-768", 768, 4, vision, latents=64, resampler_layers=2)


def flamingo_vit_b() -> FlamingoConfig:
    """CLIP ViT-B/16 before the language model of `flamingo_10m`."""
    vision = ViTConfig(image_size=224, patch_size=16, width=768, layers=12, heads=12, ff_width=3072)
    return sized("flamingo-vit-b", 256, 3, vision, resampler_layers=2)


def trained(options: Options, folder: Path, name: str) -> list[dict[str, Any]]:
    """Run the command in a process; gives the lines of its log. Ends the program when it fails."""
    file, out = folder / f"{name}.toml", folder / name
    file.write_text(options_text(options))
    command = python_command("flamingo_rt", "train", STAGES[type(options)], "--config", str(file), "--out", str(out))
    finished = run(command, together=True)
    if finished.status != 0:
        sys.exit(f"{name} failed: {finished.output[-2000:]}")
    return list(read_log(log_path(out)))


def summary(lines: Sequence[Mapping[str, Any]], warmup: int) -> dict[str, Any]:
    """Medians over the steps after ``warmup``, or over all, where there are no more; the share of their whole time that
    was spent waiting for data."""
    counted = lines[warmup:] or lines
    seconds = [line["seconds"] for line in counted]
    waited = sum(line["waiting_share"] * line["seconds"] for line in counted)
    known = [line["mfu"] for line in counted if line["mfu"] is not None]
    return {
        "steps": len(counted), "seconds": round(statistics.median(seconds), 4),
        "mfu": round(statistics.median(known), 4) if known else None,
        "waiting_share": round(statistics.median(line["waiting_share"] for line in counted), 4),
        "waiting_share_of_all": round(waited / max(sum(seconds), 1e-9), 4),
        "tokens_per_second": round(statistics.median(line["tokens"] / line["seconds"] for line in counted), 1),
    }


class Measuring:
    """Checkpoints and folders of one measurement, made when they are needed."""

    def __init__(self, work: Path, settings: Settings) -> None:
        self.work, self.settings = work, settings

    def start_from(self, config: FlamingoConfig) -> str:
        """The checkpoint of a configuration, with random weights."""
        folder = self.work / f"start-{config.name}"
        if not folder.exists():
            write_random_checkpoint(folder, config, scene_tokenizer(config).to_str())
        return str(folder)

    def scenes(self, size: int) -> str:
        """The folder of pictures."""
        folder = self.work / f"scenes-{size}"
        if not folder.exists():
            write_scene_folder(folder, self.settings.pictures, size=size)
        return str(folder)

    def flamingo(self, config: FlamingoConfig) -> dict[str, Any]:
        """Stage 3 on captions, several of them in a document, the rest frozen."""
        settings = self.settings
        data = DataOptions(self.scenes(config.vision.image_size), batch=settings.batch, chunks=(2,))
        options = FlamingoOptions(run=settings.run(), start_from=self.start_from(config), data=(data,))
        found = summary(trained(options, self.work, config.name), settings.warmup)
        return {"parameters": reckon_parameters(config)["total"], **found}

    def packaged(self) -> dict[str, Any]:
        """Stage 3 of the packaged model, between parts with random weights: drawn scenes, tasks and clips."""
        options = read_options(FlamingoOptions, ROOT / "recipes" / "tiny" / "flamingo.toml", {})
        start = self.start_from(preset(options.preset))
        options = replace(options, start_from=start, vision=None, language=None, initial_gate=None)
        own = options.run
        run = replace(self.settings.run(), learning_rate=own.learning_rate, weight_decay=own.weight_decay,
                      beta2=own.beta2, gradient_clip=own.gradient_clip)
        data = tuple(replace(entry, batch=min(entry.batch, self.settings.batch)) for entry in options.data)
        return summary(trained(replace(options, run=run, data=data), self.work, "packaged"), self.settings.warmup)

    def vision(self) -> dict[str, Any]:
        """Stage 1 on drawn scenes, with the sizes of the packaged model."""
        options = VisionOptions(run=self.settings.run(), data=(DataOptions("scenes", batch=self.settings.batch),))
        return summary(trained(options, self.work, "vision"), self.settings.warmup)

    def language(self) -> dict[str, Any]:
        """Stage 2 on texts about drawn scenes, with the sizes of the packaged model."""
        options = LanguageOptions(run=self.settings.run(), data=(DataOptions("scenes", batch=self.settings.batch),))
        return summary(trained(options, self.work, "language"), self.settings.warmup)

    def cache(self, config: FlamingoConfig) -> dict[str, Any]:
        """An epoch of stage 3 without a cache, one that fills it, and one from it: seconds a step, and how many times
        as fast as without."""
        settings = self.settings
        batch = min(settings.batch, settings.pictures)
        steps = settings.pictures // batch
        plain = FlamingoOptions(
            run=settings.run(steps), start_from=self.start_from(config),
            data=(DataOptions(self.scenes(config.vision.image_size), batch=batch),),
        )
        kept = replace(plain, cache_features=str(self.work / f"features-{config.name}"))
        warmup = min(settings.warmup, steps // 2)
        found = {
            name: summary(trained(options, self.work, f"{config.name}-{name}"), warmup)
            for name, options in (("without", plain), ("cold", kept), ("warm", kept))
        }
        seconds = {name: each["seconds"] for name, each in found.items()}
        return {
            "parameters": reckon_parameters(config), "pictures": settings.pictures, "batch": batch, **found,
            "times_as_fast": {name: round(seconds["without"] / seconds[name], 2) for name in ("cold", "warm")},
        }


CASES: dict[str, Callable[[Measuring], dict[str, Any]]] = {
    "packaged": Measuring.packaged,
    "flamingo-10m": lambda measuring: measuring.flamingo(flamingo_10m()),
    "flamingo-768": lambda measuring: measuring.flamingo(flamingo_768()),
    "vision": Measuring.vision,
    "language": Measuring.language,
    "cache-10m": lambda measuring: measuring.cache(flamingo_10m()),
    "cache-vit-b": lambda measuring: measuring.cache(flamingo_vit_b()),
}


def told(name: str, found: Mapping[str, Any]) -> str:
    """The lines of the table about a case."""
    if "times_as_fast" not in found:
        mfu = "unknown" if found["mfu"] is None else f"{found['mfu']:.1%}"
        return (f"{name:14} {found['seconds']:.3f} s a step  MFU {mfu}  waiting {found['waiting_share']:.1%}  "
                f"{found['tokens_per_second']:,.0f} a second")
    parts = (f"{part} {found[part]['seconds']:.3f} s" for part in ("without", "cold", "warm"))
    times = found["times_as_fast"]
    return (f"{name:14} a step: {', '.join(parts)}; {times['warm']:.1f} times as fast from the cache, "
            f"{times['cold']:.2f} times while it is filled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = Settings()
    parser.add_argument("--cases", default=",".join(CASES), help="default: all")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="of each run; default %(default)s")
    parser.add_argument("--batch", type=int, default=defaults.batch, help="documents or pairs; default %(default)s")
    parser.add_argument("--pictures", type=int, default=defaults.pictures, help="default %(default)s")
    parser.add_argument("--workers", type=int, default=defaults.workers, help="default %(default)s")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=defaults.precision)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    names = chosen_names("--cases", options.cases, CASES)
    given = {key: value for key, value in vars(options).items() if key not in ("cases", "results")}
    settings = Settings(**given)
    rate = matrix_rate(torch.device("cpu"), torch.float32 if settings.precision == "fp32" else torch.bfloat16)
    print(f"matrix rate {rate / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads", flush=True)
    measured: dict[str, Any] = {"matrix_rate": round(rate), "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as work:
        measuring = Measuring(Path(work), settings)
        for name in names:
            measured[name] = CASES[name](measuring)
            print(told(name, measured[name]), flush=True)
    path = write_result(options.results, "training-speed", settings, measured)
    print(json.dumps({"result": str(path), **measured}))


if __name__ == "__main__":
    main()
