"""``flamingo-rt data``: what its commands write, print and refuse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import PIL.Image
import pytest
from made_data import captions, png, write_lines

from flamingo_rt.training.data.making import SceneShards
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.options import DataOptions


def test_made_shards_are_read_by_a_brace_pattern(run, tmp_path) -> None:
    out = tmp_path / "new" / "pairs"
    outcome = run("data", "make-scenes", "--kind", "pairs", "--count", 5, "--per-shard", 2, "--questions", 1, "--seed",
                  4, "--split", "heldout", "--size", 32, "--out", out)
    assert outcome.code == 0
    size = sum(path.stat().st_size for path in out.iterdir())
    assert outcome.out == f"wrote {out}: 5 shards of pairs, {size / 1e6:.1f} MB\n"
    assert "5 scenes as pairs" in outcome.err  # the progress
    source = open_source(DataOptions(str(out / "pairs-{0000..0004}.tar")))
    assert len(source) == 10
    (files, *_) = SceneShards("pairs", 5, 4, "heldout", 32).samples(0)
    assert source.sample(0).segments[0].content == files["00000000.png"]


@pytest.mark.parametrize(("arguments", "said"), [
    (["--kind", "videos", "--questions", 1], "no questions are asked about clips"),
    (["--kind", "photos"], "'photos'"),
    (["--kind", "text", "--size", 8], "8"),
])
def test_scenes_that_cannot_be_made_are_usage_errors(run, tmp_path, arguments, said) -> None:
    outcome = run("data", "make-scenes", "--count", 1, "--out", tmp_path / "out", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert not (tmp_path / "out").exists()


def test_an_interrupt_says_that_no_shard_was_written(run, tmp_path, monkeypatch) -> None:
    def interrupt(self: SceneShards, index: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SceneShards, "samples", interrupt)
    outcome = run("data", "make-scenes", "--kind", "text", "--count", 1, "--out", tmp_path / "out")
    assert (outcome.code, outcome.out) == (130, "")
    assert "interrupted: no shard was written" in outcome.err


# --- check


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder of 30 captioned pictures, of which 25 are damaged and two are equal."""
    folder = captions(tmp_path / "data", 30)
    rows = [{"image": f"{number}.png", "text": f"number {number}"} for number in range(30)]
    rows[1] = rows[0]
    for row in rows[5:]:
        row["text"] = ""
    write_lines(folder / "captions.jsonl", rows)
    return folder


def test_the_report_of_sound_data_says_what_it_holds(run, tmp_path) -> None:
    folder = captions(tmp_path, 5)
    outcome = run("data", "check", folder)
    assert outcome.code == 0
    assert "5 samples of pairs" in outcome.err  # the progress
    size = sum(path.stat().st_size for path in folder.glob("*.png"))
    assert outcome.out.splitlines() == [
        "samples             5 of pairs",
        "damaged             0 (0.0%)",
        "nothing to learn    0",
        f"pictures            5, {size / 1e6:.1f} MB; 5 different",
        "sizes               24 x 24 to 24 x 24, median 24 x 24 pixels",
        "characters          8 to 8, median 8, 95% have at most 8",
        "texts               5 different",
        "repeated samples    0",
    ]


def test_damaged_samples_are_named_and_too_many_of_them_are_an_error(run, damaged) -> None:
    outcome = run("data", "check", damaged)
    assert outcome.code == 1
    assert f"25 of 30 samples of {damaged} are damaged, more than 1.0%" in outcome.err
    lines = outcome.out.splitlines()
    assert lines[1] == "damaged             25 (83.3%), of which 25 have an empty text"
    assert lines[2:22] == [f"  {damaged}/captions.jsonl:{number}: text is empty" for number in range(6, 26)]
    assert lines[22] == "  and 5 more: --json names all"
    assert "most common text    2 times (40.0%): number 0" in lines
    assert lines[-2:] == ["repeated samples    1", f"  {damaged}/captions.jsonl:1 = {damaged}/captions.jsonl:2"]


