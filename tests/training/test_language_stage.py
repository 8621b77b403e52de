"""Stage 2: the loss is the formula's and falls, what it writes is the model, and tokenizers of every origin."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peer_model import write_tokenizer
from small_model import TEXTS, small_checkpoint, small_config
from tokenizers import Tokenizer

from flamingo_rt import model_memory
from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.model.flamingo import IGNORED_LABEL
from flamingo_rt.model.language_model import LanguageModel
from flamingo_rt.presets import preset
from flamingo_rt.training import language_stage
from flamingo_rt.training.data.text_batches import TextBatch
from flamingo_rt.training.language_stage import LanguageStage, open_language_stage, tokenizer_and_tokens
from flamingo_rt.training.loop import train
from flamingo_rt.training.options import DataOptions, LanguageOptions, RunOptions
from flamingo_rt.training.sharding import World
from flamingo_rt.training.tokenizer_training import train_tokenizer
from flamingo_rt.training.towers import read_tower, write_tower


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 4))
    return path


@pytest.fixture(autouse=True)
def small_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset of 30,000 parameters."""
    monkeypatch.setattr(language_stage, "preset", lambda name: small_config() if name == "small" else preset(name))


def options_of(file: Path, batch: int = 8, **options: object) -> LanguageOptions:
    run = RunOptions(steps=2, warmup_steps=0, learning_rate=2e-3, workers=0)
    given = {"context": 32, "vocab_size": 300, "run": run, "decoder": "small"} | options
    return LanguageOptions(data=(DataOptions(str(file), batch=batch),), **given)


def opened(file: Path, **options: object) -> LanguageStage:
    return open_language_stage(options_of(file, **options), World())


def batch_of(stage: LanguageStage, step: int = 0) -> TextBatch:
    return stage.datasets[0].batches.draw(step, 0, 1).batch


def naive_loss(stage: LanguageStage, batch: TextBatch) -> tuple[float, int]:
    """Sum of the losses and their number, from the probability of one token at a time."""
    total, count = 0.0, 0
    for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
        for place in range(1, len(ids)):
            if labels[place] != IGNORED_LABEL:
                with torch.no_grad():
                    logits = stage.model(ids[None, :place], torch.arange(place)[None])[0, -1]
                total -= float(logits.log_softmax(-1)[labels[place]])
                count += 1
    return total, count


# Loss


def test_the_loss_is_that_of_one_token_at_a_time(file: Path) -> None:
    stage = opened(file, batch=2, repeats=0.5, context=24)
    batch = batch_of(stage)
    total, count = naive_loss(stage, batch)
    assert float(stage.loss("texts.jsonl", batch).total.detach()) == pytest.approx(total, rel=1e-5)
    assert (stage.targets(batch), stage.tokens(batch)) == (count, 48)


def test_the_loss_on_repeated_segments_is_logged_apart(file: Path) -> None:
    stage = opened(file, batch=4, repeats=0.5)
    batch = batch_of(stage)
    copies = TextBatch(*(tensor[batch.repeated] for tensor in batch))
    assert stage.scalars() == {}
    stage.loss("texts.jsonl", batch)
    total, count = naive_loss(stage, copies)
    assert stage.scalars()["copy_loss"] == pytest.approx(total / count, rel=1e-5)
    assert stage.scalars() == {}


def test_the_loss_on_repeated_segments_is_that_of_all_ranks(file: Path, monkeypatch) -> None:
    stage = opened(file, batch=4, repeats=0.5)
    batch = batch_of(stage)
    total, count = naive_loss(stage, TextBatch(*(tensor[batch.repeated] for tensor in batch)))
    elsewhere = iter((3.0, 2))  # summed loss and tokens of another rank
    monkeypatch.setattr(World, "total", lambda world, number: number + next(elsewhere))
    stage.loss("texts.jsonl", batch)
    assert stage.scalars()["copy_loss"] == pytest.approx((total + 3) / (count + 2), rel=1e-5)


