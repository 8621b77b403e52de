"""Nothing that a stranger wrote reaches a terminal as anything but text."""

from __future__ import annotations

import pytest

from flamingo_rt.runtime.generation_options import Score

CLIPBOARD = "\x1b]52;c;aGVsbG8=\x07"
HOSTILE = f"a{CLIPBOARD}\x1b[2J\u202eb[link=file:///etc]c"


def is_text(shown: str) -> bool:
    return all(character.isprintable() or character in "\n\t" for character in shown)


@pytest.mark.parametrize("arguments", [
    ("infer", "--model", HOSTILE, "--prompt", "a"), ("infer", "--image", HOSTILE), ("infer", "--video", HOSTILE),
    ("infer", "--prompt-file", HOSTILE, "--image", "a.png"), ("infer", "--backend", HOSTILE, "--prompt", "a"),
    ("infer", "--shot", HOSTILE, "text", "--prompt", "a"), ("infer", "--task", HOSTILE), ("infer", f"--{HOSTILE}"),
    ("describe", "--preset", HOSTILE), ("train", HOSTILE), ("train", "flamingo", "--preset", HOSTILE, "--out", "x"),
    ("export", "--ckpt", HOSTILE, "--out", "x"), ("build", "--model", HOSTILE, "--target", "tensorrt"),
    ("bench", "--model", HOSTILE), ("bench", "--preset", HOSTILE), ("bench", "--plot", HOSTILE),
    ("import", "openflamingo", "--language", HOSTILE, "--vision", "b", "--checkpoint", "c", "--out", "d"),
    ("prompt", "compile", "--model", HOSTILE, "--shot", "a.png", "b", "--out", "x"), (HOSTILE,),
], ids=lambda arguments: " ".join(arguments[:2])[:30].encode("unicode_escape").decode())
def test_names_are_shown_as_text_in_errors(arguments, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run(*arguments)
    assert outcome.code in (1, 2)
    assert is_text(outcome.out + outcome.err), repr(outcome.out + outcome.err)


def test_answers_and_choices_are_shown_as_text(infer, pictures, monkeypatch):
    from flamingo_rt.runtime.model import Model

    generate = Model.generate

    def hostile(*arguments, **options):
        """An answer whose pieces are those of a stranger's model."""
        generation = generate(*arguments, **options)
        monkeypatch.setattr(type(generation), "__iter__", lambda _: iter([" a", HOSTILE, "\nsecond\tline"]))
        return generation

    monkeypatch.setattr(Model, "generate", hostile)
    shown = infer("--image", pictures[0]).out
    assert is_text(shown)
    assert shown.endswith("\nsecond\tline\n")
    monkeypatch.setattr(Model, "score", lambda *_, **__: [Score(HOSTILE, -1.0, 1.0, (1,), {}, 0.4)])
    outcome = infer("--image", pictures[0], "--choices", "x,y")
    assert is_text(outcome.out)
    assert "100.0%" in outcome.out
