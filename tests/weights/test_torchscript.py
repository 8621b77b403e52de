"""Weights come out of TorchScript archives as torch.jit.load has them, and nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from read_or_refused import may_be_refused
from torch import nn

from flamingo_rt.errors import DataError
from flamingo_rt.weights.weight_files import open_weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4, bias=False))
        self.register_buffer("mask", torch.triu(torch.ones(3, 3)))
        self.register_buffer("count", torch.tensor(7))
        self.flag, self.sizes, self.label = True, [1, 2, 3], "text"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 2), "block": Block()})
        self.blocks = nn.ModuleList([Block(), Block()])
        self.projection = nn.Parameter(torch.randn(4, 5).t())
        self.tied = self.blocks[0].layers[0].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x @ self.projection.t()


def save_archive(file: Path, trace: bool = False) -> dict[str, torch.Tensor]:
    """Write a small archive of half weights; its state dict, as torch reads it."""
    torch.manual_seed(0)
    model = Model().half().eval()
    model.blocks[0].mask = model.blocks[0].mask.float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(model, torch.ones(1, 4).half()) if trace else torch.jit.script(model)
        scripted.save(str(file))
        return torch.jit.load(str(file)).state_dict()


@pytest.mark.parametrize("trace", [False, True])
def test_every_weight_and_buffer_is_what_torch_reads(tmp_path, trace):
    expected = save_archive(tmp_path / "archive.pt", trace)
    tensors = open_weights(tmp_path / "archive.pt")
    assert set(tensors) == set(expected)
    assert {"blocks.1.layers.0.weight", "projection", "blocks.0.mask"} <= set(tensors)
    for name, tensor in tensors.items():
        values = tensor.read()
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, tuple(expected[name].shape)), name
        assert values.is_contiguous()
        assert torch.equal(values, expected[name]), name


@pytest.fixture
def no_code(monkeypatch):
    """Neither torch's readers of archives nor its compiler may be called."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("torch read the archive itself")

    for module, name in ((torch, "load"), (torch.jit, "load"), (torch._C, "import_ir_module")):
        monkeypatch.setattr(module, name, refuse)


def test_an_archive_whose_code_is_broken_is_read_regardless(tmp_path, request):
    save_archive(tmp_path / "archive.pt")
    with zipfile.ZipFile(tmp_path / "archive.pt") as old, zipfile.ZipFile(tmp_path / "broken.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"this is no code" if "/code/" in name else old.read(name))
    request.getfixturevalue("no_code")
    tensors = open_weights(tmp_path / "broken.pt")
    assert tensors["visual.conv1.weight"].read().shape == (4, 3, 2, 2)


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def craft(file: Path, content: bytes, extra: dict[str, bytes] | None = None, compression=zipfile.ZIP_STORED) -> None:
    """A zip file that looks like a TorchScript archive."""
    records = {"data.pkl": content, "code/__torch__.py": b"", "constants.pkl": pickle.dumps((), 2), **(extra or {})}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_in_an_archive_is_named_and_not_run(tmp_path, protocol, no_code):
    file, sprung = tmp_path / "trap.pt", tmp_path / "sprung"
    content = pickle.dumps({"weight": Call(os.system, f"touch {sprung}")}, protocol)
    craft(file, content)
    with pytest.raises(DataError, match=r"trap\.pt wants to run code \((posix|nt)\.system\).*not read.*safetensors"):
        open_weights(file)
    assert not sprung.exists()
    pickle.loads(content)
    assert sprung.exists()  # the trap does work


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (eval, ("1",), "__builtin__.eval"),
        (getattr, ("", "upper"), "__builtin__.getattr"),
        (torch.load, ("x",), "torch.serialization.load"),
        (torch.hub.load, ("x",), "torch.hub.load"),
        (torch._utils._rebuild_tensor, (1,), "torch._utils._rebuild_tensor"),
        (Path, ("x",), "pathlib"),
    ],
)
def test_only_what_tensors_need_is_allowed(tmp_path, function, arguments, name):
    craft(tmp_path / "trap.pt", pickle.dumps(Call(function, *arguments), 2))
    with pytest.raises(DataError, match=rf"wants to run code \({name}"):
        open_weights(tmp_path / "trap.pt")


def test_a_stand_in_gives_no_way_to_what_it_stands_for(tmp_path):
    # A name with dots walks from attribute to attribute in pickle's own lookup.
    names = (b"torch._utils", b"_rebuild_tensor_v2.__globals__.__getitem__")
    walk = b"".join(b"\x8c" + bytes([len(name)]) + name for name in names)
    craft(tmp_path / "trap.pt", b"\x80\x04" + walk + b"\x93.")
    with pytest.raises(DataError, match="wants to run code"):
        open_weights(tmp_path / "trap.pt")


class Pickler(pickle.Pickler):
    """Writes storages by their record, as PyTorch does."""

    def persistent_id(self, value: object) -> object:
        return value.key if isinstance(value, Storage) else None


class Storage:
    def __init__(self, *key: object) -> None:
        self.key = key


def tensor_of(storage: Storage, *layout: object) -> Call:
    return Call(torch._utils._rebuild_tensor_v2, storage, *layout, False, {})


