"""Data to train on: tar shards, JSONL files and what they name, texts, and folders of pictures."""

from __future__ import annotations

import functools
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from random import Random

import cv2
import numpy as np
import PIL.Image
from small_model import small_config
from tokenizers import Tokenizer

from flamingo_rt.cli.data_report import report_lines
from flamingo_rt.errors import DataError
from flamingo_rt.training.data.checking import check_source
from flamingo_rt.training.data.contact_sheet import SheetEntry, draw_sheet
from flamingo_rt.training.data.document_batches import DocumentBatches
from flamingo_rt.training.data.samples import DamagedSample
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.data.token_lengths import TextLength
from flamingo_rt.training.options import DataOptions

from ..corpus.training_data import CASES, LINES, SHARD, archive
from ..kind import Kind, Seeds, WrongAnswer
from ..mutators import json_text, raw, tar_archive
from ..sandbox import Sandbox
from .models import packaged_files

CONFIG = replace(small_config(), language=replace(small_config().language, vocab_size=2048, context=512))
MOST_SAMPLES = 20  # of an input: each of them is decoded
ROWS = (
    {"image": "0.png", "text": "a cat"}, {"image": "0.png", "question": "what is it", "answer": "a cat"},
    {"video": "a.avi", "text": "it moves"}, {"text": "a text\n\nof two"},
    {"texts": ["one", None, "two"], "images": [None, "0.png", None]},
    {"text_list": ["one", "two"], "image_info": [{"image_name": "0.png", "matched_text_index": 1}]},
)


def _seeds(folder: Path) -> Seeds:
    file = io.BytesIO()
    PIL.Image.new("RGB", (20, 12), (200, 30, 40)).save(file, "PNG")
    writer = cv2.VideoWriter(str(folder / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 1, (16, 16))
    for level in range(0, 200, 40):
        writer.write(np.full((16, 16, 3), level, np.uint8))
    writer.release()
    picture, clip = file.getvalue(), (folder / "a.avi").read_bytes()
    page = json.dumps(ROWS[4]).encode()
    return {
        "0.png": picture, "a.avi": clip, "text.txt": b"a text\n\nof two\n" * 20,
        "pairs.tar": archive(*((f"{number}.{end}", data) for number in range(3)
                               for end, data in (("png", picture), ("txt", b"a")))),
        "rows.tar": archive(("0.png", picture), ("0.json", b'{"caption": "a"}'), ("1.png", picture), ("1.txt", b"b")),
        "clips.tar": archive(("0.avi", clip), ("0.txt", b"it moves"), ("1.avi", clip), ("1.txt", b"it too")),
        "pages.tar": archive(("a/0.0.png", picture), ("a/0.json", page.replace(b"0.png", b"0.0.png")),
                             ("b/1.0.png", picture), ("b/1.json", page)),
    }


def _write(rng: Random, seeds: Seeds, sandbox: Sandbox) -> None:
    choice = rng.random()
    if choice < 0.5:
        shard = seeds[rng.choice(sorted(name for name in seeds if name.endswith(".tar")))]
        (sandbox.input / SHARD).write_bytes(tar_archive.mutate(rng, shard))
        return
    for name in ("0.png", "a.avi"):
        (sandbox.input / name).write_bytes(seeds[name] if rng.random() < 0.8 else raw.mutate(rng, seeds[name]))
    if choice < 0.9:
        row = rng.choice(ROWS)
        lines = [json.dumps(row).encode()] * rng.randrange(3) + [json_text.mutate(rng, json.dumps(row).encode())]
        text = b"\n".join(lines)
        (sandbox.input / LINES).write_bytes(raw.mutate(rng, text) if rng.random() < 0.1 else text)
    elif choice < 0.95:
        (sandbox.input / "text.txt").write_bytes(raw.mutate(rng, seeds["text.txt"]))
    else:
        (sandbox.input / "a_cat").mkdir()
        for name in ("1.png", "2.png"):
            (sandbox.input / "a_cat" / name).write_bytes(raw.mutate(rng, seeds["0.png"]))
        os.symlink(sandbox.outside / "secret.png", sandbox.input / "a_cat" / "3.png")


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_str(packaged_files("tokenizer.json")["tokenizer.json"].decode())


def _run(sandbox: Sandbox) -> None:
    place = next((path for path in (sandbox.input / SHARD, sandbox.input / LINES) if path.exists()), sandbox.input)
    options = DataOptions(str(place), batch=1, frames=2, tokens=64)
    source = open_source(options)
    if len(source) <= MOST_SAMPLES:
        _check(options)
    whole = 0
    for index in range(min(len(source), MOST_SAMPLES)):
        try:
            sample = source.sample(index)
        except DamagedSample as error:
            print(error)
            continue
        whole += bool(sample.segments)
    if not whole:
        raise DataError("no sample is whole")
    if source.kind == "text":
        return
    drawn = DocumentBatches(source, options, CONFIG, _tokenizer(), 0, 0).draw(0, 0, 1)
    print(*drawn.damaged, *drawn.names, sep="\n")
    if drawn.error is not None:
        raise drawn.error
    if not (drawn.batch.labels != -100).any():
        raise WrongAnswer("nothing to learn in a batch")


def _check(options: DataOptions) -> None:
    """Check the data as ``data check`` does, and draw the sheet of it."""
    sheet: list[SheetEntry] = []
    report = check_source(options, lambda kind: TextLength(_tokenizer(), options), sheet=sheet)
    print(*report_lines(report), sep="\n")
    if len(sheet) + len(report.damaged) + len(report.nothing_to_learn) != report.samples:
        raise WrongAnswer("a sample is neither usable nor reported")
    draw_sheet(sheet)


TRAINING_DATA = Kind("training data", _seeds, _write, _run, CASES, first=120)
