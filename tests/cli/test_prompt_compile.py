"""`flamingo-rt prompt compile` and `infer --prompt-file`: the same answers as with --shot."""

from __future__ import annotations

import json

import pytest

SHOTS = ("a red circle", "a blue square")


@pytest.fixture
def compiled(run, bundle, pictures, tmp_path):
    """A prompt file of two captions."""
    path = tmp_path / "shots.prompt"
    outcome = run("prompt", "compile", "--model", bundle, "--threads", 1, "--task", "caption", *shots(pictures),
                  "--out", path, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    said = json.loads(outcome.out)
    assert (said["file"], said["pictures"], said["bytes"]) == (str(path), 2, path.stat().st_size)
    return path


def shots(pictures):
    return [argument for picture, text in zip(pictures, SHOTS, strict=False) for argument in ("--shot", picture, text)]


def test_a_compiled_prompt_gives_the_answer_of_its_shots(infer, compiled, pictures) -> None:
    query = ("--task", "caption", "--image", pictures[2], "--max-new-tokens", 8, "--json")
    found, expected = infer("--prompt-file", compiled, *query), infer(*shots(pictures), *query)
    assert (found.code, expected.code) == (0, 0), found.err + expected.err
    found, expected = json.loads(found.out), json.loads(expected.out)
    assert found["tokens"] == expected["tokens"]
    assert found["prompt_tokens"] == expected["prompt_tokens"]
    assert len(set(found["tokens"])) > 3


def test_choices_are_ranked_behind_a_compiled_prompt(infer, compiled, pictures) -> None:
    query = ("--image", pictures[2], "--task", "caption", "--choices", "a red circle,two", "--json")
    found, expected = infer("--prompt-file", compiled, *query), infer(*shots(pictures), *query)
    ranked = [[(c["text"], round(c["logprob"], 2)) for c in json.loads(o.out)["choices"]] for o in (found, expected)]
    assert ranked[0] == ranked[1]


def test_the_file_says_what_it_was_made_of(compiled, pictures) -> None:
    from flamingo_rt.runtime.compiled_prompt import read_about

    about = read_about(compiled)
    assert [(shot["file"], shot["text"]) for shot in about["shots"]] == [
        (str(picture), text) for picture, text in zip(pictures, SHOTS, strict=False)
    ]
    assert all(len(shot["sha256"]) == 64 for shot in about["shots"])
    assert about["task"] == "caption"


def test_another_bundle_refuses_it_and_says_what_compiles_it(run, compiled, pictures) -> None:
    outcome = run("infer", "--prompt-file", compiled, "--image", pictures[2])  # the model in the package
    assert (outcome.code, outcome.out) == (1, "")
    assert "was compiled for another bundle" in outcome.err
    assert "compile its 2 shots again for this one with flamingo-rt prompt compile" in outcome.err


def test_an_existing_file_is_replaced_on_demand_alone(run, bundle, compiled, pictures) -> None:
    before = compiled.read_bytes()
    command = ("prompt", "compile", "--model", bundle, "--shot", pictures[0], "Output: two", "--out", compiled)
    refused = run(*command)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert compiled.read_bytes() == before
    replaced = run(*command, "--overwrite")
    assert replaced.code == 0, replaced.err
    assert replaced.out.startswith(f"wrote {compiled}: 1 shot, ")
    assert compiled.read_bytes() != before


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "shot"),
    (["--shot", "nowhere.png", "text"], "nowhere.png"),
    (["--task", "vqa", "--shot", "a.png", "no bar"], "QUESTION|ANSWER"),
    (["--task", "caption", "--shot", "a.png", ""], "empty"),
])
def test_shots_that_cannot_be_used_are_refused_and_nothing_is_written(
    arguments, message, run, bundle, tmp_path, pictures
) -> None:
    arguments = [str(pictures[0]) if argument == "a.png" else argument for argument in arguments]
    outcome = run("prompt", "compile", "--model", bundle, *arguments, "--out", tmp_path / "x.prompt")
    assert outcome.code in (1, 2)
    assert message in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_refused_with_the_export_command(run, checkpoint, pictures, tmp_path) -> None:
    outcome = run("prompt", "compile", "--model", checkpoint, "--shot", pictures[0], "a", "--out", tmp_path / "x")
    assert outcome.code == 2
    assert "flamingo-rt export" in outcome.err


def test_an_output_in_an_unwritable_folder_is_refused_before_any_work(
    run, bundle, pictures, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("flamingo_rt.files.os.access", lambda path, mode: False)
    monkeypatch.setattr("flamingo_rt.loading.load", lambda *arguments, **options: pytest.fail("the model was loaded"))
    out = tmp_path / "x.prompt"
    outcome = run("prompt", "compile", "--model", bundle, "--shot", pictures[0], "Output: two", "--out", out)
    assert outcome.code == 1
    assert outcome.err == (
        f"flamingo-rt: cannot write {out}: {tmp_path} may not be written to; choose another --out\n"
    )
