"""The training loop: repeatable to the bit, resumable after any end, and careful with what exists."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_model import small_config

from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.training import trainer
from flamingo_rt.training.trainer import TrainingOptions, continue_checkpoint, start_run, state_path, train

OPTIONS = TrainingOptions(steps=4, pictures=2, questions=1, warmup_steps=2)
SCENES = 20


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    """A tokenizer from few texts: they are most of a short run's time."""
    monkeypatch.setattr(trainer, "TOKENIZER_SCENES", SCENES)


@pytest.fixture(scope="module")
def config():
    return replace(small_config(), language=replace(small_config().language, context=512))


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    """The checkpoint of `OPTIONS`."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "TOKENIZER_SCENES", SCENES)
        train(config, OPTIONS, out)
    return out


@pytest.fixture
def interrupted(config, tmp_path):
    """The output of a run of `OPTIONS` that broke off in its third step."""
    with pytest.raises(RuntimeError, match="broken off"):
        train(config, OPTIONS, tmp_path / "out", save_seconds=0, on_step=break_off)
    return tmp_path / "out"


def break_off(progress):
    if progress.step == 3:
        raise RuntimeError("broken off")


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def steps_of(config, options, out, **arguments):
    seen = []
    train(config, options, out, on_step=seen.append, **arguments)
    return seen


# The same run twice


def test_the_same_seed_gives_the_same_checkpoint_to_the_bit(config, unbroken, tmp_path) -> None:
    seen = steps_of(config, OPTIONS, tmp_path / "out")
    assert files(tmp_path / "out") == files(unbroken)
    assert [progress.step for progress in seen] == [1, 2, 3, 4]
    assert all(progress.tokens > 0 and math.isfinite(progress.loss) for progress in seen)


def test_another_seed_gives_other_weights(config) -> None:
    one, other = (start_run(config, replace(OPTIONS, seed=seed)).parts.state_dict() for seed in (0, 1))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_broke_off_ends_like_an_unbroken_one(config, unbroken, interrupted) -> None:
    assert not interrupted.exists()
    seen = steps_of(config, OPTIONS, interrupted, resume=True)
    assert [progress.step for progress in seen] == [3, 4]
    assert files(interrupted) == files(unbroken)
    assert not state_path(interrupted).exists()


def test_a_killed_run_ends_like_an_unbroken_one(config, unbroken, tmp_path) -> None:
    out = tmp_path / "out"
    code = textwrap.dedent(f"""
        import sys, time, torch
        from pathlib import Path
        from flamingo_rt.config import FlamingoConfig
        from flamingo_rt.training import trainer
        torch.set_num_threads({torch.get_num_threads()})
        trainer.TOKENIZER_SCENES = {SCENES}
        def report(progress):
            print(progress.step, flush=True)
            if progress.step == 3:
                time.sleep(600)
        config = FlamingoConfig.from_dict({config.to_dict()!r})
        trainer.train(config, trainer.{OPTIONS!r}, Path({str(out)!r}), save_seconds=0, on_step=report)
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert [process.stdout.readline().strip() for _ in range(3)] == ["1", "2", "3"]
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert [progress.step for progress in steps_of(config, OPTIONS, out, resume=True)] == [3, 4]
    assert files(out) == files(unbroken)
    assert list(tmp_path.iterdir()) == [out]


def test_resume_without_an_unfinished_run_starts_anew(config, unbroken, tmp_path) -> None:
    train(config, OPTIONS, tmp_path / "out", resume=True)
    assert files(tmp_path / "out") == files(unbroken)


# Refusals


def test_an_unfinished_run_is_not_overwritten_unasked(config, interrupted, monkeypatch) -> None:
    monkeypatch.setattr(trainer, "start_run", None)
    before = state_path(interrupted).read_bytes()
    with pytest.raises(UsageError, match="--resume"):
        train(config, OPTIONS, interrupted)
    assert state_path(interrupted).read_bytes() == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 5}, {"learning_rate": 1e-4}, {"questions": 2}], ids=str)
