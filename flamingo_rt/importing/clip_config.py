"""The configuration files beside a CLIP encoder, of open_clip or of the transformers library."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from flamingo_rt.config import PreprocessingConfig, ViTActivation
from flamingo_rt.importing.clip_preprocessing import open_clip_preprocessing, processor_preprocessing
from flamingo_rt.importing.settings import NOWHERE, Settings
from flamingo_rt.json_files import read_json
from flamingo_rt.presets import CLIP_PREPROCESSING

OPEN_CLIP, TRANSFORMERS = "open_clip_config.json", "config.json"
PROCESSOR, PICTURES = "processor_config.json", "preprocessor_config.json"  # since 5.0 the first contains the second
HEADS = 12  # CLIPVisionConfig's default, which the transformers library need not write


@dataclass(frozen=True)
class Found:
    """The encoder's sizes, read from its tensors."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    ff_width: int


@dataclass(frozen=True)
class Stated:
    """The settings that the files state; None, or CLIP's own values, where they state nothing."""

    activation: ViTActivation | None = None
    heads: int | None = None
    head_width: int | None = None
    norm_eps: float = 1e-5
    preprocessing: PreprocessingConfig = CLIP_PREPROCESSING


def stated_beside(path: Path, transformers: bool, found: Found) -> Stated:
    """Read the settings in the folder ``path``, or beside the file ``path``.

    Any library may write a config.json: beside a file it counts only for tensors under the names of ``transformers``.
    open_clip's counts beside the files that it comes with. Raises `DataError` for settings that are not supported, and
    for sizes that differ from ``found``.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / OPEN_CLIP).is_file() and (path.is_dir() or path.name.startswith("open_clip")):
        return _open_clip(_settings(folder / OPEN_CLIP), found)
    if not path.is_dir() and not transformers:
        return Stated()
    stated = Stated()
    if (folder / TRANSFORMERS).is_file():
        stated = _transformers(_settings(folder / TRANSFORMERS), found, HEADS if transformers else None)
    pictures = _processor(folder)
    if pictures is not None:
        stated = replace(stated, preprocessing=processor_preprocessing(pictures, found.image_size))
    return stated


def _transformers(settings: Settings, found: Found, heads: int | None) -> Stated:
    """Read CLIP's config.json; ``heads`` is used where it states none."""
    # `vision_config_dict` replaces all of `vision_config`, its defaults included.
    sections = [key for key in ("vision_config_dict", "vision_config") if settings.get(key) is not None]
    vision = settings.section(sections[0]) if sections else settings
    vision.agree({
        "hidden_size": found.width, "intermediate_size": found.ff_width, "num_hidden_layers": found.layers,
        "num_channels": 3, "image_size": found.image_size, "patch_size": found.patch_size,
    })
    for each in (settings, vision):
        each.must(NOWHERE)
    activation: ViTActivation = vision.choice("hidden_act", "quick_gelu", ("gelu", "quick_gelu"))
    return Stated(
        activation=activation,
        heads=heads if vision.get("num_attention_heads") is None else vision.integer("num_attention_heads"),
        norm_eps=vision.number("layer_norm_eps", 1e-5),
    )


def _processor(folder: Path) -> Settings | None:
    """The picture processor's settings, if a file has them; of two files the library prefers the newer kind."""
    if (folder / PROCESSOR).is_file():
        settings = _settings(folder / PROCESSOR)
        if settings.get("image_processor") is not None:
            return settings.section("image_processor")
    return _settings(folder / PICTURES) if (folder / PICTURES).is_file() else None


def _open_clip(settings: Settings, found: Found) -> Stated:
    model, pictures = settings.section("model_cfg"), settings.section("preprocess_cfg")
    vision = model.section("vision_cfg")
    vision.agree({
        "layers": found.layers, "width": found.width, "patch_size": found.patch_size, "image_size": found.image_size,
    })
    vision.must({
        "no_ln_pre": False, "attentional_pool": False, "ls_init_value": None, "timm_model_name": None,
        "final_ln_after_pool": False, "act_kwargs": None, "qk_norm": False, "scaled_cosine_attn": False,
        "scale_heads": False, "scale_attn_inner": False, "scale_attn": False, "scale_fc": False,
        "input_patchnorm": False,
    })
    vision.choice("pool_type", "tok", ("tok", "avg"))  # other types keep the class token in the patches
    ratio = vision.number("mlp_ratio", found.ff_width / found.width)
    if int(found.width * ratio) != found.ff_width:
        raise vision.refused("mlp_ratio", f"the tensors have {found.ff_width} inner numbers for {found.width}")
    norms = vision.section("norm_kwargs")
    norms.only(("eps",))
    return Stated(
        activation="quick_gelu" if model.flag("quick_gelu", False) else "gelu",
        head_width=vision.integer("head_width") if vision.get("head_width") is not None else None,
        norm_eps=norms.number("eps", 1e-5),
        preprocessing=open_clip_preprocessing(pictures, found.image_size),
    )


def _settings(path: Path) -> Settings:
    return Settings(path, read_json(path))
