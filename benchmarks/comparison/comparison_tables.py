"""The results as markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.comparison.compared_systems import CAPTIONED, MEASURED, SYSTEMS
from benchmarks.comparison.result_file import (
    Record,
    Spread,
    case_of,
    differing,
    first_difference,
    first_token,
    per_token,
)

REFERENCE, HALF = "peer-fp32", "peer-bf16"


def report(results: Record) -> str:
    """All tables; parts that were not measured are left out."""
    parts = [heading(results), systems_table(results), shots_table(results), beams_table(results),
             speculation_table(results), captions_table(results), tokens_table(results), processes_table(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(results: Record) -> str:
    machine, runs = results["machine"], results["runs"]
    threads = sorted({str(record["threads"]) for record in runs.values() if "threads" in record})
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if machine.get("memory_bytes") else ""
    versions: dict[str, set[str]] = {}
    for record in runs.values():
        for name, number in record.get("versions", {}).items():
            versions.setdefault(name, set()).add(number)
    rates = [rate for record in runs.values() for rate in record.get("bandwidth", ())]
    span = f"{min(rates) / 1e9:.1f} to {max(rates) / 1e9:.1f} GB/s" if rates else ""
    read = f" Memory is read at {span} between the runs." if rates else ""
    listed = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(versions.items()))
    return (f"{results['preset']}, {results['date']}: {machine['cpu']}, {machine['cores']} cores{memory}, "
            f"{' and '.join(threads)} threads; {listed}.{read}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, or nothing without rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured(results: Record) -> list[tuple[str, Record]]:
    """Names and records of the systems that answered cases, in the order of `SYSTEMS`."""
    return [(name, results["runs"][name]) for name, system in SYSTEMS.items()
            if system.kind in MEASURED and not system.captions and name in results["runs"]]


def systems_table(results: Record) -> str:
    """Time per token and to the first one, one picture and no shots."""
    rows = []
    references = {name: case_of(results["runs"].get(name, {}), 0) for name in (REFERENCE, HALF)}
    for name, record in measured(results):
        case = case_of(record, 0)
        if case is None:
            continue
        each = per_token(case)
        ratios = [f"{per_token(other).median / each.median:.2f}" if other else "" for other in references.values()]
        rows.append([
            SYSTEMS[name].label, ms(each), *ratios, f"{record['token_bytes'] / each.median / 1e6:.1f} GB/s",
            ms(first_token(case)), f"{record['peak_running_bytes'] / 1e9:.2f} GB",
        ])
    header = ["one picture, no shots", "each token, ms", "times open_flamingo fp32", "times open_flamingo bf16",
              "weights read", "first token, ms", "peak memory"]
    return table(header, rows)


def shots_table(results: Record) -> str:
    """Seconds to the first token by number of shots."""
    shots = sorted({case["shots"] for _, record in measured(results) for case in record["cases"]})
    rows = []
    for name, record in measured(results):
        for part, suffix in (("cases", ""), ("compiled", ", shots read before")):
            cases = [case_of(record, number, part) for number in shots]
            if any(cases):
                rows.append([SYSTEMS[name].label + suffix,
                             *(f"{first_token(case).median / 1e3:.3g}" if case else "" for case in cases)])
    return table(["first token, s; shots:", *map(str, shots)], rows)


def beams_table(results: Record) -> str:
    rows = []
    for name, record in measured(results):
        beams = record.get("beams")
        if beams:
            greedy, beam = Spread.of(beams["greedy_ms"]), Spread.of(beams["beam_ms"])
            rows.append([SYSTEMS[name].label, str(beams["beams"]), str(beams["tokens"]), ms(greedy), ms(beam),
                         f"{beam.median / greedy.median:.2f}"])
    return table(["whole caption", "beams", "tokens", "greedy, ms", "beams, ms", "ratio"], rows)


def speculation_table(results: Record) -> str:
    """Time of decoding with tokens guessed ahead, against without, and against the peer."""
    rows = []
    for name, record in measured(results):
        for spec in record.get("speculation") or ():
            plain, peer = case_of(record, spec["shots"]), case_of(results["runs"].get(REFERENCE, {}), spec["shots"])
            fast = Spread.of(spec["decode_ms"])
            rows.append([
                SYSTEMS[name].label, str(spec["shots"]), f"{spec['steps']} for {len(plain['tokens']) - 1}", ms(fast),
                f"{decode_ms(plain) / fast.median:.2f}", f"{decode_ms(peer) / fast.median:.2f}" if peer else "",
                "yes" if spec["tokens_equal"] else "no",
            ])
    header = ["with speculation", "shots", "steps", "decoding, ms", "times without", "times open_flamingo fp32",
              "same tokens"]
    return table(header, rows)


def captions_table(results: Record) -> str:
    """Given captions: time from token to token over all of them, and what guessing ahead gains."""
    rows = []
    reference = results["runs"].get(f"captions-{REFERENCE}", {}).get("captions", ())
    for name in CAPTIONED:
        record = results["runs"].get(f"captions-{name}", {"captions": ()})
        for shots in sorted({caption["shots"] for caption in record["captions"]}):
            captions = [caption for caption in record["captions"] if caption["shots"] == shots]
            gaps = sum(caption["tokens"] - 1 for caption in captions)
            for way in ("plain", "speculation"):
                if way not in captions[0]:
                    continue
                row = [SYSTEMS[name].label + (", guessing" if way == "speculation" else ""), str(shots),
                       f"{len(captions)}, {gaps + len(captions)} tokens", ms(gap_ms(captions, way))]
                row += [times(captions, "plain", captions, way) if way != "plain" else "",
                        times(reference, "plain", captions, way) if name != REFERENCE else ""]
                steps, right, drafted = (
                    sum(Spread.of(caption[way][part]).median for caption in captions) if way != "plain" else None
                    for part in ("steps", "accepted", "drafted")
                )
                row += ["", ""] if steps is None else [f"{steps:g} for {gaps}", f"{right:g} of {drafted:g}"]
                rows.append([*row, "yes" if all(caption[way]["tokens_equal"] for caption in captions) else "no"])
    header = ["few-shot captions", "shots", "captions", "each token, ms", "times without guessing",
              "times open_flamingo fp32", "steps", "guesses right", "same tokens"]
    return table(header, rows)


def gap_ms(captions: Sequence[Record], way: str) -> Spread:
    """Milliseconds from token to token over all captions: of the medians, the fastest and the slowest runs."""
    gaps = sum(caption["tokens"] - 1 for caption in captions)
    spreads = [Spread.of(caption[way]["decode_ms"]) for caption in captions]
    return Spread(*(sum(getattr(spread, part) for spread in spreads) / gaps for part in ("median", "low", "high")))


def times(slow: Sequence[Record], slow_way: str, fast: Sequence[Record], fast_way: str) -> str:
    """Ratio of the times of captions that both decoded; empty without any."""
    def named(captions: Sequence[Record]) -> dict[tuple[int, int], Record]:
        return {(caption["shots"], caption["query"]): caption for caption in captions}

    others = named(slow)
    pairs = [(others[key], caption) for key, caption in named(fast).items() if key in others]
    if not pairs:
        return ""
    slows, fasts = zip(*pairs, strict=True)
    return f"{gap_ms(slows, slow_way).median / gap_ms(fasts, fast_way).median:.2f}"


def decode_ms(case: Record) -> float:
    """Milliseconds from the first to the last token, from the median gap: one hiccup of the machine is not counted."""
    return per_token(case).median * (len(case["tokens"]) - 1)


def tokens_table(results: Record) -> str:
    """Agreement of tokens: every system with the peer's weights, against open_flamingo in fp32."""
    reference, rows = results["runs"].get(REFERENCE), []
    if reference is None:
        return ""
    for name, record in measured(results):
        if name == REFERENCE or SYSTEMS[name].kind == "idefics":
            continue
        for part, suffix in (("cases", ""), ("compiled", ", shots read before")):
            pairs = [(case, case_of(reference, case["shots"])) for case in record.get(part) or ()]
            pairs = [(case["tokens"], other["tokens"], case["shots"]) for case, other in pairs if other]
            if not pairs:
                continue
            parted = [f"{shots} shots: token {place + 1}" for mine, theirs, shots in pairs
                      if (place := first_difference(mine, theirs)) is not None]
            count = sum(differing(mine, theirs) for mine, theirs, _ in pairs)
            total = sum(min(len(mine), len(theirs)) for mine, theirs, _ in pairs)
            rows.append([SYSTEMS[name].label + suffix, f"{count} of {total}", "; ".join(parted) or "none"])
    return table(["tokens against open_flamingo fp32", "other tokens", "first difference"], rows)


def processes_table(results: Record) -> str:
    rows = []
    for name, record in results["runs"].items():
        if SYSTEMS[name].kind == "infer":
            rows.append([SYSTEMS[name].label, f"{Spread.of(record['seconds']).median:.2f} s",
                         f"{Spread.of(record['peak_bytes']).median / 1e9:.2f} GB = "
                         f"{Spread.of(record['peak_bytes']).median / record['bundle_bytes']:.2f} times the bundle"])
        elif SYSTEMS[name].kind == "start":
            spread = Spread.of(record["first_output_s"])
            rows.append([f"{SYSTEMS[name].label}, to the first word",
                         f"{spread.median:.3f} s ({spread.low:.3f} to {spread.high:.3f})", ""])
    return table(["whole processes", "time", "peak memory"], rows)


def ms(spread: Spread) -> str:
    return f"{spread.median:.4g} ({spread.low:.4g} to {spread.high:.4g})"