def test_a_run_is_not_resumed_with_other_options(config, interrupted, change) -> None:
    with pytest.raises(UsageError, match="other options"):
        train(config, replace(OPTIONS, **change), interrupted, resume=True)


def test_a_run_is_not_resumed_with_another_configuration(config, interrupted) -> None:
    with pytest.raises(UsageError, match="other options"):
        train(replace(config, max_visuals=7), OPTIONS, interrupted, resume=True)


def rewrite(path, tensors=None, **metadata):
    with safe_open(path, framework="pt") as file:
        stored = {**file.metadata(), **metadata}
    save_file(tensors or load_file(path), path, {name: text for name, text in stored.items() if text})


def drop_tensor(path):
    tensors = load_file(path)
    del tensors["weight.model.resampler.latents"]
    rewrite(path, tensors)


def drop_moment(path):
    tensors = load_file(path)
    del tensors["exp_avg.model.resampler.latents"]
    rewrite(path, tensors)


def misshape(path):
    tensors = load_file(path)
    tensors["weight.model.resampler.latents"] = torch.zeros(1)
    rewrite(path, tensors)


DAMAGES = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "not a state": lambda path: path.write_text("nonsense " * 9),
    "tensor missing": drop_tensor,
    "moment missing": drop_moment,
    "tensor misshapen": misshape,
    "step missing": lambda path: rewrite(path, step=""),
    "step no number": lambda path: rewrite(path, step="many"),
    "options damaged": lambda path: rewrite(path, options="{"),
    "config damaged": lambda path: rewrite(path, config=json.dumps({"name": "small"})),
    "tokenizer damaged": lambda path: rewrite(path, tokenizer="{}"),
}


@pytest.fixture(scope="module")
def state(config, tmp_path_factory) -> bytes:
    """The state file of a run that broke off."""
    out = tmp_path_factory.mktemp("state") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "TOKENIZER_SCENES", SCENES)
        with pytest.raises(RuntimeError, match="broken off"):
            train(config, OPTIONS, out, save_seconds=0, on_step=break_off)
    return state_path(out).read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_with_its_name_and_a_remedy(config, state, tmp_path, damage) -> None:
    file = state_path(tmp_path / "out")
    file.write_bytes(state)
    DAMAGES[damage](file)
    with pytest.raises(DataError) as caught:
        train(config, OPTIONS, tmp_path / "out", resume=True)
    assert str(file) in str(caught.value)
    assert "delete it" in str(caught.value)


def test_an_output_that_exists_is_refused_before_any_training(config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trainer, "start_run", None)
    with pytest.raises(UsageError, match="--overwrite"):
        train(config, OPTIONS, tmp_path)


def test_an_output_to_be_replaced_is_kept_when_training_fails(config, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    old = json.dumps(replace(config, name="old").to_dict())
    (out / "config.json").write_text(old)
    with pytest.raises(RuntimeError, match="broken off"):
        train(config, OPTIONS, out, overwrite=True, on_step=break_off)
    assert files(out) == {"config.json": old.encode()}
    train(config, OPTIONS, out, overwrite=True)
    assert json.loads(files(out)["config.json"])["name"] == config.name


# Learning


def test_the_loss_falls(config, tmp_path) -> None:
    options = replace(OPTIONS, steps=30, learning_rate=3e-3)
    losses = [progress.loss for progress in steps_of(config, options, tmp_path / "out")]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 1.0  # from about ln 300 = 5.7


def test_every_part_learns(config, unbroken) -> None:
    before = start_run(config, OPTIONS).parts.model
    after = open_checkpoint(unbroken).load()
    for name, parameter in before.named_parameters():
        assert not torch.equal(parameter, after.get_parameter(name)), name


def test_gates_start_open(config) -> None:
    model = start_run(config, OPTIONS).parts.model
    gates = [p for name, p in model.named_parameters() if name.endswith(("attention_gate", "ff_gate", "skip_gain"))]
    assert len(gates) >= 6
    assert all(gate.eq(OPTIONS.initial_gate).all() for gate in gates)


def test_the_learning_rate_rises_linearly_and_falls_to_a_hundredth() -> None:
    options = TrainingOptions(steps=1000, warmup_steps=100, learning_rate=2.0)
    rates = [options.learning_rate_at(step) for step in range(1001)]
    assert rates[0] == pytest.approx(2.0 / 100)
    assert rates[49] == pytest.approx(1.0)
    assert rates[99] == rates[100] == pytest.approx(2.0)
    assert rates[550] == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert rates[1000] == options.learning_rate_at(5000) == pytest.approx(0.02)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (5, 5), (3, 10)])
