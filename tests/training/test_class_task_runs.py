"""Stage 3 on tasks of a folder of classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
from small_runs import RUN, WHOLE, files, from_checkpoint, run

from flamingo_rt.errors import UsageError
from flamingo_rt.training.flamingo_start import open_flamingo_stage
from flamingo_rt.training.options import DataOptions
from flamingo_rt.training.sharding import World

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "animals"
    for number, name in enumerate(("owl", "fox", "newt")):
        (folder / name).mkdir(parents=True)
        for picture in range(4):
            color = (60 * number, 50 * picture, 99)
            PIL.Image.new("RGB", (8, 8), color).save(folder / name / f"{picture}.png")
    return folder


def test_tasks_of_classes_train_with_stored_features_and_go_on(unbroken, classes, tmp_path) -> None:
    data = (DataOptions(str(classes), kind="tasks", batch=2, tokens=500, shots=(1,)),)
    often = from_checkpoint(unbroken, data=data, run=replace(RUN, save_seconds=1e-9, sample_steps=4),
                            cache_features=str(tmp_path / "features"))
    run(tmp_path / "first", often)  # fills the cache
    assert 3 <= len(list((tmp_path / "features").rglob("*.npy"))) <= 12
    run(tmp_path / "whole", often)
    run(tmp_path / "out", often, stop=3)
    with pytest.raises(UsageError, match="names"):
        run(tmp_path / "out", replace(often, data=(replace(data[0], names=0.5),)), resume=True)
    run(tmp_path / "out", often, resume=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_tasks_of_classes_that_do_not_fit_are_refused_before_the_run(unbroken, classes) -> None:
    data = DataOptions(str(classes), kind="tasks", batch=2, tokens=500)
    with pytest.raises(UsageError, match="3 classes of 3 shots and a query are 10 pictures, and the model takes 6"):
        open_flamingo_stage(from_checkpoint(unbroken, data=(data,)), World())


def test_a_new_tokenizer_is_learnt_from_the_texts_of_the_tasks(classes) -> None:
    data = DataOptions(str(classes), kind="tasks", batch=2, tokens=500, shots=(1,), names=0.5)
    stage = open_flamingo_stage(replace(WHOLE, data=(data,)), World())
    text = stage.config.prompts.caption + stage.config.prompts.answer_separator
    assert len(stage.tokenizer.encode(text, add_special_tokens=False).ids) <= 3
