"""Shards of drawn scenes: that they are read as what they are made from, are the same each time, and whole or not
there."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from flamingo_rt.config import PreprocessingConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.processing.pictures import open_picture
from flamingo_rt.training import scenes
from flamingo_rt.training.data import making
from flamingo_rt.training.data.making import KINDS, SceneShards, estimated_bytes, make_scenes
from flamingo_rt.training.data.samples import Said, Sample, SampleSource, Visual
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.data.visual_pixels import visual_pixels
from flamingo_rt.training.options import DataOptions

PLAIN = PreprocessingConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def opened(made: SceneShards, out: Path, per_shard: int = 1000) -> SampleSource:
    make_scenes(made, out, per_shard)
    return open_source(DataOptions(str(out)))


def picture(visual: Visual) -> np.ndarray:
    assert isinstance(visual.content, bytes)
    return np.asarray(open_picture(visual.content))


def texts(sample: Sample) -> list[str]:
    return [segment.text for segment in sample.segments if isinstance(segment, Said)]


def contents(paths: list[Path]) -> list[tuple[str, bytes]]:
    """Names and contents of all members, shard after shard."""
    found = []
    for path in paths:
        with tarfile.open(path) as shard:
            found += [(member.name, shard.extractfile(member).read()) for member in shard]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_options_give_the_same_bytes_and_other_seeds_and_splits_others(kind, tmp_path) -> None:
    def made(name: str, **options) -> list[bytes]:
        return [path.read_bytes() for path in make_scenes(SceneShards(kind, 3, **options), tmp_path / name, 2)]

    first = made("first")
    assert made("again") == first
    assert not set(made("seed", seed=1)) & set(first)
    assert not set(made("split", split="heldout")) & set(first)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_the_size_of_shards_nor_on_how_many_are_made(kind, tmp_path) -> None:
    one = make_scenes(SceneShards(kind, 5), tmp_path / "one")
    several = make_scenes(SceneShards(kind, 5), tmp_path / "several", 2)
    fewer = make_scenes(SceneShards(kind, 2), tmp_path / "fewer")
    assert [path.name for path in several] == [f"{kind}-000{number}.tar" for number in range(3)]
    assert contents(several) == contents(one)
    assert contents(fewer) == contents(one)[: len(contents(fewer))]


def test_a_shard_names_no_time_and_no_owner(tmp_path) -> None:
    (path,) = make_scenes(SceneShards("pairs", 1), tmp_path / "out")
    with tarfile.open(path) as shard:
        assert {(member.mtime, member.uid, member.uname, member.isreg()) for member in shard} == {(0, 0, "", True)}


def test_pairs_are_scenes_with_their_captions_and_questions(tmp_path) -> None:
    source = opened(SceneShards("pairs", 4, seed=7, questions=2), tmp_path / "pairs")
    samples = [source.sample(index) for index in range(len(source))]
    assert (source.kind, len(samples)) == ("pairs", 12)
    for index in range(4):
        drawn = scenes.sample(7, index, "train", 64)
        captioned, *asked = samples[3 * index : 3 * index + 3]
        assert texts(captioned) == [drawn.caption]
        for sample in (captioned, *asked):
            assert np.array_equal(picture(sample.segments[0]), drawn.image)
        for sample in asked:
            _, question, answer = sample.segments
            assert question.text.endswith("?")
            assert [question.learnt, answer.learnt] == [False, True]
        assert len({texts(sample)[0] for sample in asked}) == 2


def test_clips_are_read_with_the_default_options_frame_by_frame(tmp_path) -> None:
    source = opened(SceneShards("videos", 3, size=32), tmp_path / "videos")
    assert (source.kind, len(source)) == ("videos", 3)
    for index in range(3):
        sample, drawn = source.sample(index), scenes.clip(0, index, "train", 32)
        pixels = visual_pixels(sample.segments[0], sample.name, DataOptions("x"), PLAIN, 32)
        assert np.array_equal((pixels.transpose(0, 2, 3, 1) * 255).round(), drawn.frames)
        assert texts(sample) == [drawn.caption]


def test_pages_begin_with_a_text_and_have_each_picture_before_the_words_about_it(tmp_path) -> None:
    source = opened(SceneShards("pages", 6, questions=1), tmp_path / "pages")
    assert (source.kind, len(source)) == ("pages", 6)
    counts = set()
    for index in range(6):
        beginning, *rest = source.sample(index).segments
        count = len(rest) // 2
        counts.add(count)
        assert beginning.text == f"This page has {scenes.NUMBERS[count]} pictures."
        for number, (visual, said) in enumerate(zip(rest[::2], rest[1::2], strict=True)):
            drawn = scenes.sample(0, index * 4 + number, "train", 64)
            assert np.array_equal(picture(visual), drawn.image)
            assert said.text.startswith(f"The {making.ORDINALS[number]} picture shows {drawn.caption}. ")
            assert said.text.count("?") == 1
    assert {2, 3} <= counts <= {2, 3, 4}


def test_texts_are_captions_questions_and_answers_after_their_prompts(tmp_path) -> None:
    source = opened(SceneShards("text", 3, questions=2), tmp_path / "text")
    assert (source.kind, len(source)) == ("text", 3)
    for index in range(3):
        (text,) = texts(source.sample(index))
        first, *asked = text.split("\n")
        assert scenes.named_objects(first.removeprefix("Output: "))
        assert all(line.startswith("Question: ") and " Answer: " in line for line in asked)
        assert len(asked) == 2


def test_questions_about_clips_are_refused() -> None:
    with pytest.raises(UsageError, match="no questions are asked about clips"):
        SceneShards("videos", 1, questions=1)


def test_shards_are_replaced_only_when_asked_and_none_of_the_old_ones_stay(tmp_path) -> None:
    make_scenes(SceneShards("text", 5), tmp_path, 1)
    (tmp_path / "text-notes.tar").write_bytes(b"mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=r"already holds 5 shards of text, such as text-0000\.tar"):
        make_scenes(SceneShards("text", 4), tmp_path, 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    make_scenes(SceneShards("pairs", 1), tmp_path)  # another kind is no obstacle
    make_scenes(SceneShards("text", 4), tmp_path, 2, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "pairs-0000.tar", "text-0000.tar", "text-0001.tar", "text-notes.tar",
    ]


def test_nothing_is_left_of_work_that_fails_in_the_middle(tmp_path, monkeypatch) -> None:
    def fail(self: SceneShards, index: int):
        if index == 18:
            raise KeyboardInterrupt
        yield {f"{index}.txt": b"a"}

    monkeypatch.setattr(SceneShards, "samples", fail)
    with pytest.raises(KeyboardInterrupt):
        make_scenes(SceneShards("text", 20), tmp_path, 5)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path) -> None:
    with pytest.raises(DataError, match="MB are needed, its disk has"):
        make_scenes(SceneShards("pages", 2**31 - 1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_estimated_size_is_about_the_size_that_is_written(tmp_path) -> None:
    made = SceneShards("pages", 40, size=32)
    written = sum(path.stat().st_size for path in make_scenes(made, tmp_path / "out"))
    assert 0.8 * written < estimated_bytes(made) < 1.25 * written


def test_a_file_in_place_of_the_folder_is_refused(tmp_path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        make_scenes(SceneShards("text", 1), tmp_path / "out")
