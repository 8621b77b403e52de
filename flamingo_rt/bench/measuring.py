"""The whole measurement: warm up, repeat, and compare with what the machine can do."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from flamingo_rt.bench.bandwidth import BUFFER_BYTES
from flamingo_rt.bench.bench_options import BenchOptions
from flamingo_rt.bench.machine import describe_machine, memory_now
from flamingo_rt.bench.model_facts import model_facts
from flamingo_rt.bench.notes import notes_on
from flamingo_rt.bench.rates import RateProbe, Rates, probe_of
from flamingo_rt.bench.results import Against, DecodeResult, Report, ShotsResult, Stage, StageName
from flamingo_rt.bench.statistics import Clock, Run, Spread, sample
from flamingo_rt.bench.theory import Theory, Work
from flamingo_rt.bench.workload import CacheFilling, Pictures, caption_tokens, query_parts, shot_parts
from flamingo_rt.contract import LANGUAGE_MODEL
from flamingo_rt.cores import core_count
from flamingo_rt.progress import Progress, silent
from flamingo_rt.runtime.decoder import Decoder
from flamingo_rt.runtime.model import Model, PromptState

FIRST_TOKEN = "first_token"
PROBE_SECONDS = 2.0  # between two measurements of the machine, which take a few tenths
Samples = dict[str, dict[str, list[float]]]


def measure(
    model: Model, options: BenchOptions | None = None, *, folder: str | os.PathLike | None = None,
    progress: Progress = silent, clock: Clock = time.perf_counter, buffer_bytes: int | None = None,
) -> Report:
    """Measure a loaded model. ``folder`` is the bundle it was loaded from, whose graphs say how many bytes they read.
    ``buffer_bytes`` is what the CPU's memory bandwidth is measured with: by default far more than caches hold. Engines
    on a device are compared with the device's limits.

    Raises `UsageError` for options that do not fit the model, before anything runs; `DataError` when memory bandwidth
    cannot be measured.
    """
    asked = options or BenchOptions()
    wanted = asked.for_model(model)
    asked_shots = wanted.shots or ()
    threads = wanted.threads if model.backend.name == "ort" else None  # PyTorch takes what its environment says
    known = model_facts(model, Path(folder) if folder is not None else None, threads)
    theory, started = Theory(model.config, known.weights, _number_bytes(model)), _now()
    device = probe_of(model.backend, threads, core_count(), buffer_bytes or BUFFER_BYTES)
    with RateProbe(device) as probe, ExitStack() as decoders:
        runs = _Runs(model, wanted, probe, progress, clock, decoders)
        queries, compiling = runs.queries()
        cold = {shots: runs.cold(shots) for shots in asked_shots if shots}
        filled, prefills = runs.prefills()
        steps = runs.steps(filled)
        memory, machine = memory_now(), describe_machine()  # clocks as they are under load
        probe.probe()
        rates = probe.best()
    stages = _stages(queries["0"], prefills, theory, rates, caption_tokens(model, 0))
    decode = tuple(
        _decode(batch, context, wanted.tokens, times["step"], theory, rates)
        for (batch, context), times in steps.items()
    )
    shots = tuple(_shots(model, count, queries, cold, compiling) for count in asked_shots)
    return Report(
        started, _now(), machine, known.facts, asdict(wanted), rates, stages, decode, shots,
        _ratio(asked_shots, queries), memory, notes_on(known.facts, asked, wanted, stages, decode, shots),
    )


class _Runs:
    """The measurements of one model; ``opened`` closes the decoders after them."""

    def __init__(
        self, model: Model, options: BenchOptions, probe: RateProbe, progress: Progress, clock: Clock,
        opened: ExitStack,
    ) -> None:
        self._model, self._options, self._probe, self._progress, self._clock = model, options, probe, progress, clock
        self._pictures, self._opened = Pictures(), opened
        self._filling = CacheFilling(model, self._pictures.take(1)[0])
        probe.probe()
        self._probed = clock()

    def queries(self) -> tuple[Samples, dict[int, float]]:
        """Time a query without shots ("0") and after compiled ones. Returns the samples, and the milliseconds of
        compiling by number of shots."""
        prefixes: dict[int, PromptState | None] = {0: None}
        compiling = {}
        for shots in self._options.shots or ():
            if shots:
                parts = shot_parts(self._model, self._pictures.take(shots))
                start = self._clock()
                prefixes[shots] = self._model.prompt(parts)
                compiling[shots] = (self._clock() - start) * 1e3
        runs = {str(shots): lambda prefix=prefix: self._first_token(0, prefix) for shots, prefix in prefixes.items()}
        return self._sample(runs, "queries after compiled shots"), compiling

    def cold(self, shots: int) -> list[float]:
        """Milliseconds to the first token with every picture encoded."""
        found = self._sample({"cold": lambda: self._first_token(shots, None)}, f"{shots} shots, cold")
        return found["cold"][FIRST_TOKEN]

    def prefills(self) -> tuple[dict[int, Decoder], dict[int, list[float]]]:
        """Prefill of each context, and the decoders it filled."""
        decoders: dict[int, Decoder] = {}

        def run(context: int) -> Mapping[str, float]:
            if context in decoders:
                decoders[context].close()
            decoders[context] = self._opened.enter_context(
                self._filling.decoder(1, context + self._options.tokens)
            )
            rows = self._filling.rows(1, context)
            start = self._clock()
            decoders[context].prefill(rows)
            return {"prefill": (self._clock() - start) * 1e3}

        found = {}
        for context in self._options.context or ():
            samples = self._sample({"prefill": lambda c=context: run(c)}, f"prefill of {context} tokens")
            found[context] = samples["prefill"]["prefill"]
        return decoders, found

    def steps(self, filled: Mapping[int, Decoder]) -> dict[tuple[int, int], dict[str, list[float]]]:
        """Greedy steps, from the tokens of one to those of the next, by (batch, context): the first batch at every
        context, the others at the first."""
        contexts, batches = self._options.context or (), self._options.batch
        pairs = [(batches[0], context) for context in contexts] + [(batch, contexts[0]) for batch in batches[1:]]
        runs = {pair: self._stepping(*pair, filled) for pair in pairs}
        return self._sample(runs, "decode steps")

    def _stepping(self, batch: int, context: int, filled: Mapping[int, Decoder]) -> Run:
        if batch == 1:
            decoder = filled[context]
        else:
            decoder = self._opened.enter_context(self._filling.decoder(batch, context + self._options.tokens))
            decoder.prefill(self._filling.rows(batch, context))

        def run() -> Mapping[str, list[float]]:
            decoder.lengths[:] = context  # again from the same cache: what was written after it is overwritten
            times, before = [], self._clock()
            for _ in decoder.step_greedily(self._filling.text_ids(batch), self._options.tokens):
                now = self._clock()
                times.append((now - before) * 1e3)
                before = now
            return {"step": times}

        return run

    def _first_token(self, shots: int, prefix: PromptState | None) -> Mapping[str, float]:
        *examples, query = self._pictures.take(shots + 1)
        parts = shot_parts(self._model, examples) + query_parts(self._model, query)
        start = self._clock()
        result = self._model.generate(parts, prefix=prefix, max_new_tokens=1).result()
        return {FIRST_TOKEN: (self._clock() - start) * 1e3, **result.timings}

    def _sample(self, runs: Mapping, stage: str) -> dict:
        return sample(
            runs, self._options.runs, self._options.warmup, self._options.seconds, clock=self._clock,
            between=self._probe_rates, progress=self._progress, stage=stage,
        )

    def _probe_rates(self) -> None:
        if self._clock() - self._probed > PROBE_SECONDS:
            self._probe.probe()
            self._probed = self._clock()


def _stages(
    query: Mapping[str, list[float]], prefills: Mapping[int, list[float]], theory: Theory, rates: Rates, tokens: int
) -> tuple[Stage, ...]:
    def stage(
        name: StageName, milliseconds: list[float], work: Work | None, tokens: int | None = None
    ) -> Stage:
        spread = Spread.of(milliseconds)
        return Stage(name, tokens, spread, Against.of(*work, spread.median, rates) if work else None)

    return (
        stage("images", query["images"], None),
        stage("vision", query["vision"], theory.vision()),
        stage("resampler", query["resampler"], theory.resampler()),
        stage("prefill", query["prefill"], theory.prefill(tokens), tokens),
        *(stage("prefill", times, theory.prefill(count), count) for count, times in prefills.items()),
    )


def _decode(batch: int, context: int, steps: int, times: list[float], theory: Theory, rates: Rates) -> DecodeResult:
    spread = Spread.of(times)
    against = Against.of(*theory.decode(batch, context, steps), spread.median, rates)
    return DecodeResult(batch, context, spread, batch / spread.median * 1e3, against)


def _shots(
    model: Model, count: int, queries: Samples, cold: Mapping[int, list[float]], compiling: Mapping[int, float]
) -> ShotsResult:
    behind = Spread.of(queries[str(count)][FIRST_TOKEN])
    tokens = caption_tokens(model, count)
    if not count:
        return ShotsResult(count, tokens, behind, None, None)
    return ShotsResult(count, tokens, Spread.of(cold[count]), behind, compiling[count])


def _ratio(shots: tuple[int, ...], queries: Samples) -> float | None:
    """Median ratio of two queries of the same round, since the machine drifts between rounds."""
    most = max(shots)
    if not most:
        return None
    pairs = zip(queries[str(most)][FIRST_TOKEN], queries["0"][FIRST_TOKEN], strict=True)
    return statistics.median(compiled / none for compiled, none in pairs)


def _number_bytes(model: Model) -> int:
    """Bytes of one number in the cache; features and media have the same type."""
    cached = next(spec for spec in model.backend.specs[LANGUAGE_MODEL].inputs if "C" in spec.shape)
    return np.dtype(cached.array_dtype).itemsize


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
