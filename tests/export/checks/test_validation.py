"""Validation of captions: which prompts are taken, and the probabilities that a bundle records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import flamingo_rt
from flamingo_rt import DataError, Image
from flamingo_rt.bundle import read_bundle
from flamingo_rt.config import FlamingoConfig, PromptsConfig
from flamingo_rt.export.checks.validation import FEWEST, QUANTILE, file_captions, scene_captions, validate
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.loading import PACKAGED_BUNDLE

CONFIG = FlamingoConfig()
CAPTION = [{"image": "a.png"}, "Output: a red star<|endofchunk|>"]


def write(folder: Path, *prompts: list) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, prompts)))
    return file


def shown(parts: list) -> list[str]:
    return [Path(part.source).name if isinstance(part, Image) else part for part in parts]


def test_the_captions_of_a_file_are_cut_off_its_prompts(tmp_path) -> None:
    file = write(
        tmp_path, *[CAPTION] * FEWEST,
        ["see: ", {"image": "b.png"}, " Output: ", "a cat"],
        [{"image": "a.png"}, "Output: a<|endofchunk|>", {"image": "b.png"}, "Output: b<|endofchunk|>"],
        [{"image": "a.png"}, "Question: what? Answer: a star<|endofchunk|>"], ["Output: a"], [{"image": "a.png"}],
    )
    found = file_captions(CONFIG, file)
    assert found.origin == "of prompts.jsonl"
    assert [shown(prompt) for prompt in found.prompts[FEWEST - 1 :]] == [
        ["a.png", "Output:"], ["see: ", "b.png", "Output:"], ["a.png", "Output: a<|endofchunk|>", "b.png", "Output:"],
    ]


def test_the_form_of_a_caption_is_the_models(tmp_path) -> None:
    config = replace(CONFIG, prompts=PromptsConfig(caption="Say:"))
    file = write(tmp_path, *[[{"image": "a.png"}, "Say: a red star"]] * FEWEST)
    assert shown(file_captions(config, file).prompts[0]) == ["a.png", "Say:"]
    with pytest.raises(DataError, match="holds 0 prompts that end in a picture and 'Output:'"):
        file_captions(CONFIG, file)


def test_too_few_captions_for_a_percentile_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=rf"holds {FEWEST - 1} prompts .*: give {FEWEST} or more"):
        file_captions(CONFIG, write(tmp_path, *[CAPTION] * (FEWEST - 1)))
    with pytest.raises(DataError, match="cannot read"):
        file_captions(CONFIG, tmp_path / "absent")


def test_what_is_recorded_is_the_5th_percentile_of_the_answers_probabilities() -> None:
    model, prompts = flamingo_rt.load(threads=1), scene_captions(CONFIG, 30)
    heard: list[int] = []
    found = validate(model, prompts, heard.append)
    alone = [model.generate(prompt).result().probability for prompt in prompts.prompts]
    assert found.probability == pytest.approx(np.quantile(alone, QUANTILE), abs=1e-4)
    assert (found.captions, found.origin, sum(heard)) == (30, "about drawn scenes", 30)


def test_the_packaged_bundles_record_tells_scenes_from_noise() -> None:
    model = flamingo_rt.load(threads=1)
    assert model.usual_probability == read_bundle(PACKAGED_BUNDLE).validation.probability
    own = model.generate_batch(scene_captions(CONFIG, 60).prompts)
    rng = np.random.default_rng(0)
    noise = [Image(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(10)]
    others = model.generate_batch([[picture, "Output:"] for picture in noise])
    assert sum(result.unlike_validation for result in own) <= 9  # 5% is 3; three standard errors more
    assert sum(result.unlike_validation for result in others) >= 8


@pytest.mark.parametrize(
    ("lowering", "compute"), [("ort", "fp32"), pytest.param("tensorrt", "fp16", marks=pytest.mark.slow)]
)
def test_an_export_records_the_probability_with_the_graphs_that_it_writes(stored, tmp_path, lowering, compute) -> None:
    PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    prompts = file_captions(stored.config, write(tmp_path, *[CAPTION] * FEWEST))
    out = tmp_path / "bundle"
    bundle = export_model(stored, out, lowering=lowering, compute=compute, compare=False, validation=prompts)
    assert read_bundle(out).validation == bundle.validation
    assert (bundle.validation.captions, bundle.validation.origin) == (FEWEST, "of prompts.jsonl")
    assert not list(out.glob("*upcast*"))
    if lowering == "ort":
        model = flamingo_rt.load(out, threads=1)
        answered = model.generate(prompts.prompts[0]).result()
        assert model.usual_probability == bundle.validation.probability
        assert answered.probability == pytest.approx(model.usual_probability, abs=1e-6)
