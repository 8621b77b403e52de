"""What the configuration files beside a CLIP encoder say: of open_clip, or of the transformers library."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from flamingo_rt.config import PreprocessingConfig, read_json
from flamingo_rt.importing.settings import Settings
from flamingo_rt.presets import CLIP_PREPROCESSING

OPEN_CLIP, TRANSFORMERS, PICTURES = "open_clip_config.json", "config.json", "preprocessor_config.json"
BICUBIC = 3  # Pillow's number, which the transformers library writes


@dataclass(frozen=True)
class Stated:
    """None, or CLIP's own values, where nothing is said."""

    activation: str | None = None
    heads: int | None = None
    head_width: int | None = None
    norm_eps: float = 1e-5
    preprocessing: PreprocessingConfig = CLIP_PREPROCESSING


def stated_beside(path: Path, transformers: bool) -> Stated:
    """Read what stands in the folder ``path``, or beside the file. Raises `DataError` for what cannot be honoured.

    A config.json is any library's: beside a file it counts for the tensors of ``transformers`` alone. open_clip's
    counts beside the files that it comes with.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / OPEN_CLIP).is_file() and (path.is_dir() or path.name.startswith("open_clip")):
        return _open_clip(_settings(folder / OPEN_CLIP))
    if not path.is_dir() and not transformers:
        return Stated()
    stated = Stated()
    if (folder / TRANSFORMERS).is_file():
        settings = _settings(folder / TRANSFORMERS)
        vision = settings.section("vision_config") if settings.get("vision_config") else settings
        stated = Stated(
            activation=vision.choice("hidden_act", "quick_gelu", ("gelu", "quick_gelu")),
            heads=vision.integer("num_attention_heads") if vision.get("num_attention_heads") is not None else None,
            norm_eps=vision.number("layer_norm_eps", 1e-5),
        )
    if (folder / PICTURES).is_file():
        pictures = _settings(folder / PICTURES)
        pictures.must({"resample": BICUBIC, "do_center_crop": True, "do_resize": True, "do_normalize": True})
        stated = replace(stated, preprocessing=_preprocessing(pictures, "image_mean", "image_std"))
    return stated


def _open_clip(settings: Settings) -> Stated:
    model, pictures = settings.section("model_cfg"), settings.section("preprocess_cfg")
    vision = model.section("vision_cfg")
    vision.must({"no_ln_pre": False, "attentional_pool": False, "ls_init_value": None, "timm_model_name": None})
    pictures.must({"interpolation": "bicubic", "resize_mode": "shortest"})
    return Stated(
        activation="quick_gelu" if model.flag("quick_gelu", False) else "gelu",
        head_width=vision.integer("head_width") if vision.get("head_width") is not None else None,
        norm_eps=vision.section("norm_kwargs").number("eps", 1e-5),
        preprocessing=_preprocessing(pictures, "mean", "std"),
    )


def _preprocessing(settings: Settings, mean: str, std: str) -> PreprocessingConfig:
    return replace(
        CLIP_PREPROCESSING, mean=settings.triple(mean, CLIP_PREPROCESSING.mean),
        std=settings.triple(std, CLIP_PREPROCESSING.std),
    )


def _settings(path: Path) -> Settings:
    return Settings(path, read_json(path))
