"""Drawing ahead: the same batches in the same order with any number of processes."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from made_data import captions
from small_model import small_config

from flamingo_rt.errors import DataError
from flamingo_rt.training.data.document_batches import DocumentBatches
from flamingo_rt.training.data.loader import drawn
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.options import DataOptions
from flamingo_rt.training.stage import Dataset, Drawn
from flamingo_rt.training.tokenizer_training import train_tokenizer

CONFIG = replace(small_config(), language=replace(small_config().language, vocab_size=400, context=512))


class Named:
    """Batches that say which they are."""

    def __init__(self, name: str) -> None:
        self.name = name

    def draw(self, step: int, part: int, parts: int) -> Drawn:
        return Drawn((self.name, step, part, parts))

    def fingerprint(self) -> str:
        return self.name


class Ending(Named):
    """Batches of which one ends the process that draws it."""

    def draw(self, step: int, part: int, parts: int) -> Drawn:
        if step == 1:
            os._exit(1)
        return super().draw(step, part, parts)


class Refusing(Named):
    """Batches that raise an error with a remedy, instead of giving it."""

    def draw(self, step: int, part: int, parts: int) -> Drawn:
        raise DataError(f"cannot draw {self.name}: draw another")


TWO = [Dataset(name, 1.0, Named(name)) for name in "ab"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = captions(tmp_path_factory.mktemp("captions"), 10)
    (folder / "3.png").write_bytes(b"damaged")
    tokenizer = train_tokenizer(["Output: number 1 number 2"] * 3, 400, CONFIG.tokens)
    options = DataOptions(str(folder), batch=4, chunks=(1, 2), augment=True)
    return Dataset("captions", 1.0, DocumentBatches(open_source(options), options, CONFIG, tokenizer, 0, 0))


def equal(one: Drawn, other: Drawn) -> bool:
    tensors = all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
                  for a, b in zip(one.batch, other.batch, strict=True))
    return tensors and one[1:] == other[1:]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_batches(dataset, workers) -> None:
    in_this_process = list(drawn([dataset], 2, 7, range(2), 2, 0, False))
    assert sum(len(part.damaged) for part in in_this_process) > 0
    ahead = list(drawn([dataset], 2, 7, range(2), 2, workers, False))
    assert len(ahead) == len(in_this_process) == 10
    assert all(equal(one, other) for one, other in zip(ahead, in_this_process, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_come_by_step_dataset_and_part(workers) -> None:
    found = [part.batch for part in drawn(TWO, 3, 5, range(2, 4), 6, workers, False)]
    assert found == [(name, step, part, 6) for step in (3, 4) for name in "ab" for part in (2, 3)]


@pytest.mark.parametrize("workers", [0, 2])
def test_datasets_take_turns_and_none_of_their_batches_is_left_out(workers) -> None:
    found = [part.batch for part in drawn(TWO, 3, 7, range(1), 1, workers, True)]
    assert found == [("b", 1, 0, 1), ("a", 2, 0, 1), ("b", 2, 0, 1), ("a", 3, 0, 1)]


def test_a_finished_run_draws_nothing() -> None:
    assert list(drawn(TWO, 5, 5, range(1), 1, 2, False)) == []


def test_errors_come_as_values_from_other_processes(tmp_path, dataset) -> None:
    [part] = drawn([dataset], 0, 1, range(1), 3, 1, False)
    assert "cannot be divided into 3 equal parts" in str(part.error)
    assert part.batch is None


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_that_are_raised_come_as_values_too(workers) -> None:
    [part] = drawn([Dataset("one", 1.0, Refusing("one"))], 0, 1, range(1), 1, workers, False)
    assert isinstance(part.error, DataError)
    assert str(part.error) == "cannot draw one: draw another"


def test_a_process_that_ends_is_an_error_with_a_remedy() -> None:
    parts = drawn([Dataset("ending", 1.0, Ending("ending"))], 0, 4, range(1), 1, 1, False)
    with pytest.raises(DataError, match="lower workers or the batch"):
        list(parts)


def test_drawing_ahead_leaves_the_runs_random_numbers_and_environment(dataset) -> None:
    torch.manual_seed(0)
    right = torch.rand(3)
    torch.manual_seed(0)
    before = dict(os.environ)
    list(drawn(TWO, 0, 2, range(1), 1, 1, False))
    assert torch.equal(torch.rand(3), right)
    assert dict(os.environ) == before
