"""CLIP's three namings are one encoder; sizes come from tensors, the rest from the configuration beside them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clip_twin import FF_WIDTH, GRID, LAYERS, NAMINGS, PATCH, WIDTH, named, open_clip_tensors
from peer_model import PeerModel
from torch import Tensor

from flamingo_rt.errors import DataError
from flamingo_rt.importing.clip import vision_config, vision_preprocessing, vision_tensors
from flamingo_rt.importing.clip_preprocessing import IDLE, READ
from flamingo_rt.importing.sources import Source
from flamingo_rt.model.vit import ViT
from flamingo_rt.presets import CLIP_PREPROCESSING
from flamingo_rt.weights.lazy import LazyTensor


def source(tensors: dict[str, Tensor], path: Path = Path("clip.pt")) -> Source:
    """The tensors as if they were in a file or a folder; nothing is written."""
    lazy = {
        name: LazyTensor(tuple(tensor.shape), tensor.dtype, path, lambda tensor=tensor: tensor.clone(), name)
        for name, tensor in tensors.items()
    }
    return Source("the vision encoder", path, lazy)


def encoder(found: Source, **options) -> ViT:
    """The encoder that the tensors make; each of its tensors is found, and no other."""
    config = vision_config(found, **options)
    model = ViT(config).eval()
    slices = vision_tensors(found, config)
    shapes = {f"vision.{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert set(slices) == set(shapes)
    model.load_state_dict({
        name.removeprefix("vision."): found.tensor_of(part, shapes[name]).read() for name, part in slices.items()
    })
    return model


def features(model: ViT) -> Tensor:
    pixels = torch.randn(2, 3, PATCH * GRID, PATCH * GRID, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model(pixels)


def write(folder: Path, name: str, content: object) -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder


# Namings


@pytest.mark.parametrize("post_norm", [False, True])
def test_the_namings_of_the_same_values_give_the_same_features(post_norm: bool) -> None:
    tensors = open_clip_tensors()
    expected = features(encoder(source(named("visual.", tensors)), post_norm=post_norm))
    assert expected.std() > 0.1
    for naming in NAMINGS[1:]:
        found = features(encoder(source(named(naming, tensors)), post_norm=post_norm))
        assert (found - expected).abs().max() <= 1e-6, naming


def test_query_key_and_value_are_thirds_of_the_fused_matrix() -> None:
    tensors = open_clip_tensors()
    model = encoder(source(named("visual.", tensors)))
    fused = tensors["transformer.resblocks.1.attn.in_proj_weight"]
    block = model.blocks[1]
    assert torch.equal(torch.cat([block.query.weight, block.key.weight, block.value.weight]), fused)


def test_the_final_norm_is_taken_when_it_is_asked_for() -> None:
    tensors = open_clip_tensors()
    found = source(named("visual.", tensors))
    plain, normed = encoder(found), encoder(found, post_norm=True)
    assert plain.output_norm is None
    assert torch.equal(normed.output_norm.weight, tensors["ln_post.weight"])
    expected = torch.nn.functional.layer_norm(
        features(plain), (WIDTH,), tensors["ln_post.weight"], tensors["ln_post.bias"]
    )
    assert (features(normed) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("naming", ["visual.", "vision_model."])
def test_the_text_tower_is_ignored(naming: str) -> None:
    text = {
        "positional_embedding": torch.zeros(77, 32), "token_embedding.weight": torch.zeros(99, 32),
        "ln_final.weight": torch.zeros(32), "logit_scale": torch.tensor(1.0),
        "text_model.embeddings.position_embedding.weight": torch.zeros(77, 32),
    }
    for layer in range(LAYERS + 2):  # their sizes are not the encoder's
        text[f"transformer.resblocks.{layer}.ln_1.weight"] = torch.zeros(32)
        text[f"transformer.resblocks.{layer}.mlp.c_fc.weight"] = torch.zeros(64, 32)
        text[f"text_model.encoder.layers.{layer}.layer_norm1.weight"] = torch.zeros(32)
    tower = named(naming, open_clip_tensors())
    alone, whole = encoder(source(tower)), encoder(source({**text, **tower}))
    assert whole.config == alone.config
    assert torch.equal(features(whole), features(alone))


# Sizes


@pytest.mark.parametrize("naming", NAMINGS)
def test_sizes_are_the_tensors(naming: str) -> None:
    config = vision_config(source(named(naming, open_clip_tensors())))
    assert (config.image_size, config.patch_size, config.width) == (PATCH * GRID, PATCH, WIDTH)
    assert (config.layers, config.ff_width, config.norm_eps) == (LAYERS, FF_WIDTH, 1e-5)
    assert not config.keep_class_token


def test_a_head_is_64_wide_where_nothing_says_otherwise() -> None:
    assert vision_config(source(named("visual.", open_clip_tensors()))).heads == WIDTH // 64


@pytest.mark.parametrize(("width", "heads"), [(1280, 16), (1408, 16), (1664, 16), (1792, 16), (1024, 16), (768, 12)])
def test_the_largest_models_have_wider_heads(width: int, heads: int) -> None:
    shapes = {name: (width if size == WIDTH else size for size in tensor.shape)
              for name, tensor in open_clip_tensors().items()}
    tensors = {
        f"visual.{name}": LazyTensor(tuple(shape), torch.float32, Path("clip.pt"), pytest.fail)
        for name, shape in shapes.items()
    }
    assert vision_config(Source("the vision encoder", Path("clip.pt"), tensors)).heads == heads


@pytest.mark.parametrize("as_file", [True, False])
def test_open_clips_configuration_states_the_width_of_a_head(tmp_path: Path, as_file: bool) -> None:
    write(tmp_path, "open_clip_config.json", {"model_cfg": {"vision_cfg": {"head_width": 16}}})
    path = tmp_path / "open_clip_pytorch_model.bin" if as_file else tmp_path
    assert vision_config(source(named("visual.", open_clip_tensors()), path)).heads == WIDTH // 16


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_transformers_configuration_states_the_heads(tmp_path: Path, nested: bool, as_file: bool) -> None:
    sizes = {"num_attention_heads": 16, "layer_norm_eps": 1e-3, "hidden_act": "gelu"}
    text = {"num_attention_heads": 2, "hidden_act": "quick_gelu"}
    write(tmp_path, "config.json", {"vision_config": sizes, "text_config": text, **text} if nested else sizes)
    path = tmp_path / "model.safetensors" if as_file else tmp_path
    config = vision_config(source(named("vision_model.", open_clip_tensors()), path))
    assert (config.heads, config.norm_eps, config.activation) == (16, 1e-3, "gelu")


def test_a_configuration_may_leave_out_what_is_usual(tmp_path: Path) -> None:
    """The transformers library writes no value that is its default, such as 12 heads."""
    write(tmp_path, "config.json", {"vision_config": {"hidden_act": "gelu"}})
    config = vision_config(source(named("vision_model.", open_clip_tensors(width=96)), tmp_path))
    assert (config.heads, config.norm_eps, config.activation) == (12, 1e-5, "gelu")
    with pytest.raises(DataError, match="a width of 128 cannot be split into 12 heads"):
        vision_config(source(named("vision_model.", open_clip_tensors()), tmp_path))


def test_what_older_files_say_twice_counts_as_the_library_counts_it(tmp_path: Path) -> None:
    """`vision_config_dict` replaces all of `vision_config`; in it the library's defaults are left out."""
    sizes = {"num_attention_heads": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-3}
    write(tmp_path, "config.json", {"vision_config": sizes, "vision_config_dict": {"num_attention_heads": 2}})
    config = vision_config(source(named("vision_model.", open_clip_tensors()), tmp_path))
    assert (config.heads, config.activation, config.norm_eps) == (2, "quick_gelu", 1e-5)


