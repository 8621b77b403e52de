"""Pictures, prompts and caches that are measured with."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from flamingo_rt.bench.workload import CacheFilling, Pictures, caption_tokens, query_parts, shot_parts
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.processing.visuals import Image


def test_pictures_are_real_files_and_no_two_are_alike() -> None:
    pictures = Pictures().take(20) + Pictures(seed=1).take(2)
    assert len({picture.source for picture in pictures}) == 22
    opened = PIL.Image.open(io.BytesIO(pictures[0].source))
    assert (opened.format, opened.size, opened.mode) == ("JPEG", (640, 480), "RGB")
    assert len(pictures[0].source) < 200_000  # as a photograph, not as noise


def test_the_same_seed_gives_the_same_pictures() -> None:
    assert [p.source for p in Pictures(3).take(2)] == [p.source for p in Pictures(3).take(2)]


def test_without_a_seed_a_second_measurement_has_other_pictures() -> None:
    assert not {p.source for p in Pictures().take(3)} & {p.source for p in Pictures().take(3)}


def test_a_prompt_has_its_shots_before_the_query(packaged) -> None:
    pictures = Pictures().take(3)
    parts = shot_parts(packaged, pictures[:2]) + query_parts(packaged, pictures[2])
    assert [part for part in parts if isinstance(part, Image)] == pictures
    assert caption_tokens(packaged, 2) == len(build_prompt(parts, packaged.tokenizer))
    assert caption_tokens(packaged, 0) < caption_tokens(packaged, 1) < caption_tokens(packaged, 2)


def test_a_filled_cache_holds_one_picture_and_text(packaged) -> None:
    filling = CacheFilling(packaged, Pictures().take(1)[0])
    rows = filling.rows(2, 40)
    image = packaged.tokenizer.image_id
    for row in rows:
        assert row.input_ids[0] == image
        assert image not in row.input_ids[1:]
        assert row.input_ids.max() < packaged.config.language.vocab_size
        assert row.media_index.tolist() == [1] * 40
        assert len(row.media) == 1
    assert not np.array_equal(rows[0].input_ids, rows[1].input_ids)
    with filling.decoder(2, 48) as decoder:
        assert decoder.prefill(rows).shape == (2, packaged.config.language.vocab_size)
        assert decoder.lengths.tolist() == [40, 40]
    assert image not in filling.text_ids(5000)