def pickled(content: object) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, 2).dump(content)
    return stream.getvalue()


def float_storage(record: str, count: int) -> Storage:
    return Storage("storage", torch.FloatStorage, record, "cpu", count)


def test_tensors_that_share_a_storage_and_lie_in_constants_are_read(tmp_path):
    values = torch.arange(12.0)
    content = {
        "rows": tensor_of(float_storage("0", 12), 0, (3, 4), (4, 1)),
        "columns": tensor_of(float_storage("0", 12), 0, (4, 3), (1, 4)),
        "part": tensor_of(float_storage("0", 12), 5, (2,), (3,)),
        "constant": tensor_of(float_storage("c", 12), 0, (12,), (1,)),
    }
    data = values.numpy().tobytes()
    craft(tmp_path / "archive.pt", pickled(content), {"data/0": data, "constants/c": data})
    tensors = open_weights(tmp_path / "archive.pt")
    assert torch.equal(tensors["rows"].read(), values.view(3, 4))
    assert torch.equal(tensors["columns"].read(), values.view(3, 4).t())
    assert tensors["part"].read().tolist() == [5, 8]
    assert torch.equal(tensors["constant"].read(), values)


@pytest.mark.parametrize(
    "layout",
    [
        (0, (13,), (1,)),
        (1, (12,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, ("2",), (1,)),
        (0, 2, 1),
    ],
)
def test_a_tensor_that_reaches_past_its_storage_is_refused(tmp_path, layout):
    craft(tmp_path / "bad.pt", pickled({"weight": tensor_of(float_storage("0", 12), *layout)}), {"data/0": bytes(48)})
    with pytest.raises(DataError, match=r"cannot read .*bad\.pt"):
        open_weights(tmp_path / "bad.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "data.pkl is damaged"),
        (b"\x80\x02", "data.pkl is damaged"),
        (b"junk", "data.pkl is damaged"),
        (pickle.dumps([1]), "no named tensors"),
        (pickled({"a": tensor_of(float_storage("absent", 1), 0, (1,), (1,))}), "lacks data/absent"),
        (pickled({"a": Storage("module", "x", "0")}), "not a storage"),
        (pickled({"a": Storage()}), "data.pkl is damaged"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path, content, message):
    craft(tmp_path / "bad.pt", content)
    with pytest.raises(DataError, match=rf"bad\.pt.*{message}"):
        open_weights(tmp_path / "bad.pt")


def deep_pickle(levels: int) -> bytes:
    """Dictionaries one inside the other; the pickle module itself cannot write so many."""
    return b"\x80\x02" + b"}X\x01\x00\x00\x00a" * levels + b"}" + b"s" * levels + b"."


def doubled_pickle(levels: int) -> bytes:
    content: dict = {}
    for _ in range(levels):
        content = {"a": content, "b": content}
    return pickle.dumps(content, 2)


@pytest.mark.usefixtures("few_names")
@pytest.mark.parametrize("content", [deep_pickle(5000), doubled_pickle(30)], ids=["deep", "doubled"])
def test_a_structure_that_no_model_has_is_refused_before_all_of_it_is_named(tmp_path, content):
    assert isinstance(pickle.loads(content), dict)
    craft(tmp_path / "odd.pt", content)
    with pytest.raises(DataError, match=r"cannot read .*odd\.pt: .*more than 1000000 entries"):
        open_weights(tmp_path / "odd.pt")


def test_a_compressed_archive_is_refused(tmp_path):
    content = pickled({"weight": tensor_of(float_storage("0", 12), 0, (12,), (1,))})
    craft(tmp_path / "packed.pt", content, {"data/0": bytes(48)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"packed\.pt is compressed: unpack"):
        open_weights(tmp_path / "packed.pt")


def test_an_archive_cut_anywhere_is_refused(tmp_path):
    file = tmp_path / "archive.pt"
    save_archive(file)
    content = file.read_bytes()
    for cut in range(0, len(content), len(content) // 50):
        file.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"archive.pt"):
            open_weights(file)


def test_an_archive_with_a_changed_byte_is_read_or_refused(tmp_path):
    file = tmp_path / "archive.pt"
    content = pickled({"weight": tensor_of(float_storage("0", 12), 0, (12,), (1,))})
    craft(file, content, {"data/0": bytes(48)})
    whole = file.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        file.write_bytes(changed)
        with may_be_refused(file):
            for tensor in open_weights(file).values():
                assert tensor.read().shape == tensor.shape


@pytest.mark.parametrize("place", range(0, 200, 3))
def test_a_changed_pickle_is_read_or_refused(tmp_path, place):
    content = bytearray(pickled({"weight": tensor_of(float_storage("0", 12), 0, (12,), (1,)), "flag": [True, 1.5]}))
    content[place % len(content)] ^= 0x15
    craft(tmp_path / "archive.pt", bytes(content), {"data/0": bytes(48)})
    with may_be_refused("archive.pt"):
        for tensor in open_weights(tmp_path / "archive.pt").values():
            assert tensor.read().shape == tensor.shape
