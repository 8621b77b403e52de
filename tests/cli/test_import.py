"""`flamingo-rt import openflamingo`: the checkpoint answers, and files that cannot be used end in one line."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peer_model import PeerModel
from safetensors.torch import load_file, save_file

from flamingo_rt.checkpoints import open_checkpoint
from flamingo_rt.importing import openflamingo
from flamingo_rt.importing.openflamingo import OpenFlamingoFiles, open_openflamingo


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], OpenFlamingoFiles]:
    """A peer's files, written once; nobody changes them."""
    written: dict[str, OpenFlamingoFiles] = {}

    def write(name: str) -> OpenFlamingoFiles:
        if name not in written:
            written[name] = PeerModel(name).write(tmp_path_factory.mktemp(name))
        return written[name]

    return write


@pytest.fixture(scope="module")
def files(peers: Callable[[str], OpenFlamingoFiles]) -> OpenFlamingoFiles:
    """MPT with one gated layer; checkpoint.pt, and folders for the others."""
    return peers("mosaic_gpt-interval4")


@pytest.fixture
def own(files: OpenFlamingoFiles, tmp_path: Path) -> OpenFlamingoFiles:
    """A copy of the files that a test may change."""
    shutil.copy(files.checkpoint, tmp_path / "checkpoint.pt")
    for folder in (files.vision, files.language):
        shutil.copytree(folder, tmp_path / folder.name)
    return OpenFlamingoFiles(tmp_path / "checkpoint.pt", tmp_path / files.vision.name, tmp_path / files.language.name)


def arguments(files: OpenFlamingoFiles) -> list[object]:
    return ["--checkpoint", files.checkpoint, "--vision", files.vision, "--language", files.language]


@pytest.fixture
def importing(run, tmp_path: Path):
    """Import these files to ``out``, with more options."""
    return lambda files, *options: run(
        "import", "openflamingo", *arguments(files), "--out", tmp_path / "out", *options
    )


@pytest.fixture
def refused(importing, tmp_path: Path):
    """Run an import that must fail and leave nothing behind; returns its one line of error."""

    def call(files: OpenFlamingoFiles, *options: object, code: int = 1) -> str:
        before = {file: file.lstat().st_mtime_ns for file in tmp_path.rglob("*")}
        outcome = importing(files, *options)
        assert (outcome.code, outcome.out) == (code, "")
        assert outcome.err.startswith("flamingo-rt: ")
        assert outcome.err.count("\n") == 1, outcome.err
        assert {file: file.lstat().st_mtime_ns for file in tmp_path.rglob("*")} == before
        return outcome.err

    return call


# Output


def test_the_checkpoint_answers(run, importing, files, pictures, tmp_path: Path) -> None:
    outcome = importing(files)
    assert outcome.code == 0, outcome.err
    assert re.fullmatch(
        rf"wrote {tmp_path / 'out'}: openflamingo-mosaic_gpt, [\d.]+M parameters, [\d.]+ MB \(fp32\); "
        r"vision encoder with quick_gelu\n", outcome.out,
    )
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "config.json", "tokenizer.json", "model.safetensors"
    }
    answers = []
    for picture in ((), ("--image", pictures[0])):
        asked = ["--model", tmp_path / "out", "--prompt", "w3 w5", *picture, "--max-new-tokens", 6]
        answer = run("infer", *asked, "--json")
        assert answer.code == 0, answer.err
        answers.append(json.loads(answer.out))
    assert [answer["backend"] for answer in answers] == ["torch", "torch"]
    assert all(re.fullmatch(r"w\d+( w\d+)*", answer["text"]) for answer in answers)
    assert answers[0]["tokens"] != answers[1]["tokens"]  # the picture was seen


def test_the_weights_are_those_of_the_files(importing, files, tmp_path: Path) -> None:
    assert importing(files).code == 0
    expected, written = open_openflamingo(files).model, open_checkpoint(tmp_path / "out")
    assert (written.config, written.tokenizer) == (expected.config, expected.tokenizer)
    assert list(written.tensors) == list(expected.tensors)
    assert all(torch.equal(written.tensors[name].read(), expected.tensors[name].read()) for name in written.tensors)


