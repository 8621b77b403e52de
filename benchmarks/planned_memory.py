"""The memory planner beside measured peaks: what `flamingo-rt describe --model` reckons, and what a process takes.

    python -m benchmarks.planned_memory --work FOLDER

For models of three kinds with random weights, stored in four types, and three workloads each: the most resident memory
of a process that answers the workload on the CPU, mapped files included, without what it had after its imports. The
bundles of 5 GB stay in the folder, and the peaks with them, so that another planner is compared at once; ``--again``
measures anew. Linux only. The result is written to ``benchmarks/results``; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.dated_result import RESULTS, write_result
from benchmarks.processes import run
from flamingo_rt.bundle import is_bundle, read_description
from flamingo_rt.child_process import python_command
from flamingo_rt.config import FlamingoConfig, NFNetConfig, ViTConfig
from flamingo_rt.memory_plan import PYTHON, Workload, plan_memory
from flamingo_rt.presets import preset

WITHIN = 0.05  # of the measured peak
TYPES = ("fp32", "fp16", "int8", "int4")
ANSWER = 16
WORKLOADS = (
    Workload(rows=1, pictures=5, tokens=256, answer=ANSWER),
    Workload(rows=1, pictures=17, tokens=1024, answer=ANSWER),
    Workload(rows=4, pictures=2, tokens=512, answer=ANSWER),
)


def shapes() -> dict[str, FlamingoConfig]:
    """Models with the parts of the presets, between 0.7 and 1.1 GB in float32."""
    openflamingo, flamingo, photos = (preset(name) for name in ("openflamingo-3b", "flamingo-3b", "photos"))
    return {
        "vit-alibi": replace(
            openflamingo, vision=ViTConfig(width=768, layers=8, heads=12, ff_width=3072),
            resampler=replace(openflamingo.resampler, width=768, layers=3),
            cross_attention=replace(openflamingo.cross_attention, interval=2),
            language=replace(openflamingo.language, width=1024, layers=8, heads=8, kv_heads=8, ff_width=4096),
        ),
        "nfnet-relative": replace(
            flamingo, vision=NFNetConfig(
                image_size=224, widths=(256, 512, 1024, 1024), depths=(1, 2, 3, 2), output_width=1024),
            resampler=replace(flamingo.resampler, width=1024, layers=2, heads=8),
            cross_attention=replace(flamingo.cross_attention, heads=8, media_width=1024, interval=2),
            language=replace(flamingo.language, width=1024, layers=6, heads=8, kv_heads=8, ff_width=4096),
        ),
        "vit-rotary": replace(
            photos, vision=ViTConfig(patch_size=16, width=512, layers=6, heads=8, ff_width=2048),
            language=replace(
                photos.language, vocab_size=32000, width=768, layers=24, heads=12, kv_heads=4, ff_width=2048,
                tied_head=False,
            ),
        ),
    }


def make_bundle(config: FlamingoConfig, form: str, folder: Path) -> None:
    """Export a model with random weights stored in a type, unless that was done before."""
    if is_bundle(folder):
        return
    from flamingo_rt.export.pipeline import export_model
    from flamingo_rt.export.quantization.quantization_options import Quantize
    from flamingo_rt.export.random_model import random_model

    stored = {"dtype": form} if form.startswith("fp") else {"quantize": Quantize(form, rounding="nearest")}
    export_model(random_model(config), folder, overwrite=True, compare=False, **stored)


def measured(folder: Path, workload: Workload) -> dict[str, int | None]:
    """Answer a workload in this process: its resident bytes after the imports, and the most there were since."""
    import onnxruntime  # noqa: F401
    import PIL.Image  # noqa: F401

    from flamingo_rt.bench.machine import memory_now, reset_peak
    from flamingo_rt.bench.workload import Pictures, query_parts, shot_parts
    from flamingo_rt.loading import load
    from flamingo_rt.processing.prompt import build_prompt

    pictures = [Pictures(row).take(workload.pictures) for row in range(workload.rows)]
    reset_peak()
    start = memory_now().current
    model = load(folder, "ort", threads=1, image_cache_bytes=0)
    prompts = []
    for *shots, query in pictures:
        parts = [*shot_parts(model, shots), *query_parts(model, query)]
        missing = workload.tokens - workload.answer - len(build_prompt(parts, model.tokenizer))
        prompts.append([*parts, "x" * missing])  # a letter is a token
    prompt = build_prompt(prompts[0], model.tokenizer)
    if len(prompt) != workload.tokens - workload.answer:
        sys.exit(f"the prompt has {len(prompt)} tokens: the workload is too small for its shots")
    model.generate_batch(prompts, max_new_tokens=workload.answer)
    first, second = peak() - start, None
    if workload == WORKLOADS[0]:  # the others would take no less time
        model.generate_batch(prompts, max_new_tokens=workload.answer)
        second = peak() - start
    return {"start": start, "peak": first, "peak_of_two": second}


def peak() -> int:
    """The most resident bytes since `reset_peak`. `getrusage` would tell the most since the process began."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def case(name: str, config: FlamingoConfig, form: str, workload: Workload, work: Path, again: bool) -> dict[str, Any]:
    """Plan and measure one case; the measurement is a process of its own."""
    folder = work / f"{name}-{form}"
    make_bundle(config, form, folder)
    plan = plan_memory(read_description(folder), workload)
    kept = work / f"{name}-{form}-{'-'.join(map(str, asdict(workload).values()))}.json"
    if again or not kept.is_file():
        asked = json.dumps(asdict(workload))
        finished = run(python_command("benchmarks.planned_memory", "--measure", str(folder), asked))
        if finished.status:
            sys.exit(f"{folder}: {finished.output}")
        kept.write_text(finished.last_line, encoding="utf-8")
    found = json.loads(kept.read_text(encoding="utf-8"))
    planned = plan.total - plan.parts[PYTHON]  # which the imports took
    return {
        "model": name, "type": form, "workload": asdict(workload), "planned": planned, **found,
        "off": planned / found["peak"] - 1, "parts": dict(plan.parts), "loading": plan.loading,
    }