@pytest.mark.parametrize(
    ("file", "sections", "key", "value"),
    [
        *(("config.json", ("vision_config",), *pair) for pair in (
            ("num_hidden_layers", LAYERS - 1), ("hidden_size", 64), ("intermediate_size", 64), ("num_channels", 1),
            ("image_size", 336), ("patch_size", 2),
        )),
        *(("open_clip_config.json", ("model_cfg", "vision_cfg"), *pair) for pair in (
            ("layers", LAYERS - 1), ("width", 64), ("image_size", 336), ("patch_size", 2), ("mlp_ratio", 4.0),
            ("layers", [3, 4, 6, 3]),
        )),
    ],
)
def test_stated_sizes_that_are_not_the_tensors_are_refused(
    tmp_path: Path, file: str, sections: tuple[str, ...], key: str, value: object
) -> None:
    """The library would leave the last layer out, or make other positions of those in the file."""
    content = {key: value}
    for section in reversed(sections):
        content = {section: content}
    write(tmp_path, file, content)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / file}: {'.'.join(sections)}.{key} is {value!r}; ")):
        vision_config(source(named("vision_model.", open_clip_tensors()), tmp_path))


def test_stated_sizes_that_are_the_tensors_change_nothing(tmp_path: Path) -> None:
    tensors = open_clip_tensors()
    sizes = {
        "hidden_size": WIDTH, "intermediate_size": FF_WIDTH, "num_hidden_layers": LAYERS, "num_channels": 3,
        "image_size": [PATCH * GRID, PATCH * GRID], "patch_size": PATCH, "num_attention_heads": 2,
        "projection_dim": 99, "attention_dropout": 0.5, "initializer_range": 0.5, "dtype": "bfloat16",
        "torch_dtype": "float16", "sliding_window": None,
    }
    write(tmp_path, "config.json", sizes)
    found = source(named("vision_model.", tensors), tmp_path)
    assert vision_config(found) == vision_config(source(named("vision_model.", tensors)))


