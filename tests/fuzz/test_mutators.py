"""Mutators keep the sums, lengths and directories around a change right, and the same seed makes the same change."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
import zlib
from pathlib import Path
from random import Random

import numpy as np
import PIL.Image
import pytest

from flamingo_rt.loading import PACKAGED_BUNDLE

from .child import write_input
from .kinds import KINDS
from .mutators import containers, json_text, npy, pickle_opcodes, protobuf, raw, zip_archive
from .sandbox import Sandbox


def encoded(suffix: str, **options: object) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(file, suffix, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reading", "writing"),
    [
        (encoded("PNG"), containers.png_parts, containers.png_written),
        (encoded("JPEG"), containers.jpeg_parts, containers.jpeg_written),
        (encoded("WEBP"), containers.riff_parts, containers.riff_written),
        (encoded("AVIF"), containers.boxes, containers.boxes_written),
    ],
    ids=["PNG", "JPEG", "RIFF", "ISO-BMFF"],
)
def test_a_container_comes_apart_and_together_again(data: bytes, reading, writing) -> None:
    parts = reading(data)
    assert len(parts) > 1
    assert writing(parts) == data


def test_every_chunk_of_a_changed_png_has_its_sum() -> None:
    data = encoded("PNG")
    for number in range(50):
        parts = containers._changed(Random(number), containers.png_parts(data), [])
        changed = containers.png_written(parts)
        place = len(containers.PNG_SIGNATURE)
        while place < len(changed):
            length = int.from_bytes(changed[place : place + 4], "big")
            body, summed = changed[place + 4 : place + 8 + length], changed[place + 8 + length : place + 12 + length]
            assert zlib.crc32(body) == int.from_bytes(summed, "big")
            place += 12 + length


def test_a_graph_comes_apart_and_together_again() -> None:
    graph = (PACKAGED_BUNDLE / "language_model.onnx").read_bytes()
    assert protobuf.written(protobuf.parsed(graph)) == graph
    moved = protobuf.replaced(graph, b"language_model.onnx.data", b"elsewhere")
    assert b"language_model.onnx.data" not in moved
    assert protobuf.replaced(moved, b"elsewhere", b"language_model.onnx.data") == graph


def test_a_changed_graph_is_a_protobuf_message() -> None:
    graph = (PACKAGED_BUNDLE / "resampler.onnx").read_bytes()
    changed = [protobuf.mutate(Random(number), graph) for number in range(30)]
    assert all(protobuf.parsed(message) for message in changed)
    assert sum(message != graph for message in changed) > 20


def test_a_bomb_is_small_and_unpacks_to_what_it_says() -> None:
    bomb = zip_archive.bomb("a", b"begin", 50 << 20)
    joined = zip_archive.joined(zip_archive.written([("b", b"other")]), bomb)
    assert len(joined) < 200_000
    with zipfile.ZipFile(io.BytesIO(joined)) as archive:
        assert archive.testzip() is None  # the sums are right
        assert archive.read("a").startswith(b"begin\0")
        assert archive.getinfo("a").file_size == 5 + (49 << 20)
        assert archive.read("b") == b"other"


def test_a_changed_archive_can_mostly_be_listed() -> None:
    data = zip_archive.written([("a", b"1" * 100), ("b", b"2" * 100)])
    listed = 0
    for number in range(60):
        changed = zip_archive.mutate(Random(number), data, lambda rng, name, content: raw.mutate(rng, content))
        try:
            zipfile.ZipFile(io.BytesIO(changed)).infolist()
            listed += 1
        except zipfile.BadZipFile:
            continue
    assert listed > 40


def test_a_pickle_comes_apart_at_its_opcodes() -> None:
    data = pickle.dumps({"a": [1, 2.5, None], "b": ("x", b"y")}, 2)
    pieces = pickle_opcodes.pieces(data)
    assert b"".join(pieces) == data
    assert len(pieces) > 10


def test_changed_json_is_json_but_for_few() -> None:
    text = json.dumps({"a": [1, 2, {"b": "c"}], "d": None, "e": 0.5}).encode()
    parsed = 0
    for number in range(200):
        try:
            json.loads(json_text.mutate(Random(number), text))
            parsed += 1
        except (ValueError, RecursionError):
            continue
    assert 150 < parsed < 200


def test_an_array_with_another_header_has_the_right_length_of_it() -> None:
    data = npy.packed("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", bytes(16))
    assert np.load(io.BytesIO(data)).shape == (4,)


@pytest.mark.parametrize("name", ["pictures", "tokenizers", "calibration", "weights"])
def test_an_input_is_the_same_whenever_it_is_made(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    (tmp_path / "seeds").mkdir()
    seeds = kind.seeds(tmp_path / "seeds")
    sandbox = Sandbox.make(tmp_path / "sandbox")
    inputs = []
    for number in [*range(10), *range(10)]:
        sandbox.clear()
        write_input(kind, number, 0, seeds, sandbox)
        files = [file for file in sorted(sandbox.input.rglob("*")) if file.is_file()]
        inputs.append({str(file.relative_to(sandbox.input)): file.read_bytes() for file in files})
    assert inputs[:10] == inputs[10:]
    assert all(inputs[0] != other for other in inputs[1:10])


def test_another_seed_makes_other_inputs(tmp_path: Path) -> None:
    kind = KINDS["calibration"]
    sandbox = Sandbox.make(tmp_path / "sandbox")
    made = []
    for seed in (0, 1):
        sandbox.clear()
        write_input(kind, 0, seed, kind.seeds(tmp_path), sandbox)
        made.append((sandbox.input / "prompts.jsonl").read_bytes())
    assert made[0] != made[1]
