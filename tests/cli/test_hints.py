"""Hints of the packaged model: the command does what it was asked, and says on stderr what may be a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import flamingo_rt
from flamingo_rt.runtime.model import Model

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
UNLIKELY_CHOICES = ("--choices", "cat,dog,horse")


@pytest.fixture(scope="module")
def packaged() -> Model:
    return flamingo_rt.load(threads=1)


@pytest.fixture
def noise(tmp_path) -> Path:
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        tmp_path / "noise.png"
    )
    return tmp_path / "noise.png"


def test_a_picture_of_the_models_own_kind_gets_no_hint(run) -> None:
    outcome = run("infer", "--image", SCENE, "--json")
    answer = json.loads(outcome.out)
    assert (outcome.code, outcome.err, answer["unlike_validation"]) == (0, "", False)
    assert answer["probability"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("beams", [1, 3])
def test_another_picture_gets_its_answer_and_a_hint_with_both_probabilities(run, noise, packaged, beams) -> None:
    outcome = run("infer", "--image", noise, "--beams", beams)
    assert (outcome.code, len(outcome.err.splitlines())) == (0, 1)
    answer = json.loads(run("infer", "--image", noise, "--beams", beams, "--json").out)
    assert outcome.out.strip() == answer["text"]
    assert answer["unlike_validation"] is True
    assert outcome.err.startswith(f"hint: this caption has a probability of {answer['probability']:.3g}; 95%")
    assert f"{packaged.usual_probability:.3g} or more" in outcome.err


@pytest.mark.parametrize(
    "options", [["--temperature", "1"], ["--question", "What color is it?"], ["--repetition-penalty", "1.1"]],
    ids=" ".join,
)
def test_what_the_record_says_nothing_about_gets_no_hint(run, noise, options) -> None:
    outcome = run("infer", "--image", noise, "--json", *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out)["unlike_validation"] is None


def test_a_caption_in_the_style_of_shots_gets_no_hint(run, noise, tmp_path) -> None:
    shots = ("--shot", SCENE.parent / "scenes" / "a.png", "star, yellow", "--task", "caption")
    query = ("--image", noise, "--json")
    compiled = tmp_path / "shots.prompt"
    assert run("prompt", "compile", *shots, "--out", compiled).code == 0
    for outcome in (run("infer", *shots, *query), run("infer", "--prompt-file", compiled, *query)):
        assert (outcome.code, outcome.err) == (0, "")
        assert json.loads(outcome.out)["unlike_validation"] is None


@pytest.mark.parametrize("json_too", [[], ["--json"]], ids=["text", "json"])
def test_choices_that_the_model_would_not_say_get_a_hint(run, json_too) -> None:
    outcome = run("infer", "--image", SCENE, "--question", "What is it?", *UNLIKELY_CHOICES, *json_too)
    assert outcome.code == 0
    assert outcome.err.startswith("hint: all 3 choices together have a probability of ")
    if json_too:
        assert 0 < json.loads(outcome.out)["total_probability"] < 1e-9


def test_choices_that_it_would_say_get_none(run) -> None:
    outcome = run("infer", "--image", SCENE, "--question", "Is there a red circle?", "--choices", "yes,no", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out)["total_probability"] > 0.9


def test_normalized_choices_are_ranked_by_log_probability_per_token(run) -> None:
    asked = ("infer", "--image", SCENE, "--question", "What is it?", *UNLIKELY_CHOICES, "--json")
    plain, normalized = (json.loads(run(*asked, *more).out) for more in ([], ["--normalize-choices"]))
    assert (plain["normalized"], normalized["normalized"]) == (False, True)
    assert [each["text"] for each in plain["choices"]][-1] == normalized["text"] == "horse"  # it has the most tokens
    assert {c["text"]: c["logprob"] for c in plain["choices"]} == {
        c["text"]: c["logprob"] for c in normalized["choices"]
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--choices", "yes;no"], "'yes;no' is one choice: give two or more, separated by commas"),
        (["--choices", "yes;no,maybe"], "'yes;no' is one choice: separate choices by commas"),
        (["--fps", "1"], "--fps is for clips: give --video FILE"),
        (["--choices", "yes,no,yes"], "names 'yes' 2 times"),
        (["--normalize-choices"], "--normalize-choices goes with --choices"),
    ],
)
def test_choices_that_make_no_sense_are_refused(run, arguments, said) -> None:
    outcome = run("infer", "--image", SCENE, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--question", "What color is it?"], "asks about a picture and there is none"),
        (["--task", "vqa", "--question", "What color is it?"], "asks about a picture and there is none"),
        (["--prompt", "Output:"], "asks about a picture and there is none"),
        (["--prompt", "Question: what? Answer:"], "asks about a picture and there is none"),
        (["--prompt", "The capital of France is"], "validated on pictures alone"),
        (["--shot", SCENE, "Output: a star", "--prompt", "Output:"], "it is about the last shot's"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else None,
)
def test_a_query_without_a_picture_gets_a_hint(run, arguments, said) -> None:
    outcome = run("infer", "--max-new-tokens", 2, *arguments)
    assert outcome.code == 0
    assert outcome.out
    first, *others = outcome.err.splitlines()
    assert first.startswith("hint: ")
    assert said in first
    assert "--image FILE" in first
    assert not others


def test_a_query_without_a_picture_after_compiled_shots_gets_a_hint(run, tmp_path) -> None:
    file = tmp_path / "shots.prompt"
    assert run("prompt", "compile", "--shot", SCENE, "Output: a star", "--out", file).code == 0
    outcome = run("infer", "--prompt-file", file, "--prompt", "Output:", "--max-new-tokens", 2)
    assert outcome.code == 0
    assert "it is about the last shot's" in outcome.err


def test_a_text_for_a_model_without_a_record_gets_no_hint(infer) -> None:
    outcome = infer("--prompt", "The capital of France is", "--max-new-tokens", 2)
    assert (outcome.code, outcome.err) == (0, "")
