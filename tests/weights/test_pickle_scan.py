"""Pickles that would take memory or time without end are found out before they are unpickled."""

import io
import pickle
import zipfile

import pytest
import torch

from flamingo_rt.errors import DataError
from flamingo_rt.weights.flattening import flattened
from flamingo_rt.weights.pickle_scan import PickleScan
from flamingo_rt.weights.weight_files import open_weights

HUGE_MEMO = b"\x80\x02}r" + (400_000_000).to_bytes(4, "little") + b"."
DOUBLED = b"\x80\x02}(K\x01" + b"2\x86" * 60 + b"K\x01u."
BYTEARRAY = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x01\x85R."
PLAIN_DATA = [
    {"a": (1, 2.5, [3, None], {"b"}), "c": b"bytes", "d": {"e": "text" * 100}}, [(1, 2)] * 1000, 10**50,
    {"shared": [shared := ["x"], shared]}, list(range(5000)),
]


def scan(content: bytes, **options) -> None:
    PickleScan(**options).scan(io.BytesIO(content))


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("data", PLAIN_DATA, ids=range(len(PLAIN_DATA)))
def test_pickles_written_by_the_pickle_module_pass(data, protocol):
    scan(pickle.dumps(data, protocol))


@pytest.mark.parametrize(("content", "message"), [
    (HUGE_MEMO, "memo begins at 400000000"), (DOUBLED, "more than 1000000 values"), (BYTEARRAY, "builtins.bytearray"),
    (b"\x80\x02" + b"]" + b"\x85" * 1000 + b".", "200 levels"), (b"\x80\x02h\x05.", "from its memo"),
    (b"\x80\x02\x86.", "value where there is none"), (b"\x80\x02t.", "mark that is not there"),
    (b"\x80\x02T\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
    (b"\x80\x02\x8b\xff\xff\xff\x7f\x01.", "not enough data"),
    (b"\x80\x02K\x01", "pickle exhausted"), (b"", "exhausted"), (b"\x80\x02\xff", "unknown"),
])
def test_a_pickle_that_takes_more_memory_than_its_length_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        scan(content)


def plain(path, data: bytes, name: str = "archive/data.pkl", compression: int = zipfile.ZIP_STORED, **more: bytes):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(name, data)
        file.writestr("archive/version", b"3\n")
        for other, content in more.items():
            file.writestr(other, content)
    return path


@pytest.mark.parametrize("content", [HUGE_MEMO, DOUBLED, BYTEARRAY])
@pytest.mark.parametrize("kind", ["state dict", "torchscript", "legacy"])
def test_no_kind_of_file_gets_such_a_pickle_unpickled(kind, content, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    path = tmp_path / "weights.pt"
    if kind == "legacy":
        path.write_bytes(content)
    else:
        plain(path, content, **({"archive/constants.pkl": b""} if kind == "torchscript" else {}))
    with pytest.raises(DataError, match="damaged"):
        open_weights(path)


def test_a_legacy_file_cannot_ask_for_storages_longer_than_itself(tmp_path, monkeypatch):
    torch.save({"w": torch.zeros(3, 5)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert open_weights(tmp_path / "old.pt")["w"].shape == (3, 5)
    content = (tmp_path / "old.pt").read_bytes()
    assert content.count(b"cpuq") == 1
    place = content.index(b"K\x0f", content.index(b"cpuq"))  # 15 values
    (tmp_path / "old.pt").write_bytes(content[:place] + b"J\xff\xff\xff\x7f" + content[place + 2 :])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    with pytest.raises(DataError, match=r"more than the .* bytes of the file"):
        open_weights(tmp_path / "old.pt")


def test_records_that_torch_would_take_for_others_are_refused(tmp_path):
    empty = pickle.dumps({}, 2)
    for name in ("archive/DATA.PKL", "other/data.pkl"):
        with pytest.raises(DataError, match="records of the same name"):
            open_weights(plain(tmp_path / "two.pt", empty, **{name: HUGE_MEMO}))


def test_a_record_that_inflates_beyond_measure_is_refused_unread(tmp_path, monkeypatch):
    path = plain(tmp_path / "bomb.pt", pickle.dumps({}, 2), compression=zipfile.ZIP_DEFLATED,
                 **{"archive/data/0": bytes(80_000_000)})
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(DataError, match="bytes when it is unpacked"):
        open_weights(path)


def test_a_safetensors_header_beyond_measure_is_refused_unread(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((90_000_000).to_bytes(8, "little") + b"{}" + b" " * 100)
    with pytest.raises(DataError, match="its header has 90000000 bytes"):
        open_weights(path)


LONG = b"X" + (1_000_000).to_bytes(4, "little") + b"x" * 1_000_000 + b"q\x00"


def test_a_tuple_that_holds_a_long_text_over_and_over_is_refused():
    scan(b"\x80\x02}(" + LONG + b"Nu.")
    with pytest.raises(ValueError, match="more than 1000000 values"):
        scan(b"\x80\x02}((" + LONG + b"h\x00" * 3000 + b"tNu.")


def test_the_opcodes_of_all_pickles_of_a_file_are_counted_together(monkeypatch):
    monkeypatch.setattr("flamingo_rt.weights.pickle_scan.MOST_OPCODES", 500)
    several = PickleScan()
    for _ in range(2):
        several.scan(io.BytesIO(pickle.dumps([None] * 200, 2)))
    with pytest.raises(ValueError, match="more than 500 opcodes"):
        several.scan(io.BytesIO(pickle.dumps([None] * 200, 2)))


def test_a_stack_without_end_is_refused():
    with pytest.raises(ValueError, match="values on its stack"):
        scan(b"\x80\x02(" + b"}" * 300_000 + b"l.")


@pytest.mark.parametrize(("content", "message"), [
    ({("a", "b"): 1}, "type tuple"), ({1 << 64: 1}, "type int"), ({"x" * 2000: 1}, "a name of"),
    ({"x" * 600: {"y" * 600: 1}}, "a name of"),
    ({"x" * 900: dict.fromkeys(map(str, range(30_000)), 1)}, "20000000 characters"),
])
def test_keys_that_name_no_tensor_are_refused_before_they_become_text(content, message):
    with pytest.raises(ValueError, match=message):
        flattened(content, int)


def test_keys_of_what_is_no_tensor_do_not_matter():
    content = {"a": {0: 1, -1: 2}, ("b",): "text", None: [3], "x" * 5000: 0.5}
    assert flattened(content, int) == {"a.0": 1, "a.-1": 2}
    assert flattened({3: 1}, int) == {"3": 1}
