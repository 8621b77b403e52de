"""`flamingo-rt import encoder`: a folder that train flamingo takes, and one line for what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_encoders import CELLS, SIDE, WIDTH, Encoder, encoder_graph, with_weights_beside, written
from onnx import helper

from flamingo_rt.training.parts import open_vision_part


@pytest.fixture
def importing(run, tmp_path: Path):
    """Import the encoder's graph to ``out``, with more options."""
    file = written(tmp_path / "encoder.onnx", encoder_graph(Encoder()))
    return lambda *options: run("import", "encoder", "--onnx", file, "--image-size", SIDE, "--out", tmp_path / "out",
                                *options)


def test_a_line_says_what_was_written(importing, tmp_path: Path) -> None:
    outcome = importing("--features", f"{CELLS}x{WIDTH}")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == (f"wrote {tmp_path / 'out'}: 16 features of width 24 for a picture of 16 pixels, "
                           "0.0M parameters\n")


def test_the_json_is_what_the_folder_says(importing, tmp_path: Path) -> None:
    outcome = importing("--json")
    config = open_vision_part(tmp_path / "out").config
    assert json.loads(outcome.out) == {
        "encoder": str(tmp_path / "out"), "features": CELLS, "width": WIDTH, "parameters": config.parameters,
        "digest": config.digest,
    }


def test_the_preparation_of_pictures_is_the_users_choice(importing, tmp_path: Path) -> None:
    assert importing("--resize", "squash", "--interpolation", "bilinear", "--mean", "0.485,0.456,0.406",
                     "--std", "0.229,0.224,0.225").code == 0
    found = open_vision_part(tmp_path / "out").preprocessing
    assert (found.resize, found.interpolation) == ("squash", "bilinear")
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_an_output_is_replaced_on_demand(importing) -> None:
    assert importing().code == 0
    outcome = importing()
    assert outcome.code == 2
    assert "--overwrite" in outcome.err
    assert importing("--overwrite").code == 0


@pytest.mark.parametrize(("options", "code", "said"), [
    (("--features", "81x1280"), 1, "16 features of width 24 for a picture of 16 pixels, not 81 of 1280"),
    (("--output", "last"), 1, "there is no 'last' among them"),
    (("--image-size", "20"), 1, "an encoder takes float32 [N, 3, 20, 20]"),
    (("--features", "81"), 2, "'81' is not a number of features and their width, such as 81x1280"),
    (("--image-size", "2049"), 2, "1<=x<=2048"), (("--features", "9" * 5000 + "x5"), 2, "--features"),
    (("--features", "0x5"), 2, "--features"), (("--mean", "1,2"), 2, "is not three numbers such as 0.5,0.5,0.5"),
    (("--std", "1,0,1"), 2, "holds 0.0: three finite numbers above 0 are expected"),
    (("--mean", "nan,0,0"), 2, "--mean"),
])
def test_what_does_not_fit_is_one_line_and_nothing_is_written(importing, tmp_path: Path, options, code, said) -> None:
    outcome = importing(*options)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_name_that_a_terminal_would_obey_is_not_printed(run, tmp_path: Path) -> None:
    model = encoder_graph(Encoder(), after=[helper.make_node("Identity", ["embedding"], ["a\x1b[31m"])],
                          outputs=["a\x1b[31m"])
    outcome = run("import", "encoder", "--onnx", written(tmp_path / "a.onnx", model), "--image-size", SIDE, "--out",
                  tmp_path / "out")
    assert outcome.code == 1
    assert "\x1b" not in outcome.err


def test_a_missing_file_of_weights_is_named(run, tmp_path: Path) -> None:
    file = with_weights_beside(tmp_path / "a.onnx", encoder_graph(Encoder()))
    (tmp_path / "weights.bin").unlink()
    outcome = run("import", "encoder", "--onnx", file, "--image-size", SIDE, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert f"{file} takes weights from 'weights.bin', and there is no such file beside it" in outcome.err
