"""``flamingo-rt data``: what its commands write, print and refuse."""

from __future__ import annotations

import pytest

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
