"""`flamingo-rt infer`: it says what the Python interface says, and refuses what it cannot use in one line."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest

from flamingo_rt import Image, Video
from flamingo_rt.bundle import read_description
from flamingo_rt.memory_plan import Workload, plan_memory
from flamingo_rt.printable import printable

STAGES = {"load", "images", "vision", "resampler", "prefill", "decode"}


@pytest.fixture
def tokens(infer):
    """Tokens of an answer of at most 8."""

    def ask(*arguments):
        outcome = infer("--max-new-tokens", 8, "--json", *arguments)
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)["tokens"]

    return ask


@pytest.fixture
def expected(model):
    """Answers of the Python interface to the same prompts."""
    return lambda *parts, **options: list(model.generate(list(parts), max_new_tokens=8, **options).result().tokens)


# Answers


def test_the_answer_stands_alone_on_stdout(infer, model, pictures) -> None:
    outcome = infer("--image", pictures[0])
    assert (outcome.code, outcome.err) == (0, "")
    answer = model.generate([Image(pictures[0]), "Output:"]).result()
    assert len(set(answer.tokens)) > 10  # a model that repeats itself would prove nothing
    assert outcome.out == printable(answer.text.lstrip(), lines=True) + "\n"


def test_the_json_holds_the_result_and_the_time_of_every_stage(infer, model, pictures) -> None:
    outcome = infer("--image", pictures[0], "--max-new-tokens", 5, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    answer = json.loads(outcome.out)
    assert set(answer) == {
        "text", "tokens", "logprobs", "probability", "unlike_validation", "stop_reason", "prompt_tokens", "steps",
        "drafted", "accepted", "timings_ms",
        "model", "backend",
    }
    result = model.generate([Image(pictures[0]), "Output:"], max_new_tokens=5).result()
    assert (answer["text"], answer["tokens"]) == (result.text.strip(), list(result.tokens))
    assert answer["logprobs"] == pytest.approx(result.logprobs, abs=1e-5)
    assert (answer["stop_reason"], answer["prompt_tokens"]) == (result.stop_reason, result.prompt_tokens)
    assert answer["steps"] + answer["accepted"] == len(answer["tokens"]) - 1
    assert set(answer["timings_ms"]) == STAGES
    assert all(milliseconds > 0 for milliseconds in answer["timings_ms"].values())
    assert (answer["model"], answer["backend"]) == ("small", "ort")


def test_a_checkpoint_answers_like_its_bundle(run, checkpoint, pictures, tokens) -> None:
    outcome = run("infer", "--model", checkpoint, "--image", pictures[0], "--max-new-tokens", 8, "--json")
    answer = json.loads(outcome.out)
    assert answer["backend"] == "torch"
    assert answer["tokens"] == tokens("--image", pictures[0])


def test_a_prompt_needs_no_picture(tokens, expected) -> None:
    assert tokens("--prompt", "Question: how") == expected("Question: how")


def test_a_question_is_a_prompt_around_it(tokens, pictures, expected) -> None:
    picture = ("--image", pictures[0])
    asked = tokens(*picture, "--question", "how many {stars}?")
    assert asked == tokens(*picture, "--prompt", "Question: how many {stars}? Answer:")
    assert asked == expected(Image(pictures[0]), "Question: how many {stars}? Answer:")


def test_pictures_come_in_the_order_given(tokens, pictures, expected) -> None:
    a, b, _ = pictures
    assert tokens("--image", a, "--image", b) == expected(Image(a), Image(b), "Output:")
    assert tokens("--image", b, "--image", a) == expected(Image(b), Image(a), "Output:")
    assert tokens("--image", a) != tokens("--image", b)


def test_shots_are_examples_before_the_picture(tokens, pictures, expected, config) -> None:
    a, b, c = pictures
    end = config.tokens.end_of_chunk
    found = tokens("--shot", a, "Output: a red circle", "--shot", b, f"Output: a square{end}", "--image", c)
    shots = [Image(a), f"Output: a red circle{end}", Image(b), f"Output: a square{end}"]
    assert found == expected(*shots, Image(c), "Output:")
    assert found != tokens("--image", c)


def test_a_caption_task_writes_its_shots_in_the_models_form(tokens, pictures, expected, config) -> None:
    a, b, c = pictures
    end = config.tokens.end_of_chunk
    found = tokens("--task", "caption", "--shot", a, " a red circle", "--shot", b, "a|square", "--image", c)
    shots = [Image(a), f"Output: a red circle{end}", Image(b), f"Output: a|square{end}"]
    assert found == expected(*shots, Image(c), "Output:")
    assert found != tokens("--shot", a, "a red circle", "--shot", b, "a|square", "--image", c)
    assert tokens("--task", "caption", "--image", c) == tokens("--image", c)


def test_a_question_task_writes_its_shots_in_the_models_form(tokens, pictures, expected, config) -> None:
    a, b, c = pictures
    task, asked = ("--task", "vqa"), ("--question", "Is it {red}?")
    found = tokens(*task, "--shot", a, "how many? | two", "--shot", b, "red?|no", "--image", c, *asked)
    end, query = config.tokens.end_of_chunk, "Question: Is it {red}? Answer:"
    shots = [Image(a), f"Question: how many? Answer: two{end}", Image(b), f"Question: red? Answer: no{end}"]
    assert found == expected(*shots, Image(c), query)
    assert tokens(*task, "--image", c, *asked) == tokens("--image", c, *asked) == expected(Image(c), query)
    assert tokens(*task, *asked) == expected(query)


def test_a_task_and_choices_rank_in_the_models_form(infer, model, pictures) -> None:
    a, b, _ = pictures
    asked = ("--task", "vqa", "--shot", a, "red?|no", "--image", b, "--question", "blue?", "--choices", "yes,no")
    scores = model.score(model.question_prompt(Image(b), "blue?", shots=[(Image(a), "red?", "no")]), ["yes", "no"])
    answer = json.loads(infer(*asked, "--json").out)
    assert [choice["logprob"] for choice in answer["choices"]] == pytest.approx([s.logprob for s in scores], abs=1e-5)


def test_the_prompts_are_those_of_the_models_configuration(run, bundle, model, pictures, tmp_path) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["config"]["prompts"] = {"caption": "Say:", "question": "Q:{} A:", "answer_separator": ""}
    (other / "manifest.json").write_text(json.dumps(manifest))
    a, b, _ = pictures

    def tokens(*arguments):
        outcome = run("infer", "--model", other, "--threads", 1, "--max-new-tokens", 8, "--json", *arguments)
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)["tokens"]

    def expected(*parts):
        return list(model.generate(list(parts), max_new_tokens=8).result().tokens)

    end = model.config.tokens.end_of_chunk
    assert tokens("--image", a) == expected(Image(a), "Say:")
    assert tokens("--image", a, "--question", "red?") == expected(Image(a), "Q:red? A:")
    shot = ("--task", "caption", "--shot", a, "a star", "--image", b)
    assert tokens(*shot) == expected(Image(a), f"Say:a star{end}", Image(b), "Say:")
    shot = ("--task", "vqa", "--shot", a, "star?|yes", "--image", b, "--question", "red?")
    assert tokens(*shot) == expected(Image(a), f"Q:star? A:yes{end}", Image(b), "Q:red? A:")


def test_a_clip_is_read_in_as_many_frames_as_asked(tokens, tmp_path, expected) -> None:
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 8, (32, 32))
    for shade in range(0, 240, 24):
        writer.write(np.full((32, 32, 3), shade, np.uint8))
    writer.release()
    assert tokens("--video", clip, "--frames", 3) == expected(Video(clip, 3), "Output:")
    assert tokens("--video", clip) == expected(Video(clip, 8), "Output:")
    assert tokens("--video", clip, "--fps", 2) == expected(Video(clip, 8, fps=2), "Output:")


def test_an_answer_ends_before_a_stop_text(infer, model) -> None:
    full = model.generate(["Output:"]).result().text
    stop = full[len(full) // 2 : len(full) // 2 + 2]
    outcome = infer("--prompt", "Output:", "--stop", "never there", "--stop", stop, "--json")
    answer = json.loads(outcome.out)
    assert answer["stop_reason"] == "stop_string"
    assert answer["text"] == full[: full.index(stop)].strip()


def test_a_limit_ends_the_answer(infer) -> None:
    answer = json.loads(infer("--prompt", "Output:", "--max-new-tokens", 3, "--json").out)
    assert (len(answer["tokens"]), answer["stop_reason"]) == (3, "max_new_tokens")


def test_a_temperature_draws_by_the_seed(tokens, expected) -> None:
    drawn = [tokens("--prompt", "Output:", "--temperature", 1.5, "--seed", seed) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1] == expected("Output:", temperature=1.5, seed=0)
    assert len(set(map(tuple, drawn))) > 1


def test_sampling_options_reach_the_sampler(tokens, expected) -> None:
    given = ("--temperature", 1.5, "--top-k", 5, "--top-p", 0.9, "--repetition-penalty", 1.2, "--seed", 3)
    same = {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 3}
    assert tokens("--prompt", "Output:", *given) == expected("Output:", **same)


def test_beams_search_with_their_length_penalty(infer, tokens, expected, model, pictures) -> None:
    searched = ("--image", pictures[0], "--beams", 3)
    assert tokens(*searched) == expected(Image(pictures[0]), "Output:", beams=3) != tokens("--image", pictures[0])
    short = model.generate([Image(pictures[0]), "Output:"], beams=3, length_penalty=-4.0).result()
    outcome = infer(*searched, "--length-penalty", -4)
    assert (outcome.code, outcome.out) == (0, short.text.lstrip() + "\n")


def test_guessing_ahead_changes_no_answer(tokens, pictures) -> None:
    assert tokens("--image", pictures[0], "--speculation", 0) == tokens("--image", pictures[0], "--speculation", 3)


def test_choices_are_ranked_best_first(infer, model, pictures) -> None:
    question = ("--image", pictures[0], "--question", "Is it red?", "--choices", "yes, no,a blue square")
    scores = model.score([Image(pictures[0]), "Question: Is it red? Answer:"], ["yes", "no", "a blue square"])
    answer = json.loads(infer(*question, "--json").out)
    assert set(answer) == {
        "text", "tokens", "timings_ms", "choices", "total_probability", "normalized", "model", "backend"
    }
    assert (answer["text"], answer["tokens"]) == (scores[0].text, list(scores[0].tokens))
    assert set(answer["timings_ms"]) == {"load", "images", "vision", "resampler", "prefill", "choices"}
    assert [choice["text"] for choice in answer["choices"]] == [score.text for score in scores]
    assert [choice["logprob"] for choice in answer["choices"]] == pytest.approx([s.logprob for s in scores], abs=1e-5)
    assert [choice["logprob_per_token"] for choice in answer["choices"]] == pytest.approx(
        [score.logprob / len(score.tokens) for score in scores], abs=1e-5
    )
    assert sum(choice["probability"] for choice in answer["choices"]) == pytest.approx(1, abs=1e-5)
    plain = infer(*question)
    assert plain.code == 0
    assert [line.split("  ")[0].strip() for line in plain.out.splitlines()] == [score.text for score in scores]


@pytest.mark.parametrize("options", [[], ["--json"], ["--choices", "yes,no"]], ids=["plain", "json", "choices"])
def test_a_reader_that_leaves_early_is_no_error_to_report(bundle, options) -> None:
    command = [sys.executable, "-m", "flamingo_rt", "infer", "--model", str(bundle), "--prompt", "Output:", *options]
    reading, writing = os.pipe()
    os.close(reading)  # gone before the first byte
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""


def test_an_answer_can_be_cut_by_head_without_stdin(bundle) -> None:
    command = f"'{sys.executable}' -m flamingo_rt infer --model '{bundle}' --prompt a <&- | head -c1"
    done = subprocess.run(command, shell=True, capture_output=True)
    assert (len(done.stdout), done.stderr) == (1, b"")


# Pictures of every kind


def odd_pictures():
    rng = np.random.default_rng(1)
    colours = PIL.Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return {
        "grey.png": (colours.convert("L"), {}),
        "deep.png": (PIL.Image.fromarray(rng.integers(0, 65536, (9, 12)).astype(np.uint16)), {}),
        "cmyk.jpg": (colours.convert("CMYK"), {}),
        "alpha.png": (colours.convert("RGBA"), {}),
        "palette.gif": (colours.convert("P"), {"save_all": True, "append_images": [colours.convert("P")] * 2}),
        "turned.jpg": (colours, {"exif": exif}),
        "one.png": (colours.crop((0, 0, 1, 1)), {}),
        "thin.png": (colours.resize((900, 1)), {}),
    }


@pytest.mark.parametrize("name", odd_pictures())
def test_pictures_of_every_kind_are_answered(infer, tmp_path, name) -> None:
    picture, options = odd_pictures()[name]
    picture.save(tmp_path / name, **options)
    outcome = infer("--image", tmp_path / name, "--max-new-tokens", 2)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("\n")


# Refusals


def enormous_png() -> bytes:
    """20,000 x 20,000 pixels of 1 bit, all of them white, in some 50 kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj()
    row = b"\0" + b"\xff" * 2500
    data = b"".join(packer.compress(row) for _ in range(20_000)) + packer.flush()
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "does not exist"),
        ("empty", "0 bytes"),
        ("truncated", "cut short"),
        ("text", "give one of PNG"),
        ("directory", "is a directory"),
        ("enormous", "make it smaller"),
    ],
)
@pytest.mark.parametrize("option", ["--image", "--shot"])
def test_a_picture_that_cannot_be_read_is_named(infer, pictures, tmp_path, kind, said, option) -> None:
    file = tmp_path / f"{kind}.png"
    whole = pictures[0].read_bytes()
    contents = {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"a text, no picture"}
    if kind == "directory":
        file.mkdir()
    elif kind == "enormous":
        file.write_bytes(enormous_png())
    elif kind in contents:
        file.write_bytes(contents[kind])
    outcome = infer(option, file, *(["Output: a", "--prompt", "b"] if option == "--shot" else []))
    assert outcome.code == 1
    assert str(file) in outcome.err
    assert said in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert outcome.out == ""


