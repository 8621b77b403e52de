"""Bundles: what was written is read back, and whatever was damaged since is refused by name."""

import json
import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from read_or_refused import may_be_refused

from flamingo_rt.bundle import (
    FORMAT_VERSION,
    MOST_BYTES,
    Bundle,
    GraphEntry,
    ReferenceEntry,
    Validation,
    WeightBytes,
    read_bundle,
    read_description,
    write_manifest,
)
from flamingo_rt.contract import GRAPHS
from flamingo_rt.errors import DataError
from flamingo_rt.presets import preset
from flamingo_rt.step_costs import StepCosts

CONFIG = preset("tiny")
WEIGHTS_READ = WeightBytes(400, 300, 8, 2)
ENTRIES = {name: GraphEntry(f"{name}.onnx", "ort", "float32", None, "float32", WEIGHTS_READ) for name in GRAPHS}
PARITY = dict.fromkeys(GRAPHS, 1e-6)
WEIGHTS = "language_model.onnx.data"


def make_bundle(folder):
    """A bundle of the right files with arbitrary content, which reading does not look into."""
    return describe(folder)


def describe(folder, **changes):
    """Write the files and the manifest of a bundle, with some other fields."""
    graphs = [entry.file for entry in ENTRIES.values()]
    for name in [*graphs, *(f"{graph}.data" for graph in graphs), "tokenizer.json"]:
        (folder / name).write_bytes(f"content of {name}".encode())
    if "reference" in changes:
        (folder / changes["reference"].file).write_bytes(b"samples")
    write_manifest(folder, replace(Bundle(folder, CONFIG, ENTRIES, PARITY), **changes))
    return folder


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path)


@pytest.fixture(scope="module")
def shared_bundle(tmp_path_factory):
    """A bundle whose manifest is written anew for every example, and the manifest it had."""
    folder = describe(tmp_path_factory.mktemp("bundle"), **EVERYTHING)
    return folder, (folder / "manifest.json").read_text()


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def write(folder, manifest):
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_is_read_as_it_was_written(bundle):
    read = read_bundle(bundle)
    assert (read.path, read.config, read.graphs, read.parity) == (bundle, CONFIG, ENTRIES, PARITY)
    assert read.graph_path("resampler") == bundle / "resampler.onnx"
    assert read.tokenizer_path == bundle / "tokenizer.json"


def test_every_file_but_the_manifest_is_hashed(bundle):
    files = {path.name for path in bundle.iterdir()} - {"manifest.json"}
    assert set(manifest_of(bundle)["files"]) == files
    assert WEIGHTS in files


def test_a_missing_folder_shows_the_command_that_makes_one(tmp_path):
    with pytest.raises(DataError, match=r"there is no bundle at .*nowhere: flamingo-rt export"):
        read_bundle(tmp_path / "nowhere")


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(DataError, match=r"is not a bundle: it has no manifest.json"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("name", ["vision_encoder.onnx", WEIGHTS, "tokenizer.json"])
def test_a_missing_file_is_named(name, bundle):
    (bundle / name).unlink()
    with pytest.raises(DataError, match=f"lacks {name}"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["vision_encoder.onnx", WEIGHTS, "tokenizer.json"])
def test_a_changed_byte_is_found(name, bundle):
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} was changed since the export .SHA-256 differs."):
        read_bundle(bundle)


def test_a_file_cut_short_is_found(bundle):
    whole = (bundle / WEIGHTS).read_bytes()
    (bundle / WEIGHTS).write_bytes(whole[:-3])
    with pytest.raises(DataError, match=f"{WEIGHTS} has {len(whole) - 3} bytes, the manifest says {len(whole)}"):
        read_bundle(bundle)


def test_an_older_format_asks_for_a_new_export(bundle):
    write(bundle, {**manifest_of(bundle), "format_version": FORMAT_VERSION - 1})
    with pytest.raises(DataError, match=f"has format {FORMAT_VERSION - 1}, of an older .*: export the model again"):
        read_bundle(bundle)


@pytest.mark.parametrize(("entry", "options"), [
    ({}, ""),
    ({"lowering": "tensorrt", "compute": "float16", "dtype": "float16"}, "--lowering tensorrt --compute fp16 "),
    ({"dtype": "bfloat16"}, "--dtype bf16 "), ({"quantization": "int4"}, "--quantize int4 --calibration FILE "),
    ({"lowering": "--out", "compute": ["x"], "quantization": 3}, ""), (None, ""),
])
def test_an_older_bundle_is_refused_with_the_command_that_exports_it_again(entry, options, bundle):
    manifest = manifest_of(bundle)
    graphs = entry if entry is None else {"language_model": {**manifest["graphs"]["language_model"], **entry}}
    write(bundle, {**manifest, "graphs": graphs, "format_version": FORMAT_VERSION - 1})
    with pytest.raises(DataError) as raised:
        read_bundle(bundle)
    assert str(raised.value).endswith(
        f": flamingo-rt export --ckpt CHECKPOINT {options}--overwrite --out {bundle}"
    )


