"""The scripts and notebooks of examples/ run, and show what is so."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.colors import to_rgba

import flamingo_rt
from flamingo_rt import Image
from flamingo_rt.child_process import child_environment
from flamingo_rt.config import PreprocessingConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.evaluation.confidence_interval import Interval
from flamingo_rt.evaluation.task_file import read_task
from flamingo_rt.evaluation.task_plan import TaskPlan
from flamingo_rt.evaluation.task_scores import Score
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.options import DataOptions

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
# Arguments of the scripts whose output is compared to the letter, and what is printed.
PRINTED = {
    "caption_folder.py": (["examples/scenes"], (
        "a.png: a dotted yellow star\nb.png: a red heart and an orange heart\n"
        "c.png: a red square and a striped orange heart\nd.png: a red heart\n"
        "e.png: a black triangle, a green heart and a purple triangle\n"
    )),
    "label_pictures.py": (["examples/scenes/c.png", "examples/scenes/d.png"], "c.png: two (100%)\nd.png: one (100%)\n"),
}
DRAWN = ("interleaved_attention.py", "n_shot_vqa.py")  # scripts that write a picture


@pytest.fixture
def in_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the examples, as the working folder, where Jupyter runs a notebook. Modules are the repository's."""
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(EXAMPLES)
    return folder


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def run_script(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    script(name).main()


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_answers_truly(name: str, tmp_path: Path) -> None:
    arguments, expected = PRINTED[name]
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    for _ in range(2):  # the second time with what the first one has kept
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *arguments], cwd=tmp_path,
            env=child_environment(), capture_output=True, text=True, check=True,
        )
        assert done.stdout == expected


@pytest.mark.parametrize("name", DRAWN)
def test_a_missing_library_of_an_example_is_named_with_the_extra(name: str, tmp_path: Path) -> None:
    hidden = f"import runpy, sys; sys.modules['matplotlib'] = None; runpy.run_path({str(EXAMPLES / name)!r})"
    done = subprocess.run([sys.executable, "-c", hidden], cwd=tmp_path, env=child_environment(), capture_output=True,
                          text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no matplotlib: pip install -e '.[cpu,")
    assert len(done.stderr.splitlines()) == 1


def test_every_example_is_run() -> None:
    assert {file.name for file in EXAMPLES.glob("*.py")} == {*PRINTED, *DRAWN}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_from_top_to_bottom(notebook: Path, in_examples: Path) -> None:
    names: dict[str, Any] = {}
    before = set(in_examples.rglob("*"))
    for number, cell in enumerate(code_cells(notebook)):
        exec(compile("".join(cell["source"]), f"{notebook.name}, code cell {number}", "exec"), names)
    assert set(in_examples.rglob("*")) == before  # a notebook shows its results and leaves no files


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_cleared_and_takes_its_code_from_the_script(notebook: Path) -> None:
    cells = code_cells(notebook)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    code = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
    assert not [node for node in ast.walk(code) if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda))]
    assert notebook.stem in [alias.name for node in code.body if isinstance(node, ast.Import) for alias in node.names]


