"""Notes to the figures of a report, such as what was left out and why."""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_rt.bench.bench_options import CONTEXTS, SHOTS, BenchOptions
from flamingo_rt.bench.results import DecodeResult, ModelFacts, ShotsResult, Stage
from flamingo_rt.contract import LANGUAGE_MODEL


def notes_on(
    facts: ModelFacts, asked: BenchOptions, measured: BenchOptions, stages: Sequence[Stage],
    decode: Sequence[DecodeResult], shots: Sequence[ShotsResult],
) -> tuple[str, ...]:
    """Sentences that can be understood without the tables."""
    found = []
    counts, contexts = measured.shots or (), measured.context or ()
    left_out = [count for count in SHOTS if asked.shots is None and count not in counts]
    if left_out:
        found.append(f"Left out, since the model has no room for them: {_listed(left_out)} shots.")
    if asked.context is None and CONTEXTS[-1] not in contexts:
        found.append(f"The longest context is {max(contexts)} tokens, not {CONTEXTS[-1]}: the model takes no more.")
    spreads = [(f"{result.shots} shots, cold", result.cold) for result in shots]
    spreads += [(f"prefill of {stage.tokens} tokens", stage.milliseconds) for stage in stages if stage.tokens]
    early = [f"{name} ({spread.runs})" for name, spread in spreads if spread.runs < measured.runs]
    if early:
        found.append(f"Fewer than {measured.runs} runs, because time was up (see --seconds): {_listed(early)}.")
    dtype, quantization = facts.dtype[LANGUAGE_MODEL], facts.quantization[LANGUAGE_MODEL]
    if facts.backend == "ort" and dtype in ("float16", "bfloat16") and quantization is None:
        found.append(
            f"The ceiling counts weights as they are stored, in {dtype}. ONNX Runtime converts them to float32 when it "
            "loads them and reads twice as many bytes."
        )
    against = [stage.against for stage in stages if stage.against is not None]
    against += [result.against for result in decode]
    if any(entry.reached > 1 for entry in against):
        why = "products of quantized weights can be faster than float32's" if quantization else "they are faster"
        found.append(
            "More than 100% of a ceiling: what is read again comes from the processor's caches, and "
            f"{why}; or the machine was slower while its ceiling was measured."
        )
    return tuple(found)


def _listed(items: Sequence[object]) -> str:
    return ", ".join(str(item) for item in items)