@pytest.mark.parametrize("kind", ["missing", "text"])
def test_a_clip_that_cannot_be_read_is_named(infer, tmp_path, kind) -> None:
    file = tmp_path / "clip.avi"
    if kind == "text":
        file.write_text("no clip")
    outcome = infer("--video", file)
    assert (outcome.code, outcome.out) == (1, "")
    assert str(file) in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["--image", "--prompt"]),
        (["--shot", "a.png", "Output: a"], ["nothing to answer"]),
        (["--prompt", "a", "--question", "b"], ["--prompt", "--question"]),
        (["--prompt", "a", "--backend", "cuda"], ["'cuda'", "auto, ort, ort-cuda, ort-tensorrt-rtx, tensorrt, torch"]),
        (["--prompt", "a", "--temperature", "-1"], ["temperature", "-1", "0 (greedy) or more"]),
        (["--prompt", "a", "--temperature", "nan"], ["temperature", "nan"]),
        (["--prompt", "a", "--top-p", "0"], ["top_p", "0"]),
        (["--prompt", "a", "--top-k", "-2"], ["top_k", "-2"]),
        (["--prompt", "a", "--max-new-tokens", "0"], ["max_new_tokens", "0"]),
        (["--prompt", "a", "--repetition-penalty", "0"], ["repetition_penalty"]),
        (["--prompt", "a", "--seed", "-3"], ["seed", "-3"]),
        (["--prompt", "a", "--stop", ""], ["stop"]),
        (["--prompt", "a", "--beams", "0"], ["beams", "0", "from 1 (no search) to 64"]),
        (["--prompt", "a", "--beams", "2", "--temperature", "0.5"], ["beams is 2", "temperature 0.5", "leave one"]),
        (["--prompt", "a", "--length-penalty", "nan"], ["length_penalty", "nan", "from -10 to 10"]),
        (["--prompt", "a", "--speculation", "-1"], ["speculation", "-1", "from 0 (off) to 31"]),
        (["--prompt", "a", "--choices", ""], ["choices", "not empty"]),
        (["--prompt", "a", "--choices", "yes,,no"], ["choices", "not empty"]),
        (["--prompt", "a", "--frames", "8"], ["--frames is for clips", "--video FILE"]),
        (["--image", "a.png", "--fps", "2"], ["--fps is for clips", "--video FILE"]),
        (["--prompt", "a <image> b"], ["<image>", "picture itself"]),
        (["--prompt", "a", "--backend", "torch"], ["is a bundle", "--backend ort"]),
        (["--task", "caption", "--image", "a.png", "--question", "b"], ["--task caption", "--question", "--task vqa"]),
        (["--task", "caption", "--image", "a.png", "--prompt", "b"], ["--task caption", "--prompt"]),
        (["--task", "caption", "--shot", "a.png", "a"], ["nothing to caption", "--image", "--video"]),
        (["--task", "vqa", "--image", "a.png"], ["--task vqa needs --question"]),
        (["--task", "vqa", "--image", "a.png", "--prompt", "a"], ["--task vqa needs --question"]),
        (["--task", "vqa", "--prompt", "a", "--question", "b"], ["exclude"]),
        (["--task", "vqa", "--shot", "a.png", "a", "--question", "b"], ["'a' holds | 0 times", "QUESTION|ANSWER"]),
        (["--task", "vqa", "--shot", "a.png", "a|b|c", "--question", "b"], ["'a|b|c' holds | 2 times"]),
        (["--task", "vqa", "--shot", "a.png", " |b", "--question", "b"], ["the question is ' '", "not empty"]),
        (["--task", "vqa", "--shot", "a.png", "b|", "--question", "b"], ["the answer is ''", "not empty"]),
        (["--task", "caption", "--shot", "a.png", "", "--image", "b.png"], ["the caption is ''", "not empty"]),
        (["--task", "caption", "--shot", "a.png", "a <image>", "--image", "b.png"], ["'a <image>' holds <image>"]),
        (["--task", "caption", "--shot", "a.png", "a<|endofchunk|>", "--image", "b.png"], ["holds <|endofchunk|>"]),
        (["--task", "vqa", "--shot", "a.png", "a|b<image>", "--question", "b"], ["the answer", "holds"]),
        (["--task", "vqa", "--question", "b<|endofchunk|>"], ["the question", "<|endofchunk|>"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_that_cannot_be_met_end_with_2_and_a_remedy(infer, arguments, said) -> None:
    outcome = infer(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert all(text in outcome.err for text in said), outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_checkpoint_is_not_for_the_ort_backend(run, checkpoint) -> None:
    outcome = run("infer", "--model", checkpoint, "--backend", "ort", "--prompt", "a")
    assert outcome.code == 2
    assert f"flamingo-rt export --ckpt {checkpoint}" in outcome.err


@pytest.mark.parametrize("mode", [[], ["--choices", "yes,no"]], ids=["answer", "choices"])
def test_a_prompt_longer_than_the_context_says_both_lengths(infer, config, mode) -> None:
    outcome = infer("--prompt", "x" * 200, *mode)
    assert (outcome.code, outcome.out) == (1, "")
    assert "201 tokens" in outcome.err
    assert f"context is {config.language.context}" in outcome.err
    assert "shorten" in outcome.err


def test_more_pictures_than_the_model_allows_are_counted(infer, pictures, config) -> None:
    outcome = infer(*["--image", pictures[0]] * (config.max_visuals + 1))
    assert (outcome.code, outcome.out) == (1, "")
    assert f"{config.max_visuals + 1} pictures" in outcome.err
    assert f"allows {config.max_visuals}" in outcome.err


def test_a_query_that_does_not_fit_into_memory_is_refused_before_the_model_is_loaded(
    infer, pictures, bundle, monkeypatch
) -> None:
    """It is reckoned with its pictures and shots, its beams, a token for each word, and its longest answer."""
    shots = ["--shot", pictures[1], "one two three"] * 2
    asked = Workload(rows=3, pictures=3, tokens=3 + 6 + 2 + 7, answer=7)
    sure = plan_memory(read_description(bundle), asked).sure
    monkeypatch.setattr("flamingo_rt.loading.available_bytes", lambda: sure)
    query = (*shots, "--image", pictures[0], "--prompt", "four five", "--beams", 3, "--max-new-tokens", 7)
    assert infer(*query).code == 0
    monkeypatch.setattr("flamingo_rt.loading.available_bytes", lambda: sure - 1)
    monkeypatch.setattr("flamingo_rt.engines.ort.OrtBackend", None)
    outcome = infer(*query)
    assert (outcome.code, outcome.out) == (1, "")
    assert "for 3 rows of 18 tokens and 3 pictures" in outcome.err
    assert "2 rows or beams would fit" in outcome.err


def change_byte(folder):
    file = folder / "resampler.onnx.data"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def raise_format(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "language_model.onnx").unlink(), ["language_model.onnx", "copy it again"]),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ["tokenizer.json", "bytes"]),
        (change_byte, ["resampler.onnx.data", "changed"]),
        (raise_format, ["99", "upgrade"]),
        (lambda folder: (folder / "manifest.json").write_text("{"), ["manifest.json", "JSON"]),
        (lambda folder: (folder / "manifest.json").unlink(), ["neither a bundle"]),
        (shutil.rmtree, ["there is no model"]),
    ],
    ids=["file missing", "file cut", "byte changed", "newer", "manifest damaged", "manifest missing", "missing"],
)
def test_a_damaged_bundle_is_refused_by_name(run, bundle, tmp_path, damage, said) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    damage(folder)
    outcome = run("infer", "--model", folder, "--prompt", "a")
    assert (outcome.code, outcome.out) == (1, "")
    assert all(text in outcome.err for text in [str(folder), *said]), outcome.err
    assert len(outcome.err.splitlines()) == 1
