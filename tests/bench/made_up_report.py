"""A report of round figures, for tests of what shows reports, and options for the shortest measurement."""

from __future__ import annotations

from dataclasses import asdict

from flamingo_rt.bench.bench_options import BenchOptions
from flamingo_rt.bench.machine import Machine, Memory
from flamingo_rt.bench.rates import Rates
from flamingo_rt.bench.results import Against, DecodeResult, ModelFacts, Report, ShotsResult, Stage
from flamingo_rt.bench.statistics import Spread

RATES = Rates(50e9, "np.dot of float32, 537 MB, 2 threads", 200e9, "MatMul of ONNX Runtime 1.32.0, 1024³, float32",
              (40e9, 50e9), (180e9, 200e9))

QUICK = BenchOptions(shots=(0, 2), batch=(1, 2), context=(5, 9), tokens=2, runs=2, threads=1)
BUFFER = 1 << 20


def spread(median: float, runs: int = 5) -> Spread:
    return Spread(median, median * 0.9, median * 1.2, median * 0.8, median * 1.5, runs)


def made_up_report() -> Report:
    graphs = ("vision_encoder", "resampler", "language_model")
    return Report(
        started="2026-01-02T03:04:05+00:00",
        finished="2026-01-02T03:05:05+00:00",
        machine=Machine("A <fast> CPU", 2, 24_000_000_000, "Linux", "3.11.7", {"numpy": "2.0", "onnxruntime": "1.32.0"},
                        None, None),
        model=ModelFacts("tiny & mighty", "ab12", "bundle", "ort", None, dict.fromkeys(graphs, "float32"),
                         dict.fromkeys(graphs), dict.fromkeys(graphs, 1_000_000), 10_000_000),
        options=asdict(BenchOptions(shots=(0, 32), batch=(1, 2), context=(64,))),
        rates=RATES,
        stages=(
            Stage("images", None, spread(4.0), None),
            Stage("vision", None, spread(10.0), Against.of(10**9, 10**6, 10.0, RATES)),
            Stage("resampler", None, spread(2.0), Against.of(10**8, 10**6, 2.0, RATES)),
            Stage("prefill", 4, spread(3.0), Against.of(10**7, 10**8, 3.0, RATES)),
        ),
        decode=(
            DecodeResult(1, 64, spread(4.0, 160), 250.0, Against.of(10**7, 10**8, 4.0, RATES)),
            DecodeResult(2, 64, spread(5.0, 160), 400.0, Against.of(2 * 10**7, 10**8, 5.0, RATES)),
        ),
        shots=(
            ShotsResult(0, 4, spread(20.0), None, None),
            ShotsResult(32, 228, spread(12_000.0), spread(21.0), 11_900.0),
        ),
        compiled_ratio=1.05,
        memory=Memory(200_000_000, 250_000_000),
        notes=("Something to know.",),
    )
