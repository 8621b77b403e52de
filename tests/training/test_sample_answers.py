"""Sample answers: those of a naive loop over the whole batch, with each picture encoded once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from captioned_run import captioned_run
from small_model import TEXTS, small_config, small_flamingo

from flamingo_rt.checkpoints import save_checkpoint
from flamingo_rt.training import sample_answers
from flamingo_rt.training.flamingo_stage import FlamingoStage, _sample_parts
from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.options import DataOptions, FlamingoOptions
from flamingo_rt.training.sample_answers import row_of
from flamingo_rt.training.sharding import World
from flamingo_rt.training.tokenizer_training import train_tokenizer


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> FlamingoOptions:
    """Documents of two pictures each, of a model with learnt positions and little room behind them."""
    folder = tmp_path_factory.mktemp("captioned")
    options = captioned_run(folder / "run")
    config = small_config()
    config = replace(config, language=replace(config.language, positions="learnt", context=40))
    save_checkpoint(folder / "learnt", small_flamingo(config),
                    train_tokenizer(TEXTS, config.language.vocab_size, config.tokens).to_str())
    return replace(options, start_from=str(folder / "learnt"), data=(replace(options.data[0], batch=8, chunks=(2,)),))


@pytest.fixture
def stage(options) -> FlamingoStage:
    stage = open_flamingo_stage(options, World())
    stage.model.eval()
    return stage


@torch.no_grad()
def test_answers_are_those_of_a_loop_that_reads_the_whole_batch_for_each_token(stage, monkeypatch) -> None:
    monkeypatch.setattr(sample_answers, "MOST_TOKENS", 6)
    lines = list(stage.sample_lines())
    batch = stage.datasets[0].batches.draw(0, 0, 1).batch
    assert len(lines) == sample_answers.ROWS
    for row, line in enumerate(lines):
        start = int((batch.labels[row] >= 0).nonzero()[0])
        ids, index = batch.input_ids[row : row + 1, :start], batch.media_index[row : row + 1, :start]
        for _ in range(6):
            logits = stage.model.model(ids, index, batch.pixel_values, batch.rows[row : row + 1])[0]
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
            index = torch.cat([index, index[:, -1:]], 1)
        answer = sample_answers._text(ids[0, start:], stage.tokenizer, stage.config)
        assert f" -> {answer} (right: " in line


@torch.no_grad()
def test_the_encoder_runs_once_for_each_answer_on_what_its_prompt_shows(stage) -> None:
    seen: list[int] = []
    stage.model.model.vision.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    assert len(list(stage.sample_lines())) == sample_answers.ROWS
    assert seen == [2] * sample_answers.ROWS


@torch.no_grad()
def test_an_answer_ends_where_the_context_of_learnt_positions_does(stage, monkeypatch) -> None:
    monkeypatch.setattr(sample_answers, "MOST_TOKENS", 100)
    lengths: list[int] = []
    stage.model.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].input_ids.shape[1]))
    list(stage.sample_lines())
    assert max(lengths) == stage.config.language.context - 1


@torch.no_grad()
def test_a_row_alone_reads_as_in_its_batch_also_where_some_pictures_were_cached(stage) -> None:
    batch = stage.datasets[0].batches.draw(0, 0, 1).batch
    features = stage.model(batch).new.half()
    missing = torch.tensor([0, 3, 4, 7, 9, 14])
    cached = features.index_fill(0, missing, 0.0)
    mixed = batch._replace(cached=cached, missing=missing, pixel_values=batch.pixel_values[missing])
    for whole in (batch, mixed):
        logits = stage.model(whole).logits
        for row in range(len(batch.rows)):
            one = row_of(whole, row)
            assert len(one.keys) == one.rows.numel() == 2
            torch.testing.assert_close(stage.model(one).logits[0], logits[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("batch", "documents"), [(1, 1), (3, 3), (5, 5), (6, 3), (8, 4), (31, 31), (512, 4)])
def test_as_few_documents_are_drawn_as_a_batch_can_be_divided_into(batch: int, documents: int) -> None:
    assert batch // _sample_parts(DataOptions("folder", batch=batch)) == documents
    assert _sample_parts(DataOptions("scenes", batch=batch)) == 1
