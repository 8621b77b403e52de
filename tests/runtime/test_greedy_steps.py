"""Greedy steps that are enqueued before it is known what those before them chose."""

import numpy as np
import pytest
from recording import deliver

from flamingo_rt.backend import HostBackend, HostGreedySteps
from flamingo_rt.contract import NEXT_LOGPROB, graph_specs
from flamingo_rt.errors import DataError
from flamingo_rt.runtime.model import Model

AHEAD = 2


class CountingSteps(HostGreedySteps):
    """Keeps what each step chose until it is asked for, and how far steps ran ahead of that."""

    def __init__(self, *bound) -> None:
        super().__init__(*bound)
        self.waiting, self.lengths, self.most_waiting, self.finished = [], [], 0, False

    def enqueue(self, lengths) -> None:
        super().enqueue(lengths)
        self.lengths.append(lengths.tolist())
        self.waiting.append(super().wait_next())
        self.most_waiting = max(self.most_waiting, len(self.waiting))

    def wait_next(self):
        return self.waiting.pop(0)

    def finish(self) -> None:
        self.finished = True


class AlphabetEngine(HostBackend):
    """Says the letter behind a row's last one, and after z the end of the chunk; runs ahead."""

    name, steps_ahead = "alphabet", AHEAD

    def __init__(self, config, tokenizer, damaged=None) -> None:
        super().__init__(graph_specs(config))
        letters = [tokenizer.encode(letter)[0] for letter in "uvwxyz"]
        self.next = dict(zip(letters, [*letters[1:], tokenizer.end_of_chunk_id], strict=True))
        self.vocabulary, self.damaged, self.steps = config.language.vocab_size, damaged, None

    def bind(self, graph, inputs, outputs, constant=()):
        def call() -> None:
            wanted = inputs["input_ids"][np.arange(len(inputs["input_ids"]))[:, None], inputs["logits_index"]]
            logits = np.zeros((*wanted.shape, self.vocabulary), np.float32)
            for place in np.ndindex(wanted.shape):
                logits[(*place, self.next.get(int(wanted[place]), 0))] = 9.0
            deliver(logits, outputs)
            if NEXT_LOGPROB in outputs and self.damaged in wanted:
                outputs[NEXT_LOGPROB][:] = np.nan

        return call

    def bind_greedy_steps(self, cache, inputs, outputs, constant=()):
        self.steps = CountingSteps(self.bind("language_model", inputs, outputs, constant), inputs, outputs)
        return self.steps


@pytest.fixture
def backend(config, tokenizer):
    return AlphabetEngine(config, tokenizer)


def test_rows_end_by_themselves_while_steps_run_ahead(backend, config, tokenizer):
    results = Model(backend, config, tokenizer).generate_batch(["u", "x"], max_new_tokens=20)
    assert [result.text for result in results] == ["vwxyz", "yz"]
    assert [result.stop_reason for result in results] == ["end_of_chunk"] * 2
    assert backend.steps.most_waiting == AHEAD + 1
    assert backend.steps.finished


def test_each_step_is_told_how_much_is_cached_when_it_runs(backend, config, tokenizer):
    model = Model(backend, config, tokenizer)
    model.generate("u", max_new_tokens=20).result()
    start = len(model.prompt("u"))
    assert backend.steps.lengths == [[start + step] for step in range(5 + AHEAD)]


def test_no_step_is_enqueued_behind_the_last_token_of_an_answer(backend, config, tokenizer):
    result = Model(backend, config, tokenizer).generate("u", max_new_tokens=3).result()
    assert (result.text, result.steps, len(backend.steps.lengths)) == ("vwx", 2, 2)


def test_where_steps_run_ahead_nothing_is_guessed_unless_it_is_asked_for(backend, config, tokenizer):
    model = Model(backend, config, tokenizer)
    assert model.generate("u v w x y z u v", max_new_tokens=3).result().drafted == 0
    assert backend.steps is not None
    backend.steps = None
    assert model.generate("u", max_new_tokens=3, speculation=4).result().text == "vwx"
    assert backend.steps is None


def test_an_answer_that_is_given_up_waits_for_the_steps_that_are_under_way(backend, config, tokenizer):
    pieces = iter(Model(backend, config, tokenizer).generate("u", max_new_tokens=5))
    assert [next(pieces), next(pieces)] == ["v", "w"]
    assert not backend.steps.finished
    pieces.close()
    assert backend.steps.finished


def test_logits_that_are_no_numbers_end_the_answer(config, tokenizer):
    backend = AlphabetEngine(config, tokenizer, damaged=tokenizer.encode("x")[0])
    with pytest.raises(DataError, match=r"not numbers to choose by .* log-probability nan.*: its weights are damaged"):
        Model(backend, config, tokenizer).generate("u", max_new_tokens=9).result()
    assert backend.steps.finished
