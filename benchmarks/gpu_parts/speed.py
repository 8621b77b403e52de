"""How fast is one of our systems? The workload's cases as everybody has them, then what ``flamingo-rt bench`` measures.

    python -m benchmarks.gpu_parts.speed --work FOLDER --model openflamingo-3b --system tensorrt+tensorrt+fp16+tensorrt
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.gpu_parts.rows import reporting, tell
from benchmarks.gpu_parts.systems import System, system_path
from benchmarks.gpu_parts.timed import plan_for, tell_case
from benchmarks.ours import Ours, check, measure_compiled
from benchmarks.peers.answer_timing import measure_case, read_workload, wanted_cases
from flamingo_rt.bench import BenchOptions, Report, measure
from flamingo_rt.bench.units import scaled
from flamingo_rt.cores import core_count

SHARE = ">= 0.7"  # of a GPU's bandwidth, while decoding


def tell_bench(report: Report) -> None:
    """Rows of decoding, of the stages beside their ceilings, and of compiled shots."""
    rates = report.rates
    tell("memory beside it", round(rates.bandwidth / 1e9, 1), "GB/s", note=rates.bandwidth_by)
    if rates.flops is not None:
        tell("products beside it", round(rates.flops / 1e12, 2), "TFLOP/s", note=rates.flops_by)
    else:
        tell("products beside it", "not measured", note=rates.flops_by)
    for result in report.decode:
        steps = f"{scaled(result.against.bytes, 'B')}, {result.milliseconds.runs} greedy steps"
        tell(f"decode, context {result.context}", round(result.milliseconds.median, 4), "ms", note=steps,
             bytes=result.against.bytes)
        moved = result.against.bytes / result.milliseconds.median * 1e3
        tell_share(f"decode, context {result.context}", moved, report)
    for stage in report.stages:
        if stage.against is not None:
            name = stage.name + (f", {stage.tokens} tokens" if stage.tokens else "")
            tell(name, round(stage.milliseconds.median, 3), "ms",
                 reference=f"{stage.against.reached:.2f} of the ceiling, bound by {stage.against.bound}")
    for shots in report.shots:
        if shots.compiled is not None:
            tell(f"bench: first token, shots {shots.shots}", round(shots.cold.median, 2), "ms",
                 reference=f"compiled {shots.compiled.median:.4g} ms")
    if report.compiled_ratio is not None:
        most = max(result.shots for result in report.shots)
        tell(f"bench: {most} shots compiled cost, of what none cost", round(report.compiled_ratio, 3), "times")


def tell_share(what: str, moved: float, report: Report) -> None:
    """The row of a share of the bandwidth; ``moved`` bytes per second."""
    target = None if report.model.backend == "ort" else SHARE
    tell(f"{what}, share of the bandwidth", round(moved / report.rates.bandwidth, 3), target=target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--system", type=System.named, required=True)
    parser.add_argument("--shots", type=int, default=32, help="of the few-shot prompt; default %(default)s")
    parser.add_argument("--context", type=int, default=1500, help="the longest while decoding; default %(default)s")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="no measurement is repeated after this")
    options = parser.parse_args()
    with reporting():
        path = system_path(options.work, options.model, options.system)
        workload = read_workload(options.work / "workload" / "workload.json")
        plan = plan_for((0, options.shots), options.tokens, options.runs, options.seconds, core_count())
        start = time.perf_counter()
        ours = Ours(path, options.system.backend, None, workload, trust_engines=True)  # of another part, as prepared
        tell("loading", round(time.perf_counter() - start, 1), "s", note="with the SHA-256 of every file")
        cases = wanted_cases(workload, plan)
        check(ours, workload, cases)
        for case in cases:
            tell_case(measure_case(case, lambda n, case=case: ours.timed(ours.parts(case), n), plan))
            if case["shots"]:
                tell_case(measure_compiled(ours, case, plan), compiled=True)
        context = min(options.context, ours.model.config.language.context - options.tokens)
        wanted = BenchOptions(
            shots=(0, options.shots), batch=(1,), context=(64, context), tokens=options.tokens, runs=options.runs,
            seconds=options.seconds,
        )
        tell_bench(measure(ours.model, wanted, folder=path))


if __name__ == "__main__":
    main()