def test_another_models_configuration_beside_a_file_of_open_clips_is_not_taken_for_the_encoders(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"model_type": "llama", "num_attention_heads": 32, "hidden_act": "silu"})
    config = vision_config(source(named("visual.", open_clip_tensors()), tmp_path / "ViT-L-14.pt"))
    assert (config.heads, config.activation) == (WIDTH // 64, "quick_gelu")


@pytest.mark.parametrize("name", ["ViT-L-14.pt", "model.safetensors", "clip_open_clip.pt"])
def test_open_clips_configuration_counts_for_its_own_files_alone(tmp_path: Path, name: str) -> None:
    content = {
        "model_cfg": {"quick_gelu": False, "vision_cfg": {"head_width": 16, "norm_kwargs": {"eps": 1e-3}}},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "interpolation": "bilinear"},
    }
    write(tmp_path, "open_clip_config.json", content)
    found = source(named("visual.", open_clip_tensors()), tmp_path / name)
    config = vision_config(found)
    assert (config.heads, config.activation, config.norm_eps) == (WIDTH // 64, "quick_gelu", 1e-5)
    assert vision_preprocessing(found) == CLIP_PREPROCESSING


def test_open_clips_configuration_states_the_norms_constant(tmp_path: Path) -> None:
    write(tmp_path, "open_clip_config.json", {"model_cfg": {"vision_cfg": {"norm_kwargs": {"eps": 1e-3}}}})
    assert vision_config(source(named("visual.", open_clip_tensors()), tmp_path)).norm_eps == 1e-3


KEYS = json.loads((Path(__file__).parent.parent / "fixtures" / "config_keys.json").read_text())
# Keys of CLIPVisionConfig that are honoured, or refused where the tensors differ, as the tests above show.
DECISIVE = {
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
    "patch_size", "hidden_act", "layer_norm_eps", "pruned_heads",
}


def test_no_other_key_that_the_transformers_library_knows_changes_the_encoder(tmp_path: Path) -> None:
    known = {key for version in KEYS.values() for key in version["clip"]}
    assert len(KEYS) >= 2
    assert known >= DECISIVE
    sizes = {"num_attention_heads": 2, "hidden_act": "gelu"}
    found = source(named("vision_model.", open_clip_tensors()), write(tmp_path, "config.json", sizes))
    expected = vision_config(found)
    for value in ("gelu", 7, True, {"a": 1}, None):
        write(tmp_path, "config.json", {**dict.fromkeys(known - DECISIVE, value), **sizes})
        assert vision_config(found) == expected
    write(tmp_path, "config.json", {**sizes, "pruned_heads": {"0": [1]}})
    with pytest.raises(DataError, match=r"config\.json: pruned_heads is"):
        vision_config(found)


def test_every_key_that_the_transformers_library_knows_of_a_processor_is_known() -> None:
    known = {key for version in KEYS.values() for key in version["CLIPImageProcessor"]}
    assert known <= {*READ, *IDLE}


# Preprocessing

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
PICTURES = {
    "open_clip": ("open_clip_config.json", "preprocess_cfg", "mean", "std"),
    "vision_model.": ("preprocessor_config.json", "", "image_mean", "image_std"),
}


def pictures(folder: Path, naming: str, **content: object) -> Source:
    """The encoder in a folder whose configuration says this about its pictures."""
    name, section, _, _ = PICTURES[naming]
    return source(named(naming, open_clip_tensors()), write(folder, name, {section: content} if section else content))


@pytest.mark.parametrize("naming", PICTURES)
def test_mean_and_deviation_are_the_configurations(tmp_path: Path, naming: str) -> None:
    _, _, mean, std = PICTURES[naming]
    found = vision_preprocessing(pictures(tmp_path, naming, **{mean: MEAN, std: STD}))
    assert found == replace(CLIP_PREPROCESSING, mean=MEAN, std=STD)
    found = vision_preprocessing(pictures(tmp_path, naming, **{std: STD}))
    assert found == replace(CLIP_PREPROCESSING, std=STD)


def test_mean_and_deviation_beside_a_file_are_its_own(tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", {"image_mean": MEAN, "image_std": STD})
    tensors = open_clip_tensors()
    for naming, mean in (("vision_model.", MEAN), ("visual.", CLIP_PREPROCESSING.mean)):
        assert vision_preprocessing(source(named(naming, tensors), tmp_path / "clip.bin")).mean == mean


def test_what_a_processor_does_as_this_project_does_is_accepted(tmp_path: Path) -> None:
    found = pictures(tmp_path, "vision_model.", resample=3, do_center_crop=True, do_resize=True, do_normalize=True,
                     crop_size={"height": 12, "width": 12}, size={"shortest_edge": 12}, do_convert_rgb=True)
    assert vision_preprocessing(found) == CLIP_PREPROCESSING
    assert vision_config(found).heads == WIDTH // 64
    found = pictures(tmp_path, "open_clip", interpolation="bicubic", resize_mode="shortest", size=12, mode="RGB")
    assert vision_preprocessing(found) == CLIP_PREPROCESSING


def test_settings_inside_a_processors_file_count_before_those_of_the_older_kind(tmp_path: Path) -> None:
    found = pictures(tmp_path, "vision_model.", image_mean=STD)
    write(tmp_path, "processor_config.json", {"processor_class": "CLIPProcessor"})
    assert vision_preprocessing(found).mean == STD
    inner = {"image_mean": MEAN, "size": {"height": 12, "width": 12}, "resample": 2}
    write(tmp_path, "processor_config.json", {"processor_class": "CLIPProcessor", "image_processor": inner})
    expected = replace(CLIP_PREPROCESSING, mean=MEAN, resize="squash", interpolation="bilinear")
    assert vision_preprocessing(found) == expected
    write(tmp_path, "processor_config.json", {"image_processor": {**inner, "do_resize": False}})
    with pytest.raises(DataError, match=r"processor_config\.json: image_processor\.do_resize is False"):
        vision_preprocessing(found)


@pytest.mark.parametrize(
    ("naming", "key", "value"),
    [
        ("open_clip", "interpolation", "lanczos"),
        ("open_clip", "resize_mode", "stretch"),
        ("open_clip", "mode", "L"),
        ("open_clip", "size", 224),
        ("open_clip", "size", [12, 24]),
        ("open_clip", "size", [12]),
        ("open_clip", "std", [0.5, 0.0, 0.5]),
        ("open_clip", "mean", [0.5, 0.5]),
        ("open_clip", "std", 0.5),
        ("open_clip", "mean", [0.5, None, 0.5]),
        ("vision_model.", "resample", 6),
        ("vision_model.", "resample", "bicubic"),
        ("vision_model.", "resample", True),
        ("vision_model.", "do_center_crop", False),
        ("vision_model.", "do_resize", False),
        ("vision_model.", "do_pad", True),
        ("vision_model.", "do_rescale", "yes"),
        ("vision_model.", "do_convert_rgb", 1),
        ("vision_model.", "rescale_factor", 0),
        ("vision_model.", "rescale_factor", -1.0),
        ("vision_model.", "image_mean", "0.5"),
        ("vision_model.", "image_std", [0.5, -0.5, 0.5]),
        ("vision_model.", "size", 224),
        ("vision_model.", "size", {"shortest_edge": 16}),
        ("vision_model.", "size", {"longest_edge": 12}),
        ("vision_model.", "size", {"shortest_edge": 12, "longest_edge": 12}),
        ("vision_model.", "size", {"max_height": 12, "max_width": 12}),
        ("vision_model.", "size", {"height": 12, "width": 24}),
        ("vision_model.", "size", {"height": 12}),
        ("vision_model.", "size", [12]),
        ("vision_model.", "size", 12.0),
        ("vision_model.", "size", {"shortest_edge": True}),
        ("vision_model.", "crop_size", 224),
        ("vision_model.", "crop_size", {"height": 224, "width": 224}),
        ("vision_model.", "crop_size", {"shortest_edge": 12}),
        ("vision_model.", "image_processor_type", "SiglipImageProcessor"),
        ("vision_model.", "feature_extractor_type", "ViTFeatureExtractor"),
        ("vision_model.", "use_square_size", True),
        ("vision_model.", "do_flip_channel_order", True),
        ("vision_model.", "crop_pct", 0.9),
        ("vision_model.", "auto_map", {"AutoImageProcessor": "own.py"}),
    ],
)
def test_pictures_that_cannot_be_made_so_are_refused(tmp_path: Path, naming: str, key: str, value: object) -> None:
    name, section, _, _ = PICTURES[naming]
    found = pictures(tmp_path, naming, **{key: value})
    with pytest.raises(DataError) as caught:
        vision_preprocessing(found)
    assert f"{tmp_path / name}: {section}{'.' * bool(section)}{key} is {value!r}" in str(caught.value)
    with pytest.raises(DataError):
        vision_config(found)


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("value", ["0.5", True, 10**31])
def test_a_colour_that_is_no_number_is_named(tmp_path: Path, key: str, value: object) -> None:
    found = pictures(tmp_path, "open_clip", **{key: [0.5, value, 0.5]})
    with pytest.raises(DataError, match=f"preprocess_cfg.{key} is {value!r}, a number was expected"):
        vision_preprocessing(found)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("no_ln_pre", True), ("attentional_pool", True), ("ls_init_value", 1e-5), ("timm_model_name", "vit_base"),
        ("pool_type", "none"), ("final_ln_after_pool", True), ("act_kwargs", {"approximate": "tanh"}),
        ("qk_norm", True), ("scaled_cosine_attn", True), ("scale_heads", True), ("scale_attn_inner", True),
        ("scale_attn", True), ("scale_fc", True), ("norm_kwargs.bias", True),
    ],
)
def test_an_encoder_of_another_form_is_refused(tmp_path: Path, key: str, value: object) -> None:
    outer, _, inner = key.partition(".")
    write(tmp_path, "open_clip_config.json", {"model_cfg": {"vision_cfg": {outer: {inner: value} if inner else value}}})
    with pytest.raises(DataError, match=re.escape(f"vision_cfg.{key} is {value!r}")):
        vision_config(source(named("visual.", open_clip_tensors()), tmp_path))