def test_training_lowers_the_loss(file: Path) -> None:
    stage = opened(file)
    optimizer = torch.optim.AdamW(stage.model.parameters(), lr=1e-2)
    losses = []
    for step in range(40):
        batch = batch_of(stage, step)
        loss = stage.loss("texts.jsonl", batch).total / stage.targets(batch)
        loss.backward()
        stage.clip(1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.9 * math.log(300)
    assert losses[-1] < 0.5 * losses[0]


def test_weight_decay_acts_on_matrices(file: Path) -> None:
    stage = opened(file)
    for name, parameter in stage.model.named_parameters():
        assert stage.updating(name, parameter) == (parameter.ndim == 2, 1.0), name


# The result


def test_the_loop_writes_a_tower_that_is_the_model(file: Path, tmp_path: Path) -> None:
    stage, options = opened(file), options_of(file)
    out = tmp_path / "tower"
    train(stage, options.run, out, World())
    tower = read_tower(out, "language")
    assert (tower.language, tower.tokens) == (stage.config, TokensConfig())
    model = LanguageModel(tower.language)
    model.load_state_dict({name.removeprefix("language."): t.read() for name, t in tower.tensors.items()})
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        assert torch.equal(model(ids, torch.arange(4)[None]), stage.logits(ids))
    assert Tokenizer.from_str(tower.tokenizer or "").get_vocab() == stage.tokenizer.get_vocab()


def test_a_run_goes_on_with_a_towers_weights_sizes_and_tokenizer(file: Path, tmp_path: Path) -> None:
    stage, options = opened(file), options_of(file)
    train(stage, options.run, tmp_path / "tower", World())
    again = opened(file, start_from=str(tmp_path / "tower"))
    assert (again.config, again.tokens_config) == (stage.config, stage.tokens_config)
    assert again.tokenizer.get_vocab() == stage.tokenizer.get_vocab()
    for name, tensor in stage.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    before = float(again.loss("texts", batch_of(again)).total.detach())
    train(again, options.run, tmp_path / "again", World())
    assert float(again.loss("texts", batch_of(again)).total.detach()) < before


def test_rows_beyond_a_towers_table_of_positions_are_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config()
    learnt = replace(config, language=replace(config.language, positions="learnt"))
    monkeypatch.setattr(language_stage, "preset", lambda name: learnt)
    opened(file).write(tmp_path / "tower", overwrite=False)
    with pytest.raises(UsageError, match="tower has a table of 32 positions, and context is 64: give rows of 32"):
        opened(file, start_from=str(tmp_path / "tower"), context=64, decoder=LanguageOptions.decoder)


def test_a_decoder_of_other_sizes_than_the_one_that_a_run_goes_on_with_is_refused(file: Path, tmp_path: Path) -> None:
    opened(file).write(tmp_path / "tower", overwrite=False)
    assert opened(file, start_from=str(tmp_path / "tower"), decoder=LanguageOptions.decoder).config.width == 32
    with pytest.raises(UsageError, match="tower has other sizes than the decoder of openflamingo-3b: leave decoder"):
        opened(file, start_from=str(tmp_path / "tower"), decoder="openflamingo-3b")


def test_a_whole_checkpoint_is_no_decoder_to_go_on_with(file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a whole Flamingo checkpoint, not a language tower"):
        opened(file, start_from=str(small_checkpoint(tmp_path / "whole")))


def test_a_decoder_that_a_run_goes_on_with_is_named_where_memory_lacks(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(file).write(tmp_path / "tower", overwrite=False)
    monkeypatch.setattr(model_memory, "available_bytes", lambda: 1000)
    with pytest.raises(DataError, match=r"training the decoder of .*tower needs at least"):
        opened(file, start_from=str(tmp_path / "tower"))


def test_the_parts_of_a_batch_have_its_gradient(file: Path) -> None:
    gradients = []
    for parts in (1, 4):
        stage = opened(file, repeats=0.25)
        for part in range(parts):
            stage.loss("texts.jsonl", stage.datasets[0].batches.draw(0, part, parts).batch).total.backward()
        gradients.append([parameter.grad for parameter in stage.model.parameters()])
    for whole, added in zip(*gradients, strict=True):
        torch.testing.assert_close(added, whole, atol=1e-4, rtol=1e-4)


def test_sample_lines_are_greedy_continuations(file: Path) -> None:
    stage = opened(file)
    lines = list(stage.sample_lines())
    assert len(lines) == 3
    ids = batch_of(stage).input_ids[0, :12].tolist()
    for _ in range(24):
        with torch.no_grad():
            ids.append(int(stage.model(torch.tensor([ids]), torch.arange(len(ids))[None])[0, -1].argmax()))
    prompt, continuation = (" ".join(stage.tokenizer.decode(part).split()) for part in (ids[:12], ids[12:]))
    assert lines[0] == f"texts.jsonl: {prompt} -> {continuation}"
    assert list(opened(file, repeats=1.0).sample_lines()) == []


def test_the_first_of_several_ranks_draws_the_samples_for_all(file: Path) -> None:
    class Second(World):
        def from_first(self, make):
            return drawn

    def refuse(*arguments) -> None:
        pytest.fail("this rank draws for itself")

    stage = opened(file)
    expected, drawn = list(stage.sample_lines()), stage.datasets[0].batches.draw(0, 0, 1)
    stage._world = Second(1, 2)
    stage.datasets[0].batches.draw = refuse
    assert list(stage.sample_lines()) == expected


# What it starts from


def test_the_decoder_has_the_presets_sizes_and_a_row_for_each_token(file: Path) -> None:
    stage = opened(file)
    size = stage.tokenizer.get_vocab_size()
    assert size <= 300
    assert stage.config == replace(small_config().language, vocab_size=size)
    assert opened(file, context=2048).config.context == 2048


def test_the_same_options_give_the_same_model(file: Path) -> None:
    first, again, other = opened(file), opened(file), opened(file, run=RunOptions(seed=1))
    assert first.identity() == again.identity()
    assert all(map(torch.equal, first.model.state_dict().values(), again.model.state_dict().values()))
    assert not torch.equal(first.model.embedding.weight, other.model.embedding.weight)
    assert first.identity() != opened(file, vocab_size=280).identity()


def test_drawn_scenes_are_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_stage, "TOKENIZER_SCENES", 3)
    stage = opened(Path("scenes"), batch=4, context=1024)
    text = "\n".join(stage.tokenizer.decode(row.tolist()) for row in batch_of(stage).input_ids)
    assert text.startswith("at ")
    assert "\nOutput: " in text
    assert "\nQuestion: " in text


def test_a_tokenizer_is_taken_from_where_it_is(tmp_path: Path) -> None:
    ours = train_tokenizer(TEXTS, 290, TokensConfig())
    ours.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer, tokens = tokenizer_and_tokens(path)
        assert (tokenizer.to_str(), tokens) == (ours.to_str(), TokensConfig())
    whole = small_checkpoint(tmp_path / "whole")
    assert tokenizer_and_tokens(whole)[1] == TokensConfig()


def test_another_projects_tokenizer_gets_the_tokens_of_stage_3(file: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer, tokens = tokenizer_and_tokens(tmp_path)
    assert (tokens.eos, tokens.bos, tokens.image, tokens.end_of_chunk) == ("w2", "", "<image>", "<|endofchunk|>")
    assert tokenizer.token_to_id("<image>") == 61
    assert opened(file, tokenizer=str(tmp_path)).config.vocab_size == 63


def test_a_towers_tokenizer_serves_another_tower(file: Path, tmp_path: Path) -> None:
    tokens = TokensConfig(bos="", eos="<end>")
    tokenizer = train_tokenizer(TEXTS, 280, tokens)
    stage = opened(file)
    config = replace(stage.config, vocab_size=280)
    tensors = {f"language.{name}": tensor for name, tensor in LanguageModel(config).state_dict().items()}
    write_tower(tmp_path / "tower", "language", {"language": vars(config), "tokens": vars(tokens)}, tensors,
                tokenizer.to_str())
    assert tokenizer_and_tokens(tmp_path / "tower")[1] == tokens


def test_a_model_that_names_no_tokens_is_refused(tmp_path: Path) -> None:
    whole = small_checkpoint(tmp_path / "whole")
    config = json.loads((whole / "config.json").read_text())
    del config["tokens"]
    (whole / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"config\.json has no tokens: give"):
        tokenizer_and_tokens(whole)


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"data": ()}, UsageError, "needs data"),
    ({"data": (DataOptions("a/x.txt"), DataOptions("b/x.txt"))}, UsageError, "two datasets are called 'x.txt'"),
    ({"data": (DataOptions("absent.txt"),)}, DataError, "absent.txt"),
    ({"tokenizer": "absent"}, DataError, "absent"),
    ({"start_from": "absent"}, DataError, "absent"),
    ({"decoder": "gigantic"}, UsageError, "unknown preset 'gigantic'"),
    ({"vocab_size": 100}, DataError, "vocab_size 100 is below"),
])
def test_what_cannot_be_trained_is_refused(file: Path, changes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_language_stage(replace(options_of(file), **changes), World())


def test_a_decoder_beyond_the_memory_is_refused_before_it_is_made(file: Path) -> None:
    with pytest.raises(DataError, match="training the decoder of flamingo-80b needs at least"):
        opened(file, decoder="flamingo-80b")
