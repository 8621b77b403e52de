"""Items that cannot be read are left out and named, and each file is decoded once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flamingo_rt.errors import DataError
from flamingo_rt.evaluation import usable_items
from flamingo_rt.evaluation.task import Task
from flamingo_rt.evaluation.usable_items import with_readable_items


def test_questions_about_one_picture_decode_it_once(model, items, monkeypatch) -> None:
    decoded = []
    decode = usable_items.decode_visual
    monkeypatch.setattr(usable_items, "decode_visual", lambda *given: decoded.append(given) or decode(*given))
    asked = tuple(replace(item, name=f"{item.name} {number}", question=f"{number}?")
                  for item in items[:3] for number in range(4))
    assert with_readable_items(Task("t", "question", "exact", asked, items[:4]), model.config).items == asked
    assert len(decoded) == 4


def test_every_item_of_a_damaged_picture_is_left_out_by_its_name(model, items, tmp_path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    damaged = tuple(replace(item, name=f"damaged {number}", file=tmp_path / "x.png")
                    for number, item in enumerate(items[:2]))
    task = with_readable_items(Task("t", "caption", "exact", (*items, *damaged), items), model.config)
    assert task.items == items
    assert [reason.split(":")[0] for reason in task.missing] == ["damaged 0", "damaged 1"]


def test_text_alone_can_always_be_read_and_no_more_than_half_may_be_left_out(model, items, tmp_path) -> None:
    texts = tuple(replace(item, file=None) for item in items[:3])
    assert with_readable_items(Task("t", "question", "exact", texts, texts), model.config).items == texts
    gone = tuple(replace(item, file=tmp_path / "gone.png") for item in items[:3])
    with pytest.raises(DataError, match=r"3 of 3 items of t cannot be read; the first: p0: .*gone\.png"):
        with_readable_items(Task("t", "caption", "exact", gone, items), model.config)