@pytest.mark.parametrize(("most", "code"), [("0.8", 1), ("0.84", 0), ("1", 0)])
def test_json_has_every_damaged_sample_whatever_share_is_allowed(run, damaged, most, code) -> None:
    outcome = run("data", "check", damaged, "--max-damaged", most, "--json")
    assert outcome.code == code
    found = json.loads(outcome.out)
    assert (found["source"], found["kind"], found["samples"]) == (str(damaged), "pairs", 30)
    assert [entry["name"] for entry in found["damaged"]] == [f"{damaged}/captions.jsonl:{n}" for n in range(6, 31)]
    assert {entry["reason"] for entry in found["damaged"]} == {"text is empty"}
    assert (found["empty_texts"], found["repeated"]) == (25, 1)
    assert found["visuals"]["sizes"] == {"smallest": [24, 24], "median": [24, 24], "largest": [24, 24]}
    assert found["texts"]["characters"] == {"min": 8, "median": 8, "p95": 8, "max": 8}


def test_classes_are_listed_with_their_counts(run, tmp_path) -> None:
    for name, count in (("cat", 2), ("red_fox", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.png").write_bytes(png(number))
    lines = run("data", "check", f"{tmp_path},template=this is a {{}}").out.splitlines()
    assert lines[-2:] == ["classes                   2  cat", "                          1  red fox"]
    assert "most common text    2 times (66.7%): this is a cat" in lines


def test_tokens_are_counted_by_a_tokenizer_or_a_checkpoint(run, checkpoint, tmp_path) -> None:
    folder = captions(tmp_path / "data", 3)
    source = f"{folder},tokens=12"
    texts = json.loads(run("data", "check", source, "--tokenizer", checkpoint / "tokenizer.json", "--json").out)
    folders = json.loads(run("data", "check", source, "--tokenizer", checkpoint, "--json").out)
    documents = json.loads(run("data", "check", source, "--model", checkpoint, "--json").out)
    assert texts == folders
    # <bos> <image> … <eoc> <eos>, and the prompt
    assert documents["texts"]["tokens"]["min"] >= texts["texts"]["tokens"]["min"] + 5
    assert {found["texts"]["limit"] for found in (texts, documents)} == {12}
    assert documents["texts"]["too_long"] == 3
    both = run("data", "check", source, "--model", checkpoint, "--tokenizer", checkpoint)
    assert (both.code, "give one of them" in both.err) == (2, True)


def test_a_contact_sheet_is_written_and_not_replaced_without_being_asked(run, damaged, tmp_path) -> None:
    sheet = tmp_path / "sheet.png"
    command = ["data", "check", damaged, "--max-damaged", 1, "--sheet", sheet]
    outcome = run(*command)
    assert (outcome.code, outcome.out.splitlines()[-1]) == (0, f"wrote {sheet}")
    with PIL.Image.open(sheet) as image:
        assert image.format == "PNG"
    before = sheet.read_bytes()
    outcome = run(*command)
    assert (outcome.code, outcome.out) == (2, "")
    assert "already exists: choose another --sheet" in outcome.err
    assert run(*command, "--overwrite").code == 0
    assert sheet.read_bytes() == before


def test_without_a_usable_sample_no_sheet_is_written(run, tmp_path) -> None:
    write_lines(tmp_path / "captions.jsonl", [{"image": "gone.png", "text": "a"}])
    outcome = run("data", "check", tmp_path, "--max-damaged", 1, "--sheet", tmp_path / "sheet.png")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == "no sheet was written: no sample can be used"
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(("source", "more", "code", "said"), [
    ("gone", [], 1, "gone does not exist"),
    ("", [], 2, "a dataset needs a source"),
    ("gone,tokns=3", [], 2, "'gone,tokns=3': there is no key 'tokns'; did you mean tokens"),
    ("scenes", [], 2, "make-scenes"),
    ("{data}", ["--kind", "pages"], 1, "holds pairs, not pages"),
    ("{data}", ["--tokenizer", "/nowhere"], 1, "/nowhere"),
    ("{data}", ["--model", "/nowhere"], 1, "/nowhere"),
])
def test_what_cannot_be_checked_is_told(run, tmp_path, source, more, code, said) -> None:
    outcome = run("data", "check", source.format(data=captions(tmp_path / "data", 1)), *more)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert "--data" not in outcome.err


def test_names_and_texts_of_strangers_are_printed_safely(run, tmp_path) -> None:
    folder = captions(tmp_path / os.fsdecode(b"a\x1b[2Jb"), 2, text="\x1b]52;c;x\x07\u202e")
    outcome = run("data", "check", folder)
    assert outcome.code == 0
    assert all(character.isprintable() or character == "\n" for character in outcome.out)
    assert "\\x1b]52;c;x\\x07\\u202e" in outcome.out