def test_the_json_says_what_was_written(importing, files, tmp_path: Path) -> None:
    outcome = importing(files, "--json", "--dtype", "fp16")
    assert outcome.code == 0
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads(outcome.out) == {
        "checkpoint": str(tmp_path / "out"), "name": "openflamingo-mosaic_gpt", "dtype": "fp16",
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
    }


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_halves_the_matrices(run, importing, files, tmp_path: Path, dtype: str, kind) -> None:
    assert importing(files).code == 0
    whole = load_file(tmp_path / "out" / "model.safetensors")
    assert importing(files, "--dtype", dtype, "--overwrite").code == 0
    half = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in whole.items():
        assert half[name].dtype == (kind if tensor.ndim > 1 else torch.float32)
        assert torch.equal(half[name], tensor.to(half[name].dtype))
    ratio = sum(tensor.nbytes for tensor in half.values()) / sum(tensor.nbytes for tensor in whole.values())
    assert 0.5 <= ratio < 0.51
    assert run("infer", "--model", tmp_path / "out", "--prompt", "w3 w5", "--max-new-tokens", 2).code == 0


def test_tokens_that_cannot_be_predicted_are_noted(importing, peers) -> None:
    outcome = importing(peers("llama-interval4"), "--json")  # its head is not in the checkpoint
    assert outcome.code == 0
    assert outcome.err.startswith("note: lm_head.weight has 60 rows for 64 tokens")
    assert json.loads(outcome.out)["name"] == "openflamingo-llama"


