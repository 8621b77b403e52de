"""From logits to the next token: processors that change logits, and a sampler that picks."""

from __future__ import annotations

import math

import numpy as np

from flamingo_rt.errors import DataError
from flamingo_rt.runtime.generation_options import GenerationOptions

BLOCK = 64  # values in a block, whose maximum `largest` looks at first


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-softmax along the last axis, float64. Raises `DataError` for logits that are not finite: see
    `check_largest`."""
    highest = logits.max(axis=-1, keepdims=True)
    check_largest(highest)
    shifted = logits.astype(np.float64) - highest
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_sum_exp(logits: np.ndarray, scratch: np.ndarray) -> float:
    """Log-sum-exp of float32 [vocab], within 1e-6. ``scratch``, float32 [vocab], is overwritten: no array of that size
    is allocated. The sum in float64 keeps the tail beside a token of almost all of the probability.

    Raises `DataError` for logits that are not finite: see `check_largest`."""
    highest = logits.max()
    check_largest(highest)
    np.subtract(logits, highest, out=scratch)
    np.exp(scratch, out=scratch)
    return float(highest) + math.log(scratch.sum(dtype=np.float64))


def check_largest(highest: np.ndarray) -> None:
    """Raise `DataError` when the largest logit, or the largest of any row, is not finite. One NaN among the logits
    makes it so, and then no token is likelier than another."""
    if not np.isfinite(highest).all():
        wrong = np.ravel(highest)[~np.isfinite(np.ravel(highest))][0]
        raise _no_choice(f"the largest is {wrong}")


def check_choice(logprob: float) -> None:
    """`check_largest` for a token chosen by the language model's graph, by its log-probability."""
    if not math.isfinite(logprob):
        raise _no_choice(f"the likeliest token has the log-probability {logprob}")


def _no_choice(why: str) -> DataError:
    return DataError(
        f"the model's logits are not numbers to choose by ({why}): its weights are damaged, or too large for their "
        "type; export or import it again, in float32 where it was half precision"
    )


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest values of [n], in no order."""
    if count >= values.size:
        return np.arange(values.size)
    blocks = values[: values.size - values.size % BLOCK].reshape(-1, BLOCK)
    if len(blocks) <= count:
        return np.argpartition(values, -count)[-count:]
    # They are in the blocks with the largest maxima: finding these first partitions far fewer values of a vocabulary.
    chosen = np.argpartition(blocks.max(axis=1), -count)[-count:]
    indices = np.append(chosen[:, None] * BLOCK + np.arange(BLOCK), np.arange(blocks.size, values.size))
    return indices[np.argpartition(values[indices], -count)[-count:]]


def penalise_repetition(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Make tokens in ``seen`` (bool [vocab]) less likely: positive logits are divided, negative ones multiplied."""
    scaled = np.where(logits > 0, logits / penalty, logits * penalty)
    return np.where(seen, scaled, logits)


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Rule out all but the ``k`` likeliest tokens (and ties with the last of them)."""
    if k >= logits.size:
        return logits
    threshold = np.partition(logits, -k)[-k]
    return np.where(logits < threshold, -np.inf, logits)


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Rule out all but the smallest set of tokens whose probability reaches ``p`` (arXiv 1904.09751)."""
    order = np.argsort(-logits, kind="stable")
    cumulative = np.cumsum(np.exp(log_softmax(logits[order])))
    kept = order[: int(np.searchsorted(cumulative, p)) + 1]
    result = np.full_like(logits, -np.inf)
    result[kept] = logits[kept]
    return result


class Sampler:
    """Chooses the next token of one row. Rows have their own random stream, so a row's answer does not depend on the
    others in its batch."""

    def __init__(self, options: GenerationOptions, vocab_size: int, prompt_ids: np.ndarray, row: int) -> None:
        self._options = options
        self._rng = np.random.default_rng([options.seed, row])
        self._seen = np.zeros(vocab_size, dtype=bool)
        self._seen[prompt_ids] = True
        self._scratch = np.empty(vocab_size, dtype=np.float32)

    def choose(self, logits: np.ndarray) -> tuple[int, float]:
        """Choose from logits float32 [vocab]; returns the token and its log-probability under the unchanged logits.
        Raises `DataError` when a logit is not a number."""
        options = self._options
        normaliser = log_sum_exp(logits, self._scratch)
        if options.temperature == 0.0:
            token = int(self._penalised(logits).argmax())
        else:
            token = self._draw(self._penalised(logits))
        self._seen[token] = True
        return token, float(logits[token]) - normaliser

    def _penalised(self, logits: np.ndarray) -> np.ndarray:
        """The logits with the repetition penalty, in the scratch array; the logits themselves without a penalty."""
        penalty = self._options.repetition_penalty
        if penalty == 1.0:
            return logits
        seen = np.flatnonzero(self._seen)
        self._scratch[:] = logits
        self._scratch[seen] = penalise_repetition(logits[seen], np.ones(len(seen), dtype=bool), penalty)
        return self._scratch

    def _draw(self, logits: np.ndarray) -> int:
        # The largest logit becomes 0 first: a tiny temperature must not overflow.
        with np.errstate(over="ignore"):  # far below the largest is as good as -inf
            logits = (logits.astype(np.float64) - logits.max()) / self._options.temperature
        if self._options.top_k:
            logits = keep_top_k(logits, self._options.top_k)
        if self._options.top_p < 1.0:
            logits = keep_top_p(logits, self._options.top_p)
        cumulative = np.cumsum(np.exp(log_softmax(logits)))
        return int(np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right"))
