"""A cache is closed by its opener: answers that end, fail, are given up, or are never asked for."""

import gc

import numpy as np
import pytest
from recording import RecordingEngine

from flamingo_rt.backend import HostCache
from flamingo_rt.errors import DataError
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.runtime.decoder import Decoder, Row
from flamingo_rt.runtime.model import Model

WAYS = (  # each is another loop: greedy, guessing ahead, from logits, beams
    {"speculation": 0}, {"speculation": 4}, {"temperature": 1.0, "seed": 0}, {"beams": 3},
)


@pytest.fixture
def opened(monkeypatch):
    """The caches that are open now, by identity."""
    held: dict[int, HostCache] = {}
    begin, close = HostCache.__init__, HostCache.close

    def recording(self, *arguments) -> None:
        begin(self, *arguments)
        held[id(self)] = self

    def forgetting(self) -> None:
        close(self)
        held.pop(id(self), None)

    monkeypatch.setattr(HostCache, "__init__", recording)
    monkeypatch.setattr(HostCache, "close", forgetting)
    return held


@pytest.fixture
def backend(flamingo):
    return RecordingEngine(TorchBackend(flamingo))


@pytest.fixture
def model(backend, config, tokenizer):
    return Model(backend, config, tokenizer)


def text_row(count=4):
    return Row(np.arange(65, 65 + count), np.zeros(count, dtype=np.int64), [])


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_finished_answer_has_given_its_cache_back(model, opened, options):
    model.generate("Output: a red", max_new_tokens=5, **options).result()
    assert not opened


def test_prompts_and_scores_give_their_caches_back(model, opened, pictures):
    prefix = model.prompt([pictures[0], "Output:"])
    model.score("a red", ["circle", "square"], prefix=prefix)
    assert not opened


@pytest.mark.parametrize("options", WAYS[:3], ids=str)
def test_an_answer_that_goes_half_way_gives_its_cache_back(model, opened, options):
    """Turn Python's cycle collector off: the memory must not wait for it."""
    gc.disable()
    try:
        answer = model.generate("Output: a red", max_new_tokens=20, **options)
        pieces = iter(answer)
        next(pieces)
        assert len(opened) == 1
        del answer, pieces
        assert not opened
    finally:
        gc.enable()


def test_an_answer_is_closed_though_somebody_holds_it(model, opened):
    answer = model.generate("Output: a red", max_new_tokens=20, speculation=0)
    next(iter(answer))
    assert opened
    answer.close()
    answer.close()
    assert not opened


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_an_answer_that_nobody_asks_for_has_no_cache(model, backend, opened, options):
    answer = model.generate("Output: a red", max_new_tokens=5, **options)
    assert not opened
    answer.close()
    assert not opened
    assert not backend.calls["language_model"]


@pytest.mark.parametrize("at", [0, 2], ids=["prompt", "step"])
@pytest.mark.parametrize("options", WAYS, ids=str)
def test_an_answer_that_fails_gives_its_cache_back(flamingo, config, tokenizer, opened, options, at):
    class Failing(RecordingEngine):
        def bind(self, graph, inputs, outputs, constant=()):
            run = super().bind(graph, inputs, outputs, constant)

            def call() -> None:
                if self.calls[graph] == at:
                    raise DataError("it fails")
                run()

            return call

    answer = Model(Failing(TorchBackend(flamingo)), config, tokenizer).generate(
        "Output: a red", max_new_tokens=9, **options
    )
    with pytest.raises(DataError, match="it fails") as caught:
        answer.result()
    assert not opened, "though its error holds every frame"
    del caught


def test_a_prefix_that_cannot_be_restored_leaves_no_cache_open(model, opened, monkeypatch):
    def refuse(*arguments) -> None:
        raise DataError("too little memory")

    prefix = model.prompt("Output:")
    monkeypatch.setattr(HostCache, "restore", refuse)
    with pytest.raises(DataError, match="too little memory"):
        model.score("a red", ["circle"], prefix=prefix)
    assert not opened


def test_rows_that_are_expanded_take_the_place_of_their_cache(backend, config, opened):
    with Decoder(backend, config, 1, 16) as decoder:
        decoder.prefill([text_row()])
        decoder.expand_rows(3)
        assert [cache.buffers()["past_key_values.0.key"].shape[0] for cache in opened.values()] == [3]
    assert not opened


def test_closing_twice_does_nothing(backend, config, opened):
    decoder = Decoder(backend, config, 1, 16)
    decoder.prefill([text_row()])
    decoder.close()
    decoder.close()
    assert not opened


def test_a_closed_decoder_takes_no_step(backend, config):
    decoder = Decoder(backend, config, 1, 16)
    decoder.prefill([text_row()])
    token = np.array([65])
    decoder.step(token)  # bound before it is closed
    next(decoder.step_greedily(token, 1))
    decoder.close()
    with pytest.raises(ValueError, match="the cache is closed"):
        decoder.step(token)
    with pytest.raises(ValueError, match="the cache is closed"):
        next(decoder.step_greedily(token, 1))