def row(found: dict[str, Any]) -> str:
    """A case as a line of the table."""
    asked, mega = found["workload"], 1e6
    cells = [
        found["model"], found["type"], f"{asked['rows']}, {asked['pictures']}, {asked['tokens']}",
        f"{found['planned'] / mega:,.0f} MB", f"{found['peak'] / mega:,.0f} MB", f"{found['off']:+.1%}",
        f"{found['peak_of_two'] / mega:,.0f} MB" if found["peak_of_two"] else "",
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="a folder for the bundles")
    parser.add_argument("--only", default="", metavar="A,B", help="models or types, by their names")
    parser.add_argument("--again", action="store_true", help="measure again what was measured before")
    parser.add_argument("--results", type=Path, metavar="FOLDER", default=RESULTS, help="default: %(default)s")
    parser.add_argument("--measure", nargs=2, metavar=("BUNDLE", "WORKLOAD"), help="one case, in this process")
    options = parser.parse_args(arguments)
    if options.measure:
        folder, workload = options.measure
        print(json.dumps(measured(Path(folder), Workload(**json.loads(workload)))))
        return
    if options.work is None:
        parser.error("--work FOLDER is needed: bundles of 5 GB are kept there")
    only = set(filter(None, options.only.split(",")))
    print("| model | type | rows, pictures, tokens | planned | measured | off | a second answer |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    cases = []
    for name, config in shapes().items():
        for form in TYPES:
            if not all(chosen in only or only.isdisjoint(known) for chosen, known in ((name, shapes()), (form, TYPES))):
                continue
            for workload in WORKLOADS:
                cases.append(case(name, config, form, workload, options.work, options.again))
                print(row(cases[-1]), flush=True)
    worst = max(abs(found["off"]) for found in cases)
    written = None if only else write_result(options.results, "memory-plan", {"within": WITHIN}, {"cases": cases})
    print(json.dumps({"results": written and str(written), "worst": worst, "met": worst <= WITHIN}))


if __name__ == "__main__":
    main()