def test_shots_are_captioned_by_their_file_and_the_others_by_the_model(
    in_examples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = in_examples / "scenes"
    run_script("caption_folder", "scenes", "--shots", "scenes/shots.jsonl", "--out", "scenes/captions.jsonl",
               monkeypatch=monkeypatch)
    heading, line, *rows = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "picture"
    assert set(line) == {"-", " "}
    captioned = [json.loads(text) for text in (scenes / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    shots = {json.loads(text)["image"] for text in (scenes / "shots.jsonl").read_text(encoding="utf-8").splitlines()}
    assert [row.split()[0] for row in rows] == [entry["image"] for entry in captioned]
    assert {entry["image"] for entry in captioned} == {file.name for file in scenes.glob("*.png")} - shots
    assert all(row.endswith(entry["text"]) for row, entry in zip(rows, captioned, strict=True))
    assert len(open_source(DataOptions(str(scenes)))) == len(captioned)  # data to train on


def test_a_picture_that_cannot_be_read_is_named_and_another_folder_refused(
    in_examples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, names = script("caption_folder"), sorted(file.name for file in Path("scenes").glob("*.png"))
    Path("scenes/damaged.png").write_bytes(b"no picture")
    assert [file.name for file in module.pictures_of(Path("scenes"))] == names
    assert "damaged.png" in capsys.readouterr().err
    with pytest.raises(UsageError, match="absent is no folder"):
        module.pictures_of(Path("absent"))


def test_captions_depend_on_the_shots_before_them(in_examples: Path) -> None:
    module, model = script("caption_folder"), flamingo_rt.load()
    asked: list[Any] = []

    class Recording:
        config = model.config

        def caption_prompt(self, picture: Image) -> Any:
            return model.caption_prompt(picture)

        def generate_batch(self, prompts: Any, prefix: Any, max_new_tokens: int) -> Any:
            asked.append(prefix)
            return model.generate_batch(prompts, prefix=prefix, max_new_tokens=1)

    compiled = module.compiled_shots(model, module.read_shots(Path("scenes/shots.jsonl")))
    list(module.captions(Recording(), [Path("scenes/d.png")], 4, compiled))
    assert asked == [compiled]


def test_a_reading_names_for_each_token_the_last_picture_before_it(in_examples: Path) -> None:
    module = script("interleaved_attention")
    model = flamingo_rt.load(module.CHECKPOINT, backend="torch")
    reading = module.read_prompt(model, module.example_prompt(model))
    pictures = [place for place, token in enumerate(reading.tokens) if not token]
    assert len(pictures) == len(reading.pictures) == 3
    expected = np.cumsum([place in pictures for place in range(len(reading.tokens))])
    assert reading.media_index.tolist() == expected.tolist()
    assert reading.media_index[reading.answer :].tolist() == [3] * (len(reading.tokens) - reading.answer)
    assert reading.answer < len(reading.tokens)
    for picture in range(3):
        words = reading.written(picture, 2)
        assert words == sorted(words)
        assert len(words) == 2
        assert {int(reading.media_index[place]) for place in words} == {picture + 1}
    assert reading.maps.over_latents[:, :, : pictures[0]].count_nonzero() == 0


def test_a_token_of_white_space_is_not_taken_for_a_picture(in_examples: Path) -> None:
    module, tokenizer = script("interleaved_attention"), flamingo_rt.load().tokenizer
    ids = [tokenizer.image_id, *tokenizer.encode("a \n\n star<|endofchunk|>")]
    texts, special = module.token_texts(tokenizer, ids)
    assert [place for place, text in enumerate(texts) if not text] == [0]
    assert special == (True, *[False] * (len(ids) - 2), True)
    assert module.SPACE in texts


def test_a_model_that_keeps_no_attention_is_refused(in_examples: Path) -> None:
    module = script("interleaved_attention")
    with pytest.raises(UsageError, match="backend='torch'"):
        module.read_prompt(flamingo_rt.load(), ["Output:"])


def test_a_picture_is_shown_as_the_model_sees_it(in_examples: Path, tmp_path: Path) -> None:
    module, config = script("interleaved_attention"), flamingo_rt.load().config
    file = tmp_path / "wide.png"
    PIL.Image.new("RGB", (60, 20), (255, 0, 0)).save(file)
    for preprocessing, edge in ((config.preprocessing, (1, 0, 0)), (PreprocessingConfig(), (0.5, 0.5, 0.5))):
        shown = module.shown_picture(Image(file), replace(config, preprocessing=preprocessing))
        assert shown.shape == (256, 256, 3)
        assert np.allclose(shown[128, 128], (1, 0, 0))
        assert np.allclose(shown[4, 128], edge)  # squashed, or padded with the mean


def made_up_reading(module: ModuleType) -> Any:
    """Three pictures, of which the second has no text, and ten tokens."""
    grids = tuple(torch.full((4, 1, 2, 2), 0.25) for _ in range(3))
    maps = module.AttentionMaps(torch.full((2, 1, 10, 3, 4), 0.25), grids)
    tokens = ("start", "", "", "Output", ":", "left", "end", "", "right", "turn")
    special = tuple(token in ("start", "end", "") for token in tokens)
    index = np.array([0, 1, 2, 2, 2, 2, 2, 3, 3, 3])
    picture = np.zeros((8, 8, 3))
    gates = [module.GateOpening(0, 0.5, -0.25), module.GateOpening(1, 0.75, 1.0)]
    return module.Reading(tokens, special, index, 9, (picture,) * 3, maps, gates)


def test_tokens_have_the_color_of_their_picture_and_gates_their_height(in_examples: Path) -> None:
    module = script("interleaved_attention")
    reading = made_up_reading(module)
    tokens, gates, *cells = module.draw(reading).axes
    boxes = [patch.get_edgecolor() for patch in tokens.patches]
    assert boxes == [to_rgba(module.color_of(int(picture))) for picture in reading.media_index]
    assert len(set(boxes)) == 4
    assert [bar.get_height() for bar in gates.patches] == [0.5, 0.75, -0.25, 1.0]
    titles = [cell.get_title() for cell in cells]
    assert [title for title in titles if title] == ["left", "right", "turn"]
    assert titles.count("") == 3 + 1  # the pictures and the color bar


def test_no_box_of_a_token_covers_another_or_leaves_the_line(in_examples: Path) -> None:
    module = script("interleaved_attention")
    reading = made_up_reading(module)
    long = replace(reading, tokens=tuple(token * 9 for token in reading.tokens))
    places, lines = module._placed(long)
    assert lines > 2
    for (left, line, width), (after, next_line, _) in pairwise(places):
        assert (next_line, after) > (line, left)
        assert next_line > line or after >= left + width
    assert max(left + width for left, _, width in places) <= module.TOKENS_WIDTH * 72


def test_the_chart_of_shots_has_every_score_with_its_interval(in_examples: Path) -> None:
    module = script("n_shot_vqa")
    task = read_task(module.TASK)
    means = {(0, "none"): 0.4, (2, "none"): 0.8, (8, "none"): 0.9, (2, "text"): 0.3, (8, "text"): 0.2}
    scores = [Score(shots, control, Interval(mean, mean - 0.1, mean + 0.05), (mean,))
              for (shots, control), mean in means.items()]
    (axes,) = module.draw(task, scores).axes
    drawn = {container.get_label(): container for container in axes.containers}
    assert drawn["as they are"][0].get_ydata().tolist() == [0.4, 0.8, 0.9]
    assert drawn["text only"][0].get_ydata().tolist() == [0.3, 0.2]
    ends = [segment[:, 1].tolist() for segment in drawn["text only"][2][0].get_segments()]
    assert np.allclose(ends, [[0.2, 0.35], [0.1, 0.25]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "2", "8"]
    assert task.chance in [line.get_ydata()[0] for line in axes.get_lines()]


@pytest.mark.parametrize("arguments", [
    ("interleaved_attention", "scenes/a.png", "scenes/b.png", "Output:"),
    ("n_shot_vqa", "--shots", "0,1", "--seeds", "1", "--answers", "answers.jsonl"),
], ids=lambda arguments: arguments[0])
def test_a_script_writes_its_picture(
    arguments: tuple[str, ...], in_examples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script(arguments[0], *arguments[1:], "--out", "drawn.png", monkeypatch=monkeypatch)
    assert capsys.readouterr().out.endswith("wrote drawn.png\n")
    with PIL.Image.open("drawn.png") as picture:
        assert min(picture.size) > 300


def test_a_measurement_goes_on_where_it_was(in_examples: Path) -> None:
    module, model = script("n_shot_vqa"), flamingo_rt.load()
    task, file = read_task(module.TASK), Path("answers.jsonl")
    measured = module.measure(model, task, TaskPlan([0]), answers=file)
    kept = file.read_bytes()
    assert module.measure(model, task, TaskPlan([0]), answers=file) == measured
    assert file.read_bytes() == kept
    assert len(kept.splitlines()) == 1 + len(task.items)
