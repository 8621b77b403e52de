"""Every tensor comes out as the plain loader has it; no code runs; what cannot be read is refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from read_or_refused import may_be_refused
from safetensors.torch import load_file, save_file
from torch import Tensor

from flamingo_rt.errors import DataError
from flamingo_rt.weights import pytorch
from flamingo_rt.weights.weight_files import open_weights


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def many_kinds() -> dict[str, Tensor]:
    """Tensors that share storages, are views of them, or have every type that weights come in."""
    base = random(6, 8)
    return {
        "base": base,
        "transposed": base.t(),
        "sliced": base[1:5, ::3],
        "row": base[3],
        "expanded": base[:1].expand(4, 8),
        "permuted": random(2, 3, 4).permute(2, 0, 1),
        "half": random(5, 3).half(),
        "bfloat16": random(7).bfloat16(),
        "double": random(3).double(),
        "int64": torch.arange(9).view(3, 3),
        "uint16": torch.arange(4).to(torch.uint16),
        "bool": torch.tensor([True, False, True]),
        "float8": random(5).to(torch.float8_e4m3fn),
        "complex": torch.complex(random(3), random(3)),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0),
        "no_rows": torch.empty(0, 4, dtype=torch.float16),
        "parameter": torch.nn.Parameter(random(2, 2)),
    }


def same(one: Tensor, other: Tensor) -> bool:
    def bits(tensor: Tensor) -> Tensor:
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8)

    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))


def assert_read_like(path: Path, expected: dict[str, Tensor]) -> None:
    tensors = open_weights(path)
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        values = tensor.read()
        assert (tensor.shape, tensor.dtype) == (tuple(expected[name].shape), expected[name].dtype), name
        assert same(values, expected[name]), name
        assert values.is_contiguous(), name
        assert not values.requires_grad, name
        assert values.untyped_storage().data_ptr() != tensor.read().untyped_storage().data_ptr() or not tensor.nbytes


@pytest.fixture
def no_whole_reading(monkeypatch):
    def refuse(file: Path, mmap: bool):
        raise AssertionError(f"{file} is read as a whole")

    monkeypatch.setattr(pytorch, "_open_whole", refuse)


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "pytorch_model.bin", "epoch.ckpt", "weights"])
def test_a_pytorch_file_is_read_tensor_by_tensor(tmp_path, no_whole_reading, name):
    torch.save(many_kinds(), tmp_path / name)
    assert_read_like(tmp_path / name, torch.load(tmp_path / name, weights_only=True))


def test_a_file_from_before_the_zip_format_is_read(tmp_path):
    file = tmp_path / "old.pt"
    kinds = many_kinds()
    for name in ("uint16", "float8"):  # torch itself reads these types in the newer format alone
        del kinds[name]
    torch.save(kinds, file, _use_new_zipfile_serialization=False)
    assert_read_like(file, torch.load(file, weights_only=True))


def test_a_safetensors_file_is_read_tensor_by_tensor(tmp_path):
    tensors = {name: tensor.contiguous().clone() for name, tensor in many_kinds().items()}
    for name in ("model.safetensors", "named_otherwise"):
        save_file(tensors, tmp_path / name, {"format": "pt"})
        assert_read_like(tmp_path / name, load_file(tmp_path / name))


def test_a_tensor_without_plain_values_is_read_by_torch(tmp_path):
    file = tmp_path / "odd.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(random(4), 0.1, 0, torch.qint8)
        torch.save({"weight": random(3), "quantized": quantized, "sparse": torch.eye(3).to_sparse()}, file)
        tensors = open_weights(file)
    assert tensors["quantized"].dtype == torch.qint8
    assert torch.equal(tensors["quantized"].read().int_repr(), quantized.int_repr())
    assert torch.equal(tensors["weight"].read(), random(3))
    with pytest.raises(DataError, match=r"sparse is torch.sparse_coo, only dense"):
        tensors["sparse"].read()
    with pytest.raises(DataError, match=r"quantized cannot be converted from torch.qint8 to torch.float16"):
        tensors["quantized"].to(torch.float16).read()


@pytest.mark.parametrize("odd", [torch.complex(random(3), random(3)).conj(), torch._neg_view(random(3))])
def test_a_tensor_that_stands_for_other_values_than_the_file_s_comes_out_right(tmp_path, odd):
    file = tmp_path / "odd.pt"
    torch.save({"odd": odd, "weight": random(4)}, file)
    assert_read_like(file, {"odd": odd.resolve_conj().resolve_neg(), "weight": random(4)})


def rewritten(source: Path, target: Path, order=lambda names: names, compression=zipfile.ZIP_STORED) -> None:
    """The same records in another order, from another program than PyTorch."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in order(old.namelist()):
            new.writestr(name, old.read(name))


