"""Write tests/fixtures/openflamingo: what the real OpenFlamingo answers with random weights at small sizes.

    benchmarks/peers/.venv/bin/python -m benchmarks.peers.write_fixtures [case ...]

Runs in the peer's environment (README.md beside this file). The vision encoder is open_clip's, the model
open_flamingo's, the language models transformers'; ``mosaic_gpt`` alone is a stand-in, made from transformers' MPT
(library_models.py). A prompt is drawn again until its greedy tokens are a fair test: varied, and never a near tie.
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import logging

from benchmarks.peers.filled_openflamingo import Peer, make_peer
from benchmarks.peers.fixture_prompts import PROMPTS, Row, make_rows, padded, pixel_tensor
from benchmarks.peers.openflamingo_cases import CASES, END_OF_CHUNK, MEDIA, PAD, RESIZED, VISION, Case

OUT = Path(__file__).parents[2] / "tests" / "fixtures" / "openflamingo"
NEW_TOKENS, NEVER = 32, 10_000
GAP, DISTINCT, ATTEMPTS = 3e-3, 4, 200
# Logits are rounded to multiples of this to be small in a file. The peer itself, asked for a row alone and in a batch,
# differs by several times as much.
GRID = 2.0**-16


def answer(peer: Peer, case: Case, rows: list[Row]) -> tuple[list[np.ndarray], np.ndarray, float]:
    """Logits [T, predictable] per row, greedy tokens [rows, 32], smallest distance of the best two along the way."""
    pixels = pixel_tensor(case, rows)
    ids, mask = padded(rows, left=False)
    logits = peer.model(pixels, ids, attention_mask=mask).logits[..., : peer.predictable]
    ids, mask = padded(rows, left=True)
    output = peer.model.generate(
        pixels, ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True,
        eos_token_id=NEVER, pad_token_id=PAD, suppress_tokens=suppressed(peer), output_scores=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(output.scores).topk(2).values
    tokens = output.sequences[:, ids.shape[1] :].numpy()
    assert tokens.shape == (len(rows), NEW_TOKENS)
    kept = [logits[index, : len(row.input_ids)].numpy() for index, row in enumerate(rows)]
    return kept, tokens, (best[..., 0] - best[..., 1]).min().item()


def suppressed(peer: Peer) -> list[int]:
    """Tokens that generation may not choose: media, and those that the checkpoint has no head for.

    After a media token in an answer the peer counts the images of every row from the start again.
    """
    return sorted({MEDIA, *range(peer.predictable, RESIZED)})


def fair_prompt(peer: Peer, case: Case, prompt: str) -> tuple[list[Row], list[np.ndarray], np.ndarray]:
    """The first draw whose greedy tokens are varied and never a near tie."""
    for attempt in range(ATTEMPTS):
        rows = make_rows(case, prompt, attempt)
        logits, tokens, gap = answer(peer, case, rows)
        distinct = [len(set(row.tolist())) for row in tokens]
        if gap > GAP and min(distinct) >= DISTINCT:
            largest = max(np.abs(row).max() for row in logits)
            print(f"  {prompt}: draw {attempt}, distinct {distinct}, gap {gap:.4f}, largest logit {largest:.1f}")
            assert largest < 50
            return rows, logits, tokens
    raise SystemExit(f"{case.name} {prompt}: no fair draw in {ATTEMPTS}")


def check_alone(peer: Peer, case: Case, rows: list[Row], logits: list[np.ndarray], tokens: np.ndarray) -> None:
    """The peer answers each row of a batch as it does alone."""
    for index, row in enumerate(rows):
        alone_logits, alone_tokens, _ = answer(peer, case, [row])
        difference = np.abs(alone_logits[0] - logits[index]).max()
        same = (alone_tokens[0] == tokens[index]).all()
        print(f"  batch row {index} alone: logits differ by {difference:.1e}, tokens {'same' if same else 'DIFFERENT'}")
        assert difference < 1e-4
        assert same


def check_images_matter(peer: Peer, case: Case, row: Row) -> None:
    """Other pictures give other logits."""
    others = Row(row.input_ids, [number + 5 for number in row.pixels])
    (first,), (second,) = (answer(peer, case, [candidate])[0] for candidate in (row, others))
    difference = np.abs(first - second).max()
    print(f"  other pictures change logits by {difference:.2f}")
    assert difference > 1e-2


def write(case: Case) -> None:
    print(case.name)
    peer = make_peer(case)
    all_rows: list[Row] = []
    all_logits: list[np.ndarray] = []
    all_tokens: list[np.ndarray] = []
    prompts = {}
    for prompt in PROMPTS:
        rows, logits, tokens = fair_prompt(peer, case, prompt)
        if prompt == "batch":
            check_alone(peer, case, rows, logits, tokens)
        if prompt == "leading":
            check_images_matter(peer, case, rows[0])
        prompts[prompt] = list(range(len(all_rows), len(all_rows) + len(rows)))
        all_rows += rows
        all_logits += logits
        all_tokens += list(tokens)
    record = describe(case, peer) | {"prompts": prompts, "pixels": [row.pixels for row in all_rows]}
    lines = (f" {json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in record.items())
    (OUT / f"{case.name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    lengths = [len(row.input_ids) for row in all_rows]
    ids = np.full((len(all_rows), max(lengths)), PAD, dtype=np.int64)
    for index, row in enumerate(all_rows):
        ids[index, : lengths[index]] = row.input_ids
    np.savez_compressed(
        OUT / f"{case.name}.npz", input_ids=ids, lengths=np.array(lengths),
        images=np.array([len(row.pixels) for row in all_rows]), greedy=np.stack(all_tokens),
        logits=(np.round(np.concatenate(all_logits) / GRID) * GRID).astype(np.float32),
    )


def describe(case: Case, peer: Peer) -> dict[str, Any]:
    """Everything that a test needs to write the three files and to describe them."""
    packages = {"torch": "torch", "transformers": "transformers", "open_clip": "open-clip-torch",
                "open_flamingo": "open-flamingo"}
    return {
        "seed": case.seed, "family": case.family, "interval": case.interval, "vision": case.vision,
        "activation": case.activation, "post_norm": case.post_norm,
        "versions": {name: version(package) for name, package in packages.items()},
        "tokens": {"end_of_chunk": END_OF_CHUNK, "media": MEDIA, "pad": PAD},
        "predictable": peer.predictable, "suppress_tokens": suppressed(peer),
        "checkpoint_naming": case.naming, "checkpoint_wrapping": case.wrapping,
        "vision_sizes": VISION, "language_config": peer.language_config, "vision_config": peer.vision_config,
        "files": {"checkpoint": peer.checkpoint, "language": peer.language, "vision": peer.vision},
        "aliases": peer.aliases,
    }


def main() -> None:
    """Write all cases, or those named."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()  # transformers explains how it fills the resized rows, which are replaced
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for case in CASES:
            if not sys.argv[1:] or case.name in sys.argv[1:]:
                write(case)


if __name__ == "__main__":
    main()
