"""Beam search written down as the transformers library does it, over a function that gives log-probabilities of any
prompt: nothing is kept from one step to the next but the tokens. The oracle of `flamingo_rt.runtime.beams`."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np


def search_slowly(
    next_logprobs: Callable[[list[int]], np.ndarray],
    stop_ids: Collection[int],
    beams: int,
    length_penalty: float,
    limit: int,
    ends: Callable[[list[int]], bool] = lambda tokens: False,
) -> list[int]:
    """The best answer, without its end token. ``next_logprobs`` [vocab] are those after so many answer tokens, with all
    penalties; ``ends`` says whether a text that ends an answer is in it."""
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, limit + 1):
        candidates = []
        for total, tokens in running:
            for token, logprob in enumerate(next_logprobs(tokens).tolist()):
                candidates.append((total + logprob, [*tokens, token]))
        candidates.sort(key=lambda candidate: -candidate[0])
        best_total, running = candidates[0][0], []
        for rank, (total, tokens) in enumerate(candidates):
            if len(running) == beams:
                break
            if tokens[-1] in stop_ids or ends(tokens):
                if rank < beams:
                    _keep(finished, beams, total / length**length_penalty, tokens)
            else:
                running.append((total, tokens))
        if len(finished) == beams and min(finished)[0] >= best_total / length**length_penalty:
            break
    else:
        for total, tokens in running:
            _keep(finished, beams, total / limit**length_penalty, tokens)
    best = max(finished, key=lambda entry: entry[0])[1]
    return best[:-1] if best[-1] in stop_ids else best


def _keep(finished: list[tuple[float, list[int]]], most: int, score: float, tokens: list[int]) -> None:
    if len(finished) < most or score > min(finished)[0]:
        finished.append((score, tokens))
        if len(finished) > most:
            finished.remove(min(finished))