@pytest.mark.parametrize("order", [list, sorted, lambda names: names[::-1]])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_file_zipped_again_gives_the_same_values(tmp_path, order, compression):
    tensors = {f"layer{index}": random(8) + index for index in range(12)}
    torch.save(tensors, tmp_path / "weights.pt")
    rewritten(tmp_path / "weights.pt", tmp_path / "again.pt", order, compression)
    assert_read_like(tmp_path / "again.pt", tensors)


def test_records_in_another_order_than_pytorch_s_are_not_mistaken_for_each_other(tmp_path):
    tensors = {f"layer{index}": random(8) + index for index in range(12)}
    torch.save(tensors, tmp_path / "weights.pt")
    writer = torch._C.PyTorchFileWriter(str(tmp_path / "again.pt"))  # aligns records as torch.save does
    with zipfile.ZipFile(tmp_path / "weights.pt") as old:
        for name in sorted(old.namelist(), key=lambda name: ("/data/" in name, name)):
            record = name.partition("/")[2]
            if record not in ("version", ".data/serialization_id"):  # the writer's own
                writer.write_record(record, old.read(name), len(old.read(name)))
    writer.write_end_of_file()
    assert_read_like(tmp_path / "again.pt", tensors)


def test_a_file_without_pytorch_s_newer_marks_is_read_tensor_by_tensor(tmp_path, no_whole_reading):
    torch.save(many_kinds(), tmp_path / "weights.pt")
    marks = (".format_version", ".storage_alignment", "byteorder", "serialization_id")
    rewritten(
        tmp_path / "weights.pt",
        tmp_path / "older.pt",
        lambda names: sorted(name for name in names if not name.endswith(marks)),
    )
    assert_read_like(tmp_path / "older.pt", torch.load(tmp_path / "weights.pt", weights_only=True))


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict"])
def test_a_training_checkpoint_gives_its_model(tmp_path, wrapper):
    file, state = tmp_path / "checkpoint.pt", {"weight": random(2), "note": "text", "count": 3}
    torch.save({"epoch": 7, wrapper: state, "optimizer_state_dict": {"state": {0: {"step": random(1)}}}}, file)
    assert_read_like(file, {"weight": random(2)})


def test_a_prefix_that_all_names_share_is_taken_off(tmp_path):
    file = tmp_path / "checkpoint.pt"
    torch.save({"model_state_dict": OrderedDict({"module.a": random(2), "module.b.module.c": random(3)})}, file)
    assert_read_like(file, {"a": random(2), "b.module.c": random(3)})
    torch.save({"module.a": random(2), "b": random(3)}, file)
    assert_read_like(file, {"module.a": random(2), "b": random(3)})


def test_nested_dictionaries_have_dotted_names(tmp_path):
    file = tmp_path / "nested.pt"
    tree = {"model": {"visual": {"weight": random(2)}}, "list": [random(1)], "step": 4}
    tree["model"]["self"] = tree["model"]
    torch.save(tree, file)
    assert_read_like(file, {"model.visual.weight": random(2)})


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, random(3), [random(3)], {"state_dict": {}}])
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "nothing.pt")
    with pytest.raises(DataError, match=r"nothing.pt holds no named tensors"):
        open_weights(tmp_path / "nothing.pt")


def doubled(levels: int) -> dict:
    """A few bytes that stand for 2 ** levels names."""
    content: dict = {"weight": random(2)}
    for _ in range(levels):
        content = {"a": content, "b": content}
    return content


def nested(levels: int) -> dict:
    content: dict = {"weight": random(2)}
    for _ in range(levels):
        content = {"a": content}
    return content


def old_format(content: object, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


@pytest.mark.usefixtures("few_names")
@pytest.mark.parametrize("write", [torch.save, old_format])
@pytest.mark.parametrize("content", [doubled(30), nested(200)], ids=["doubled", "deep"])
def test_a_structure_that_no_model_has_is_refused_before_all_of_it_is_named(tmp_path, write, content):
    write(content, tmp_path / "odd.pt")
    with pytest.raises(DataError, match=r"cannot read .*odd\.pt: .*more than (1000000 entries|20000000 characters)"):
        open_weights(tmp_path / "odd.pt")


def test_a_part_that_stands_in_several_places_has_each_name(tmp_path):
    torch.save(doubled(3), tmp_path / "shared.pt")
    tensors = open_weights(tmp_path / "shared.pt")
    assert set(tensors) == {f"{a}.{b}.{c}.weight" for a in "ab" for b in "ab" for c in "ab"}
    torch.save(nested(60), tmp_path / "deep.pt")
    assert set(open_weights(tmp_path / "deep.pt")) == {"a." * 60 + "weight"}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self):
        return os.system, (f"touch {self.sprung}",)