def test_a_newer_format_asks_for_an_upgrade(bundle):
    write(bundle, {**manifest_of(bundle), "format_version": FORMAT_VERSION + 1})
    with pytest.raises(DataError, match=f"has format {FORMAT_VERSION + 1}, .* reads {FORMAT_VERSION}: upgrade"):
        read_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": "1"}', "{}", "[" * 100_000], ids=range(7))
def test_a_manifest_that_is_no_manifest_is_refused(text, bundle):
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest.json is (not valid JSON|damaged)"):
        read_bundle(bundle)


def test_a_manifest_that_is_no_text_is_refused(bundle):
    (bundle / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"manifest.json is not valid JSON"):
        read_bundle(bundle)


@pytest.mark.parametrize("key", ["format_version", "config", "graphs", "parity", "files"])
def test_a_missing_key_is_refused(key, bundle):
    manifest = manifest_of(bundle)
    del manifest[key]
    write(bundle, manifest)
    with pytest.raises(DataError, match=key):
        read_bundle(bundle)


@pytest.mark.parametrize("where", [("config",), ("config", "language")])
def test_an_unknown_key_of_the_configuration_is_named(where, bundle):
    manifest = manifest_of(bundle)
    entry = manifest
    for key in where:
        entry = entry[key]
    entry["surprise"] = 1
    write(bundle, manifest)
    with pytest.raises(DataError, match="surprise"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", [GRAPHS[0], "tokenizer.json"])
def test_a_file_that_is_needed_but_not_hashed_is_refused(name, bundle):
    manifest = manifest_of(bundle)
    file = f"{name}.onnx" if name in GRAPHS else name
    del manifest["files"][file]
    write(bundle, manifest)
    with pytest.raises(DataError, match=f"damaged .*{file}"):
        read_bundle(bundle)


@pytest.mark.parametrize("form", ["relative", "absolute"])
def test_a_file_outside_the_bundle_is_refused(form, bundle, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret"
    outside.write_bytes((bundle / WEIGHTS).read_bytes())
    name = {"relative": os.path.relpath(outside, bundle), "absolute": str(outside)}[form]
    manifest = manifest_of(bundle)
    manifest["files"][name] = manifest["files"][WEIGHTS]
    write(bundle, manifest)
    with pytest.raises(DataError, match="names a file outside the bundle"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", [
    "", ".", "..", "../x", "a/../b", "sub/file", "/etc/hostname", "a\0b", "C:x", "C:\\x",
    "\\\\host\\share\\x", "x:stream", "..\\x",
], ids=ascii)
def test_a_name_that_could_lead_outside_on_any_system_is_refused(name, bundle):
    manifest = manifest_of(bundle)
    manifest["files"][name] = {"sha256": "0", "bytes": 1}
    write(bundle, manifest)
    with pytest.raises(DataError, match="names a file outside the bundle"):
        read_bundle(bundle)


@pytest.mark.parametrize("where", ["beside", "elsewhere"])
def test_a_link_is_followed_when_the_hash_agrees_and_refused_when_not(where, bundle, tmp_path_factory):
    real = (bundle if where == "beside" else tmp_path_factory.mktemp("blobs")) / "0a1b"
    (bundle / WEIGHTS).rename(real)
    (bundle / WEIGHTS).symlink_to(real)
    assert read_bundle(bundle).path == bundle
    real.write_bytes(real.read_bytes()[::-1])
    with pytest.raises(DataError, match=f"{WEIGHTS} was changed"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["\ud800", "x" * 300], ids=ascii)
def test_a_name_no_file_can_have_is_refused(name, bundle):
    manifest = manifest_of(bundle)
    manifest["files"][name] = {"sha256": "0", "bytes": 1}
    write(bundle, manifest)
    with pytest.raises(DataError, match=r"copy (it again|or export it)"):
        read_bundle(bundle)


def test_a_loop_of_links_is_refused(bundle):
    (bundle / WEIGHTS).unlink()
    (bundle / WEIGHTS).symlink_to(bundle / WEIGHTS)
    with pytest.raises(DataError, match=WEIGHTS):
        read_bundle(bundle)


@pytest.mark.parametrize(("where", "value"), [
    (("parity", "resampler"), 10**400), (("files", WEIGHTS, "bytes"), float("inf")), (("files", WEIGHTS), None),
    (("graphs", "resampler", "file"), ["resampler.onnx"]), (("config", "language", "kv_heads"), 0),
    (("config", "vision", "bottleneck"), float("inf")), (("config", "language", "rotary_fraction"), float("nan")),
    (("config", "vision", "bottleneck"), 10**400), (("config", "vision", "strides"), [2, 0, 1]),
    (("config", "vision", "kind"), ["nfnet"]), (("config", "language", "width"), True),
])
def test_an_impossible_value_is_refused(where, value, bundle):
    manifest = manifest_of(bundle)
    entry = manifest
    for key in where[:-1]:
        entry = entry[key]
    entry[where[-1]] = value
    write(bundle, manifest)
    with pytest.raises(DataError):
        read_bundle(bundle)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_type_of_the_weights_is_read(dtype, bundle):
    manifest = manifest_of(bundle)
    manifest["graphs"]["resampler"]["dtype"] = dtype
    write(bundle, manifest)
    assert read_bundle(bundle).graphs["resampler"].dtype == dtype


@pytest.mark.parametrize(("key", "value"), [("dtype", "int3"), ("dtype", ["float32"]), ("lowering", "nonsense"),
                                            ("quantization", "int3"), ("quantization", ["int4"])])
def test_a_form_of_graph_that_is_not_known_is_named(key, value, bundle):
    manifest = manifest_of(bundle)
    manifest["graphs"]["resampler"][key] = value
    write(bundle, manifest)
    with pytest.raises(DataError, match=r"unknown form .*" + str(value).strip("[]'") + ".*export the model again"):
        read_bundle(bundle)


def test_a_bundle_without_quantization_says_so(bundle):
    assert "quantization" not in manifest_of(bundle)
    assert read_bundle(bundle).quantization is None


@pytest.mark.parametrize("scheme", ["int8", "mixed", "int4"])
def test_how_a_bundle_is_quantized_is_read_as_it_was_written(scheme, bundle):
    record = {"scheme": scheme, "quality": {"tokens": 3, "changed": 1}}
    entries = {name: replace(entry, quantization=scheme) for name, entry in ENTRIES.items()}
    describe(bundle, graphs=entries, parity={}, quantization=record)
    read = read_bundle(bundle)
    assert (read.graphs, read.parity, read.quantization) == (entries, {}, record)


@pytest.mark.parametrize("value", ["int4", 4, ["int4"], True])
def test_an_invalid_record_of_quantization_is_refused(value, bundle):
    write(bundle, {**manifest_of(bundle), "quantization": value})
    with pytest.raises(DataError, match=r"manifest.json is damaged .*quantization.*export the model again"):
        read_bundle(bundle)


VALIDATION = Validation(0.9, 300, "about drawn scenes")


def test_the_validation_of_a_bundle_is_read_as_it_was_written(bundle):
    assert "validation" not in manifest_of(bundle)
    assert read_bundle(bundle).validation is None
    describe(bundle, validation=VALIDATION)
    assert read_bundle(bundle).validation == VALIDATION


def test_entries_of_newer_versions_are_no_obstacle(bundle):
    record = {"probability": 0.9, "captions": 300, "origin": "about drawn scenes"}
    manifest = manifest_of(bundle)
    manifest["graphs"]["resampler"]["unknown"] = 1
    write(bundle, {**manifest, "validation": {**record, "more": [1]}, "unknown": {"key": 1}})
    assert read_bundle(bundle).validation == VALIDATION


@pytest.mark.parametrize("change", [
    {"probability": 1.1}, {"probability": -0.1}, {"probability": "0.9"}, {"probability": True},
    {"probability": None}, {"captions": 0}, {"captions": 2.5}, {"captions": True},
    {"origin": 3}, {"origin": None},
])
def test_an_invalid_record_of_validation_is_refused(change, bundle):
    record = {"probability": 0.9, "captions": 300, "origin": "about drawn scenes", **change}
    write(bundle, {**manifest_of(bundle), "validation": record})
    with pytest.raises(DataError, match=r"manifest.json is damaged .*validation.*export the model again"):
        read_bundle(bundle)


@pytest.mark.parametrize("record", ["0.9", 0.9, [], {}, {"probability": 0.9}])
def test_a_record_of_validation_in_another_form_is_refused(record, bundle):
    write(bundle, {**manifest_of(bundle), "validation": record})
    with pytest.raises(DataError, match=r"manifest.json is damaged"):
        read_bundle(bundle)


REFERENCE = ReferenceEntry("reference.npz", dict.fromkeys(GRAPHS, 1e-4), "onnxruntime 1.32.0, x86_64")
EVERYTHING = {
    "rounding": PARITY, "validation": VALIDATION, "reference": REFERENCE, "step_costs": StepCosts.of("int4"),
    "license": "apache-2.0", "source": "https://example.org/weights",
}


def test_every_optional_entry_is_read_as_it_was_written(bundle):
    describe(bundle, **EVERYTHING)
    read = read_bundle(bundle)
    assert {name: getattr(read, name) for name in EVERYTHING} == EVERYTHING


def test_every_optional_entry_may_be_missing(bundle):
    assert set(manifest_of(bundle)) == {"format_version", "config", "graphs", "parity", "files"}
    read = read_bundle(bundle)
    assert {getattr(read, name) for name in EVERYTHING} == {None}


@pytest.mark.parametrize(("key", "value"), [
    ("reference", "reference.npz"), ("reference", {"file": "reference.npz"}),
    ("reference", {"file": ["x"], "tolerance": dict.fromkeys(GRAPHS, 1.0), "origin": ""}),
    ("reference", {"file": "reference.npz", "tolerance": {"resampler": 1.0}, "origin": ""}),
    *(("reference", {"file": "reference.npz", "tolerance": dict.fromkeys(GRAPHS, value), "origin": ""})
      for value in (0, -1.0, True, "1", None, 10**400)),
    ("license", 3), ("license", ["mit"]), ("source", "x" * 3000), ("source", {}), ("step_costs", [1.0]),
    ("step_costs", {"2": "x"}), ("rounding", [1.0]), ("rounding", {"resampler": None}),
])
def test_an_optional_entry_that_is_damaged_is_refused(key, value, bundle):
    describe(bundle, reference=REFERENCE)
    write(bundle, {**manifest_of(bundle), key: value})
    with pytest.raises(DataError, match=r"manifest.json is damaged .*export the model again"):
        read_bundle(bundle)


def test_reference_outputs_that_are_not_hashed_are_refused(bundle):
    describe(bundle, reference=REFERENCE)
    manifest = manifest_of(bundle)
    del manifest["files"]["reference.npz"]
    write(bundle, manifest)
    with pytest.raises(DataError, match=r"damaged .*reference\.npz"):
        read_bundle(bundle)


@pytest.mark.parametrize("value", [-1, 1.0, True, None, "4", MOST_BYTES + 1])
@pytest.mark.parametrize("name", ["stored", "each_run", "each_token", "each_distance"])
def test_invalid_bytes_of_weights_are_refused(name, value, bundle):
    manifest = manifest_of(bundle)
    manifest["graphs"]["resampler"]["weight_bytes"][name] = value
    write(bundle, manifest)
    with pytest.raises(DataError, match=r"damaged .*weight_bytes"):
        read_bundle(bundle)


@pytest.mark.parametrize("key", ["file", "lowering", "dtype", "quantization", "compute", "weight_bytes"])
def test_a_missing_key_of_a_graph_is_named(key, bundle):
    manifest = manifest_of(bundle)
    del manifest["graphs"]["resampler"][key]
    write(bundle, manifest)
    with pytest.raises(DataError, match=f"damaged .*{key}"):
        read_bundle(bundle)


def test_a_description_is_read_without_the_files(bundle):
    whole = read_bundle(bundle)
    for file in bundle.iterdir():
        if file.name != "manifest.json":
            file.unlink()
    assert read_description(bundle) == whole


def paths_in(value, path=()):
    """The path of every value in a JSON document but the whole."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from paths_in(entry, (*path, key))


scalars = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=8)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=4), scalars, max_size=2)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_manifest_with_any_other_value_is_read_or_refused(data, shared_bundle):
    folder, manifest = shared_bundle[0], json.loads(shared_bundle[1])
    path = data.draw(st.sampled_from(sorted(paths_in(manifest), key=str)))
    entry = manifest
    for key in path[:-1]:
        entry = entry[key]
    if data.draw(st.booleans()):
        entry[path[-1]] = data.draw(values)
    else:
        del entry[path[-1]]
    write(folder, manifest)
    with may_be_refused():
        read = read_bundle(folder)
        assert set(read.graphs) == set(GRAPHS)
        assert read.config.vision.feature_count > 0
