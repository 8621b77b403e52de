"""Decode for some seconds, to be set beside the power that the board takes meanwhile.

    python -m benchmarks.jetson_steps.decoding --model BUNDLE --backend tensorrt --seconds 20

One row, greedy, behind a picture and some text, from the same filled cache again and again. The last line is JSON, with
the times of `time.monotonic` between which the tokens were made:

    {"decoded": {"tokens": 5120, "start": 8123.4, "end": 8143.5, "context": 64}}
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from flamingo_rt.bench.workload import CacheFilling, Pictures
from flamingo_rt.loading import BACKENDS, load

CONTEXT, TOKENS = 64, 64  # in the cache before, and added to it before it is rewound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, metavar="BUNDLE")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    model = load(options.model, options.backend)
    limits = model.backend.limits
    room = min(model.config.language.context, limits.capacity if limits else CONTEXT + TOKENS)
    context = min(CONTEXT, room // 2, limits.tokens if limits else CONTEXT)
    tokens, filling = min(TOKENS, room - context), CacheFilling(model, Pictures().take(1)[0])
    with filling.decoder(1, context + tokens) as decoder:
        decoder.prefill(filling.rows(1, context))
        first, count = filling.text_ids(1), 0

        def decode() -> int:
            decoder.rewind(context)
            return sum(1 for _ in decoder.step_greedily(first, tokens))

        decode()  # warm-up
        start = time.monotonic()
        while time.monotonic() - start < options.seconds:
            count += decode()
        end = time.monotonic()
    print(json.dumps({"decoded": {"tokens": count, "start": start, "end": end, "context": context}}))


if __name__ == "__main__":
    main()