def test_the_learning_rate_is_defined_for_the_shortest_runs(steps, warmup) -> None:
    options = TrainingOptions(steps=steps, warmup_steps=warmup)
    assert all(0 < options.learning_rate_at(step) <= options.learning_rate for step in range(steps))


def test_a_loss_that_is_no_number_ends_the_run(config, tmp_path) -> None:
    with pytest.raises(DataError, match=r"(nan|inf) at step \d+: lower --learning-rate"):
        train(config, replace(OPTIONS, learning_rate=1e30), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weight_decay_is_for_matrices_alone(config) -> None:
    run = start_run(config, OPTIONS)
    decayed, others = ({id(p) for p in group["params"]} for group in run.optimizer.param_groups)
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [OPTIONS.weight_decay, 0.0]
    for name, parameter in run.parts.named_parameters():
        assert (id(parameter) in decayed) != (id(parameter) in others), name
        if name.endswith(("bias", "gate", "skip_gain")) or "norm" in name:
            assert id(parameter) in others, name
        elif name.endswith(("query.weight", "embedding.weight")):
            assert id(parameter) in decayed, name


# From a checkpoint


def test_a_run_begins_with_the_checkpoints_weights_and_tokenizer(config, unbroken, tmp_path) -> None:
    run = continue_checkpoint(unbroken, config, OPTIONS)
    stored = load_file(unbroken / "model.safetensors")
    weights = run.parts.model.state_dict()
    assert weights.keys() == stored.keys()
    assert all(torch.equal(weights[name], stored[name]) for name in stored)
    assert run.step == 0
    still = replace(OPTIONS, steps=1, learning_rate=1e-30)
    train(config, still, tmp_path / "out", start_from=unbroken)
    assert files(tmp_path / "out") == files(unbroken)
    train(config, replace(OPTIONS, steps=1), tmp_path / "moved", start_from=unbroken)
    assert files(tmp_path / "moved")["model.safetensors"] != files(unbroken)["model.safetensors"]


def test_a_run_from_a_checkpoint_is_resumed_too(config, unbroken, tmp_path) -> None:
    train(config, OPTIONS, tmp_path / "whole", start_from=unbroken)
    with pytest.raises(RuntimeError, match="broken off"):
        train(config, OPTIONS, tmp_path / "out", start_from=unbroken, save_seconds=0, on_step=break_off)
    train(config, OPTIONS, tmp_path / "out", start_from=unbroken, resume=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_checkpoint_of_another_configuration_is_refused(config, unbroken, tmp_path) -> None:
    with pytest.raises(UsageError, match="another configuration"):
        train(replace(config, max_visuals=7), OPTIONS, tmp_path / "out", start_from=unbroken)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_with_a_damaged_tokenizer_is_refused(config, unbroken, tmp_path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name, content in files(unbroken).items():
        (folder / name).write_bytes(b"{}" if name == "tokenizer.json" else content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        train(config, OPTIONS, tmp_path / "out", start_from=folder)


def test_a_library_that_is_missing_for_drawing_is_one_line_also_from_a_checkpoint(config, unbroken, tmp_path,
                                                                                   monkeypatch) -> None:
    """Drawing happens in a second process, whose errors come with its whole traceback."""
    from flamingo_rt.errors import DependencyError
    from flamingo_rt.training.scenes import digits

    digits._load.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DependencyError) as caught:
        train(config, OPTIONS, tmp_path / "out", start_from=unbroken)
    assert "\n" not in str(caught.value)