# Activation


@pytest.mark.parametrize(
    ("stated", "argument", "expected"),
    [
        (None, None, "quick_gelu"),
        (None, "gelu", "gelu"),
        (("open_clip_config.json", {"model_cfg": {"quick_gelu": True}}), None, "quick_gelu"),
        (("open_clip_config.json", {"model_cfg": {"quick_gelu": True}}), "gelu", "gelu"),
        (("open_clip_config.json", {"model_cfg": {}}), None, "gelu"),
        (("open_clip_config.json", {"model_cfg": {}}), "quick_gelu", "quick_gelu"),
        (("config.json", {"vision_config": {"hidden_act": "gelu"}}), None, "gelu"),
        (("config.json", {"vision_config": {"hidden_act": "gelu"}}), "quick_gelu", "quick_gelu"),
        (("config.json", {"vision_config": {"num_attention_heads": 2}}), None, "quick_gelu"),
    ],
)
def test_the_activation_is_the_callers_then_the_configurations_then_openais(
    tmp_path: Path, stated: tuple[str, object] | None, argument: str | None, expected: str
) -> None:
    if stated is not None:
        write(tmp_path, *stated)
    assert vision_config(source(named("visual.", open_clip_tensors()), tmp_path), argument).activation == expected


# Errors


def test_a_file_without_an_encoder_is_named_with_what_was_looked_for() -> None:
    tensors = {"model.embed_tokens.weight": torch.zeros(4, 4), "lm_head.weight": torch.zeros(4, 4)}
    with pytest.raises(DataError) as caught:
        vision_config(source(tensors, Path("some/llama.bin")))
    for part in ("some/llama.bin", "visual.class_embedding", "vision_model.embeddings.class_embedding",
                 "model.embed_tokens.weight"):
        assert part in str(caught.value)


