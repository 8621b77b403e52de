"""Other projects' folders: settings that change pixels, end-of-text tokens as a list, absurd sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from flamingo_rt.config import FlamingoConfig
from flamingo_rt.presets import CLIP_PREPROCESSING

from ..kind import Case, Seeds
from ..mutators import json_text
from ..sandbox import Sandbox

LLAMA, MPT = "llama-interval4", "mpt-interval4"  # the second has an encoder in the transformers library's naming
# Keys that change the computation or the pixels, for folders that have them.
KEYS = ("size", "crop_size", "do_rescale", "rescale_factor", "do_resize", "do_center_crop", "resample", "do_normalize",
        "eos_token_id", "rope_scaling", "rope_parameters", "head_dim", "num_key_value_heads", "sliding_window",
        "hidden_act",
        "attn_config", "vision_config", "tie_word_embeddings", "image_mean", "model_type", "added_tokens_decoder",
        "preprocess_cfg")


def write_sources(sandbox: Sandbox, files: dict[str, bytes]) -> None:
    """The three sources of a model."""
    for name, content in files.items():
        place = sandbox.input / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def add_changed(rng: Random, tree: dict) -> dict:
    """One of the `KEYS` with some value."""
    return {**tree, rng.choice(KEYS): json_text.value(rng)}


def _case(
    name: str, changes: dict[str, dict], refused: bool | None = True,
    check: Callable[[FlamingoConfig], bool] | None = None,
) -> Case:
    """A case. ``changes``: by file, keys that are added to its JSON object. ``check`` is for what may be honoured."""
    model = MPT if PICTURES in changes else LLAMA

    def write(sandbox: Sandbox, seeds: Seeds) -> None:
        files = {name.partition("/")[2]: content for name, content in seeds.items() if name.startswith(f"{model}/")}
        for file, keys in changes.items():
            files[file] = json.dumps({**json.loads(files.get(file, b"{}")), **keys}).encode()
        write_sources(sandbox, files)

    return Case(name, write, refused, check)


PICTURES, LANGUAGE = "vision/preprocessor_config.json", "language/config.json"


def _scaled(factor: float) -> Callable[[FlamingoConfig], bool]:
    """Whether pixels are normalised as if their values from 0 to 1 were ``factor`` times as large."""
    return lambda config: all(
        abs(ours * factor / clips - 1) < 1e-6
        for name in ("mean", "std")
        for ours, clips in zip(getattr(config.preprocessing, name), getattr(CLIP_PREPROCESSING, name), strict=True)
    )


_SEEDED = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
CASES = (
    _case("pictures squashed to a square", {PICTURES: {**_SEEDED, "size": {"height": 28, "width": 28}}}, None),
    _case("pictures that are cropped smaller", {PICTURES: {**_SEEDED, "crop_size": {"height": 20, "width": 20}}}),
    _case("pictures that are not rescaled", {PICTURES: {**_SEEDED, "do_rescale": False}}, None, _scaled(255)),
    _case("pictures rescaled by another factor", {PICTURES: {**_SEEDED, "rescale_factor": 1 / 127.5}}, None,
          _scaled(2)),
    _case("pictures that are not resized", {PICTURES: {**_SEEDED, "do_resize": False}}),
    _case("end of text as a list", {LANGUAGE: {"eos_token_id": [2, 3]}}, False),
    _case("end of text as a list of nothing", {LANGUAGE: {"eos_token_id": []}}, None),
    _case("width of 10^18", {LANGUAGE: {"hidden_size": 10**18}}),
    _case("a billion layers", {LANGUAGE: {"num_hidden_layers": 10**9}}),
    _case("context of 10^18", {LANGUAGE: {"max_position_embeddings": 10**18}}),
    _case("model type that a terminal obeys", {LANGUAGE: {"model_type": "\x1b]52;c;aGFjaw==\x07"}}),
    _case("deviation of 0", {PICTURES: {**_SEEDED, "image_std": [0, 1, 1]}}),
    _case("mean that is not a number", {PICTURES: {**_SEEDED, "image_mean": [float("nan")] * 3}}),
)