def plain_pickle(content: object, file: Path) -> None:
    file.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [torch.save, old_format, plain_pickle])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ""])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path, write, suffix):
    file, sprung = tmp_path / f"trap{suffix}", tmp_path / "sprung"
    write({"epoch": 2, "trap": Trap(sprung)}, file)
    with pytest.raises(DataError, match=r"trap\S* wants to run code \((posix|nt)\.system\).*not loaded: save"):
        open_weights(file)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap does work


def test_a_whole_pickled_module_is_refused_by_its_class(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(DataError, match=r"wants to run code \(torch\.nn\.modules\.linear\.Linear\).*plain state dict"):
        open_weights(tmp_path / "module.pt")


def test_a_pickle_of_a_newer_protocol_is_refused(tmp_path):
    (tmp_path / "newer.pt").write_bytes(pickle.dumps({"trap": Trap(tmp_path / "sprung")}, protocol=4))
    with pytest.raises(DataError, match=r"newer.pt holds a pickle that is damaged or more than weights"):
        open_weights(tmp_path / "newer.pt")
    assert not (tmp_path / "sprung").exists()


def cuts(size: int) -> list[int]:
    return sorted({0, 1, 3, 7, 8, 9, size - 1, size - 2, *range(10, size, max(1, size // 60))})


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_a_file_cut_anywhere_is_refused(tmp_path, kind):
    tensors = {"a": random(3, 4), "b": random(5).half(), "c": torch.arange(3)}
    file = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.bin")
    if kind == "safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file, _use_new_zipfile_serialization=kind == "zip")
    content = file.read_bytes()
    for cut in cuts(len(content)):
        file.write_bytes(content[:cut])
        with pytest.raises(DataError, match=re.escape(str(file))):
            assert_read_like(file, tensors)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
def test_a_file_with_a_changed_byte_is_read_or_refused(tmp_path, name):
    tensors = {"a": random(3, 4), "b": random(5).half(), "c": torch.arange(3)}
    file = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(tensors, file)
    content = bytearray(file.read_bytes())
    for place in range(0, len(content), 5):
        changed = bytearray(content)
        changed[place] ^= 0x55
        file.write_bytes(changed)
        with may_be_refused(file):
            for tensor in open_weights(file).values():
                assert tensor.read().shape == tensor.shape


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
def test_a_file_cut_after_it_was_opened_is_refused_on_reading(tmp_path, name):
    file = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)({"weight": random(64)}, file)
    tensor = open_weights(file)["weight"]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"tensor weight needs 256 bytes, .* are left"):
        tensor.read()
    file.unlink()
    with pytest.raises(DataError, match=f"cannot read .*{name}: No such file"):
        tensor.read()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.bin", b"", "model.bin is empty"),
        ("model.safetensors", b"", "model.safetensors is empty"),
        ("photo.pt", b"\x89PNG\r\n\x1a\n" + bytes(100), "photo.pt is not a weight file: it begins with .*PNG"),
        ("model.safetensors", b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged, or not a safetensors file"),
        ("notes.txt", b"some notes about weights\n", "notes.txt is not a weight file"),
        ("model.bin", POINTER, "git-lfs pointer.*git lfs pull"),
        ("model.safetensors", POINTER, "git-lfs pointer"),
        ("model.pt", b"PK\x03\x04" + bytes(100), "begins like a zip file but is damaged or cut short"),
        ("model.pt", b"\x80\x02", "damaged or cut short"),
    ],
)
def test_a_file_that_is_no_weight_file_is_refused_with_its_kind(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_weights(tmp_path / name)


def test_a_zip_file_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as opened:
        opened.writestr("photos/1.png", b"")
    with pytest.raises(DataError, match=r"photos.zip is a zip file without data.pkl"):
        open_weights(tmp_path / "photos.zip")


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent.pt does not exist"):
        open_weights(tmp_path / "absent.pt")


def test_an_error_of_the_system_is_explained(tmp_path, monkeypatch):
    file = tmp_path / "model.bin"
    torch.save({"weight": random(2)}, file)

    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"cannot read .*model.bin: Permission denied"):
        open_weights(file)


def test_a_safetensors_type_that_torch_lacks_is_named(tmp_path):
    header = json.dumps({"weight": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(DataError, match="tensor weight is F4, which is not read"):
        open_weights(tmp_path / "model.safetensors")


def write_shards_of(folder: Path, suffix: str) -> dict[str, Tensor]:
    """Two shards and their index."""
    save = save_file if suffix == "safetensors" else torch.save
    shards = {f"one.{suffix}": {"a": random(2), "b": random(3)}, f"two.{suffix}": {"c": random(4)}}
    for file, tensors in shards.items():
        save(tensors, folder / file)
    name = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return {name: tensor for tensors in shards.values() for name, tensor in tensors.items()}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_of_shards_is_read_by_its_index(tmp_path, suffix):
    expected = write_shards_of(tmp_path, suffix)
    assert_read_like(tmp_path, expected)
    index = next(tmp_path.glob("*.index.json"))
    assert_read_like(index, expected)
    assert_read_like(index.rename(tmp_path / "model.fp16.index.json").parent, expected)


def test_a_prefix_is_taken_off_after_the_shards_are_joined(tmp_path):
    for number, name in enumerate(("module.a", "module.b")):
        torch.save({name: random(number + 2)}, tmp_path / f"{number}.bin")
    index = {"weight_map": {"module.a": "0.bin", "module.b": "1.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_read_like(tmp_path, {"a": random(2), "b": random(3)})


def test_a_missing_shard_is_named_with_what_it_holds(tmp_path):
    write_shards_of(tmp_path, "safetensors")
    (tmp_path / "one.safetensors").unlink()
    with pytest.raises(DataError, match=r"one\.safetensors is missing: model\.safetensors\.index\.json says .* a, b;"):
        open_weights(tmp_path)


def test_a_shard_that_lacks_a_promised_tensor_is_named(tmp_path):
    write_shards_of(tmp_path, "safetensors")
    save_file({"a": random(2)}, tmp_path / "one.safetensors")
    with pytest.raises(DataError, match=r"one\.safetensors lacks b, which model\.safetensors\.index\.json"):
        open_weights(tmp_path)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/outside.safetensors", "a/../../b.safetensors", ""])
def test_an_index_does_not_leave_its_folder(tmp_path, shard):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(DataError, match="outside its folder"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "\udc80", "[" * 99999]
)
def test_a_damaged_index_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"index\.json"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["pytorch_model.bin", "optimizer.pt"], "pytorch_model.bin"),
        (["open_clip_model.safetensors", "open_clip_pytorch_model.bin"], "open_clip_model.safetensors"),
        (["open_clip_pytorch_model.bin"], "open_clip_pytorch_model.bin"),
        (["checkpoint.pt"], "checkpoint.pt"),
        (["a.safetensors", "b.bin", "c.pt"], "a.safetensors"),
    ],
)
def test_a_folder_s_file_is_found(tmp_path, names, chosen):
    for name in names:
        (save_file if name.endswith("safetensors") else torch.save)({name: random(2)}, tmp_path / name)
    (tmp_path / "tokenizer.index.json").write_text("{}")  # an index of something else
    assert_read_like(tmp_path, {chosen: random(2)})


def test_several_candidates_are_listed(tmp_path):
    for name in ("b.pt", "a.bin"):
        torch.save({"weight": random(2)}, tmp_path / name)
    with pytest.raises(DataError, match=r"several weight files and no index of them: give one of a\.bin, b\.pt"):
        open_weights(tmp_path)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(DataError, match=r"has no weights: looked for model\.safetensors\.index\.json.*\.ckpt"):
        open_weights(tmp_path)


MEASURE = """
import resource, sys
from pathlib import Path
import torch
from flamingo_rt.weights.weight_files import open_weights

def read(path):
    total = 0
    for name, tensor in open_weights(path).items():
        total += int(tensor.read().view(torch.uint8)[::4096].sum())

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

read(Path(sys.argv[1]))
before = peak()
read(Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_reading_one_by_one_takes_the_memory_of_one(tmp_path, name):
    save = save_file if name.endswith("safetensors") else torch.save
    size = 64 * 2**20
    (tmp_path / "small").mkdir()
    save({"weight": torch.ones(1024)}, tmp_path / "small" / name)
    save({f"layer{index}": torch.ones(size // 16 // 4) for index in range(16)}, tmp_path / name)
    paths = [str(tmp_path / "small" / name), str(tmp_path / name)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True)
    assert int(done.stdout) < size // 3