def test_a_resnet_is_refused() -> None:
    tensors = {"visual.conv1.weight": torch.zeros(8, 3, 3, 3), "visual.layer1.0.conv1.weight": torch.zeros(8, 8, 1, 1)}
    with pytest.raises(DataError, match=r"RN50\.pt holds no CLIP vision transformer"):
        vision_config(source(tensors, Path("RN50.pt")))


@pytest.mark.parametrize("places", [GRID * GRID, GRID * GRID + 2, 1])
def test_positions_of_no_square_are_refused(places: int) -> None:
    with pytest.raises(DataError, match=rf"clip\.pt.*\[{places}, 128\].*square"):
        vision_config(source(named("visual.", open_clip_tensors(places=places))))


def test_an_empty_tensor_is_refused() -> None:
    tensors = named("visual.", open_clip_tensors()) | {"visual.positional_embedding": torch.zeros(0, WIDTH)}
    with pytest.raises(DataError, match=r"clip\.pt: tensor visual\.positional_embedding is empty"):
        vision_config(source(tensors))


@pytest.mark.parametrize("value", ["silu", "gelu_new", ["gelu"], 3])
def test_an_unknown_activation_is_named(tmp_path: Path, value: object) -> None:
    write(tmp_path, "config.json", {"vision_config": {"num_attention_heads": 2, "hidden_act": value}})
    with pytest.raises(DataError) as caught:
        vision_config(source(named("vision_model.", open_clip_tensors()), tmp_path))
    for part in (str(tmp_path / "config.json"), "hidden_act", repr(value), "quick_gelu"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", ["1e-5", [1], True])
def test_a_norm_constant_that_is_no_number_is_named(tmp_path: Path, value: object) -> None:
    write(tmp_path, "config.json", {"vision_config": {"layer_norm_eps": value}})
    with pytest.raises(DataError, match=r"config\.json: vision_config\.layer_norm_eps is"):
        vision_config(source(named("vision_model.", open_clip_tensors()), tmp_path))


@pytest.mark.parametrize("width", [40, 96])
def test_a_width_that_no_head_width_divides_is_named(width: int) -> None:
    with pytest.raises(DataError, match=rf"clip\.pt: a width of {width} cannot be split into heads of 64"):
        vision_config(source(named("visual.", open_clip_tensors(width=width))))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"num_attention_heads": 3}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"num_attention_heads": "2"}),
        ("open_clip_config.json", {"model_cfg": {"vision_cfg": {"head_width": 48}}}),
        ("open_clip_config.json", {"model_cfg": {"vision_cfg": {"head_width": "64"}}}),
        ("open_clip_config.json", {"model_cfg": {"vision_cfg": {"head_width": -64}}}),
    ],
)
def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path, name: str, content: object) -> None:
    naming = "vision_model." if name == "config.json" else "visual."
    with pytest.raises(DataError, match=str(tmp_path)):
        vision_config(source(named(naming, open_clip_tensors()), write(tmp_path, name, content)))