def test_the_encoders_form_is_the_users_choice(importing, own, tmp_path: Path) -> None:
    (own.vision / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": {"head_width": 16}}}))
    assert "vision encoder with gelu\n" in importing(own).out
    outcome = importing(own, "--vision-activation", "quick_gelu", "--vision-post-norm", "--overwrite")
    assert "vision encoder with quick_gelu\n" in outcome.out
    config = open_checkpoint(tmp_path / "out").config.vision
    assert (config.activation, config.post_norm) == ("quick_gelu", True)


# Place of the output


def refuse_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> None:
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr(openflamingo, "open_weights", read)


def test_an_output_that_exists_is_refused_before_anything_is_read(refused, files, tmp_path, monkeypatch) -> None:
    refuse_reading(monkeypatch)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("kept")
    assert "--overwrite" in refused(files, code=2)
    assert "is not replaced" in refused(files, "--overwrite", code=2)


OLD = json.dumps({"name": "old", "resampler": {}, "cross_attention": {}})


def test_overwrite_replaces_no_language_model(refused, files, tmp_path: Path, monkeypatch) -> None:
    refuse_reading(monkeypatch)
    (tmp_path / "out").mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(files.language / name, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_bytes(b"weights")
    assert "is not replaced" in refused(files, "--overwrite", code=2)


def test_overwrite_replaces_a_checkpoint(importing, refused, files, tmp_path: Path) -> None:
    stale = tmp_path / "out" / "model-00001-of-00002.safetensors"
    stale.parent.mkdir()
    (tmp_path / "out" / "config.json").write_text(OLD)
    stale.write_bytes(b"")
    assert str(tmp_path / "out") in refused(files, code=2)
    assert importing(files, "--overwrite").code == 0
    assert not stale.exists()
    open_checkpoint(tmp_path / "out")


def test_a_failed_overwrite_keeps_what_was_there(refused, own, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text(OLD)
    own.checkpoint.write_bytes(own.checkpoint.read_bytes()[:5000])
    refused(own, "--overwrite")
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == [OLD]


@pytest.mark.parametrize("which", ["language", "vision", "checkpoint"])
def test_a_source_is_never_replaced(run, own, tmp_path: Path, monkeypatch, which: str) -> None:
    refuse_reading(monkeypatch)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(own.language, tmp_path / "models")  # a folder that looks like a checkpoint
    shutil.copy(own.checkpoint, tmp_path / "models" / "checkpoint.pt")
    sources = {"checkpoint": own.checkpoint, "vision": own.vision, "language": own.language}
    sources[which] = tmp_path / "models" / ("checkpoint.pt" if which == "checkpoint" else "")
    given = [part for name, path in sources.items() for part in (f"--{name}", path)]
    outcome = run("import", "openflamingo", *given, "--out", "models", "--overwrite")
    assert outcome.code == 2
    assert re.search("which the model is read from: choose another --out", outcome.err)
    assert (tmp_path / "models" / "checkpoint.pt").is_file()


# Files that cannot be used


def test_a_checkpoint_of_another_architecture_is_named(refused, own) -> None:
    torch.save({"model.embed_tokens.weight": torch.zeros(4, 4)}, own.checkpoint)
    assert f"{own.checkpoint} is not an OpenFlamingo checkpoint" in refused(own)


def test_a_checkpoint_for_another_family_is_named(refused, own, peers) -> None:
    other = peers("llama-interval4")
    message = refused(OpenFlamingoFiles(other.checkpoint, own.vision, own.language))
    assert str(own.language) in message or str(other.checkpoint) in message


def test_a_missing_shard_is_named(refused, own, peers) -> None:
    shards = peers("llama-interval1").language
    assert (shards / "pytorch_model.bin.index.json").is_file()
    for file in own.language.iterdir():
        file.unlink()
    for file in shards.iterdir():
        shutil.copy(file, own.language)
    (own.language / "pytorch_model-00002-of-00002.bin").unlink()
    files = OpenFlamingoFiles(peers("llama-interval1").checkpoint, own.vision, own.language)
    assert f"{own.language / 'pytorch_model-00002-of-00002.bin'} is missing" in refused(files)


@pytest.mark.parametrize("kept", [0, 100, 5000, -200])
def test_a_checkpoint_that_was_cut_short_is_named(refused, own, kept: int) -> None:
    own.checkpoint.write_bytes(own.checkpoint.read_bytes()[:kept])
    assert str(own.checkpoint) in refused(own)


class Order:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["zip", "old", "bare"])
@pytest.mark.parametrize("part", ["checkpoint", "vision", "language"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(refused, own, tmp_path, part: str, form: str) -> None:
    file = own.checkpoint if part == "checkpoint" else next(getattr(own, part).glob("*.bin"))
    content = {"weight": torch.zeros(2), "order": Order(tmp_path / "ran")}
    if form == "bare":
        file.write_bytes(pickle.dumps(content["order"]))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    message = refused(own)
    assert str(file) in message
    assert "run code" in message
    assert "so it was not loaded" in message
    assert not (tmp_path / "ran").exists()
    torch.load(file, weights_only=False) if form != "bare" else pickle.loads(file.read_bytes())
    assert (tmp_path / "ran").is_dir()  # it would have


def test_a_git_lfs_pointer_is_named_with_its_remedy(refused, own) -> None:
    own.checkpoint.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    message = refused(own)
    assert str(own.checkpoint) in message
    assert "git lfs pull" in message


def test_an_encoder_of_another_width_is_named(refused, own) -> None:
    file = own.vision / "open_clip_pytorch_model.bin"
    wider = {
        name: torch.zeros([{64: 128, 192: 384}.get(size, size) for size in tensor.shape])
        for name, tensor in torch.load(file, weights_only=True).items()
    }
    torch.save(wider, file)
    message = refused(own)
    assert f"{own.vision}: the encoder's width is 128" in message
    assert "64" in message


def test_a_language_model_given_as_the_encoder_is_named(refused, own) -> None:
    message = refused(OpenFlamingoFiles(own.checkpoint, own.language, own.language))
    assert f"{own.language} holds no CLIP vision transformer" in message


def test_a_language_model_without_configuration_is_named(refused, own) -> None:
    (own.language / "config.json").unlink()
    assert f"{own.language} has no config.json: --language takes" in refused(own)


def test_a_language_model_given_as_a_file_is_refused(refused, own) -> None:
    weights = own.language / "pytorch_model.bin"
    message = refused(OpenFlamingoFiles(own.checkpoint, own.vision, weights))
    assert f"{weights} is not a folder: --language" in message


@pytest.mark.parametrize("part", ["checkpoint", "vision", "language"])
def test_a_source_that_is_not_there_is_named(refused, own, part: str) -> None:
    absent = own.checkpoint.with_name("absent")
    paths = {"checkpoint": own.checkpoint, "vision": own.vision, "language": own.language, part: absent}
    assert str(absent) in refused(OpenFlamingoFiles(**paths))


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "bert"}', '{"model_type": ["mpt"]}'])
def test_a_configuration_that_says_nothing_known_is_named(refused, own, content: str) -> None:
    (own.language / "config.json").write_text(content)
    assert str(own.language / "config.json") in refused(own)


def test_integers_are_refused(refused, own) -> None:
    tensors = torch.load(own.language / "pytorch_model.bin", weights_only=True)
    tensors["transformer.blocks.0.attn.Wqkv.weight"] = torch.zeros(144, 48, dtype=torch.int8)
    (own.language / "pytorch_model.bin").unlink()
    save_file(tensors, own.language / "model.safetensors")
    message = refused(own)
    assert "transformer.blocks.0.attn.Wqkv.weight is int8" in message
    assert "quantized" in message


def test_a_preset_is_checked(refused, own) -> None:
    message = refused(own, "--preset", "openflamingo-3b")
    assert f"{own.vision}: vision." in message
    assert "openflamingo-3b has" in message
    assert "known: " in refused(own, "--preset", "openflamingo-5b", code=2)


@pytest.mark.parametrize("left", ["--checkpoint", "--vision", "--language", "--out"])
def test_an_option_that_is_missing_is_named(run, files, tmp_path: Path, left: str) -> None:
    given = [*arguments(files), "--out", tmp_path / "out"]
    place = given.index(left)
    outcome = run("import", "openflamingo", *given[:place], *given[place + 2 :])
    assert outcome.code == 2
    assert f"Missing option '{left}'" in outcome.err
    assert list(tmp_path.iterdir()) == []


# Export from the three files


def smallest(folder: Path) -> OpenFlamingoFiles:
    """A peer's model with one layer of each kind."""
    peer = PeerModel("mosaic_gpt-interval1")
    for shapes in peer.about["files"].values():
        for name in [name for name in shapes if re.search(r"(layers|blocks)\.[1-9]", name)]:
            del shapes[name]
    peer.about["language_config"]["n_layers"] = 1
    return peer.write(folder)


def test_an_export_from_the_three_files_is_that_of_the_imported_checkpoint(run, importing, tmp_path: Path) -> None:
    files = smallest(tmp_path)
    assert importing(files).code == 0
    sources = ["--vision", files.vision, "--language", files.language]
    direct = run("export", "--ckpt", files.checkpoint, *sources, "--out", tmp_path / "direct")
    assert direct.code == 0, direct.err
    assert run("export", "--ckpt", tmp_path / "out", "--out", tmp_path / "through").code == 0
    hashes = [
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (tmp_path / name).iterdir()}
        for name in ("direct", "through")
    ]
    assert len(hashes[0]) == 9  # three graphs, their weights, tokenizer, reference outputs and manifest
    assert hashes[0] == hashes[1]


def test_an_export_needs_both_other_sources(run, files, tmp_path: Path) -> None:
    for given in (["--vision", files.vision], ["--language", files.language]):
        outcome = run("export", "--ckpt", files.checkpoint, *given, "--out", tmp_path / "out")
        assert outcome.code == 2
        assert "give --ckpt, --vision and --language" in outcome.err
    outcome = run("export", "--ckpt", files.checkpoint, "--vision-post-norm", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "--vision-post-norm goes with --vision and --language" in outcome.err
    assert list(tmp_path.iterdir()) == []