@pytest.mark.parametrize("naming", ["visual.", "vision_model."])
def test_a_missing_or_misshapen_tensor_is_named_with_the_file(naming: str) -> None:
    tensors = named(naming, open_clip_tensors())
    name = next(name for name in tensors if name.endswith(("1.mlp.c_fc.bias", "1.mlp.fc1.bias")))
    for changed in ({**tensors, name: torch.zeros(7)}, {key: value for key, value in tensors.items() if key != name}):
        with pytest.raises(DataError, match=rf"clip\.pt.*tensor {name}"):
            encoder(source(changed))


def test_the_encoders_of_the_peers_files_have_the_peers_sizes(tmp_path: Path) -> None:
    for name in ("mpt-interval2", "mpt-interval4"):  # open_clip's names, and transformers'
        peer = PeerModel(name)
        (tmp_path / name).mkdir()
        files = peer.write(tmp_path / name)
        sizes = peer.about["vision_sizes"]
        config = vision_config(source(peer.tensors("vision"), files.vision))
        assert (config.image_size, config.patch_size) == (sizes["image_size"], sizes["patch_size"])
        assert (config.width, config.layers) == (sizes["width"], sizes["layers"])
        assert config.heads == sizes["width"] // sizes["head_width"]
        assert config.ff_width == int(sizes["width"] * sizes["mlp_ratio"])
        assert config.activation == peer.about["activation"]
