"""Calibration prompts: from files, or about drawn scenes; some to round by, others to measure with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flamingo_rt.checkpoints import StoredModel
from flamingo_rt.contract import media_name
from flamingo_rt.errors import DataError
from flamingo_rt.export.checks.parity_cases import TextBatch, answer, encode_media
from flamingo_rt.export.quantization import calibration_cases
from flamingo_rt.export.quantization.calibration import (
    CALIBRATED,
    MEASURED,
    CalibrationPrompt,
    drawn_scenes,
    read_prompts,
)
from flamingo_rt.export.quantization.calibration_cases import STEPWISE, encode_prompts
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.processing.preprocess import visual_pixels
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.processing.visuals import Image


def described(prompts: list[CalibrationPrompt]) -> list[list[str]]:
    """Prompts in a form that can be compared."""
    return [["".join(map(chr, np.asarray(part.source).ravel()[:4000])) if isinstance(part, Image) else part
             for part in prompt.parts] for prompt in prompts]


def placed(*prompts: list) -> list[CalibrationPrompt]:
    return [CalibrationPrompt(parts, f"prompts.jsonl, line {line}") for line, parts in enumerate(prompts, 1)]


# Files


@pytest.fixture
def write(tmp_path: Path):
    def written(*lines: object) -> Path:
        file = tmp_path / "prompts.jsonl"
        file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return file

    return written


def test_pictures_and_texts_are_read_in_their_order(write, tmp_path: Path) -> None:
    found = read_prompts(write([{"image": "a.png"}, "one", {"image": "sub/b.png"}, "two"], ["three"])).measure
    assert [part if isinstance(part, str) else Path(part.source) for part in found[0].parts] == [
        tmp_path / "a.png", "one", tmp_path / "sub" / "b.png", "two",
    ]


@pytest.mark.parametrize(("count", "measured"), [(4, [0]), (8, [0, 4]), (9, [0, 4, 8]), (2, [0])])
def test_every_fourth_prompt_is_measured_with_and_the_others_calibrate(write, count: int, measured: list) -> None:
    file = write(*[[f"prompt {number}"] for number in range(count)])
    found = read_prompts(file)
    prompts = [CalibrationPrompt([f"prompt {number}"], f"{file}, line {number + 1}") for number in range(count)]
    assert found.measure == [prompts[number] for number in measured]
    assert found.calibrate == [prompts[number] for number in range(count) if number not in measured]
    assert found.source == f"{count - len(measured)} prompts of prompts.jsonl"


def test_a_single_prompt_is_refused(write) -> None:
    """No prompt would be left to measure with."""
    with pytest.raises(DataError, match=r"holds 1 calibration prompts: give two or more, .*such as"):
        read_prompts(write('["Output: a star"]'))


def test_prompts_of_a_long_file_are_taken_from_all_over_it(write) -> None:
    found = read_prompts(write(*(f'["prompt {number}"]' for number in range(1000))))
    assert (len(found.calibrate), len(found.measure)) == (CALIBRATED, MEASURED)
    numbers = [int(prompt.parts[0].split()[1]) for prompt in found.calibrate]
    assert numbers == sorted(set(numbers))
    assert numbers[0] < 20
    assert numbers[-1] > 970
    assert not {prompt.place for prompt in found.calibrate} & {prompt.place for prompt in found.measure}


def test_empty_lines_are_skipped_and_do_not_shift_the_numbers(write) -> None:
    file = write("", ["a"], "  ", ["b"])
    assert read_prompts(file).calibrate == [CalibrationPrompt(["b"], f"{file}, line 4")]
    with pytest.raises(DataError, match="line 4: "):
        read_prompts(write("", ["a"], "", "nonsense"))


@pytest.mark.parametrize("line", [
    "nonsense", "{", "[", "[]", "3", '"text"', "null", '{"image": "a.png"}', "[3]", "[null]", '[["nested"]]',
    '[{"image": 3}]', '[{"video": "a.mp4"}]', '[{"image": "a.png", "size": 3}]', "[{}]", "[" * 100_000,
    '["\\ud800"', "[1e999999999999]",
])
def test_a_line_that_is_no_prompt_is_named_with_an_example(write, line: str) -> None:
    file = write(["good"], line)
    with pytest.raises(DataError) as refused:
        read_prompts(file)
    message = str(refused.value)
    assert message.startswith(f"{file}, line 2: ")
    assert '[{"image": "a.png"}, ' in message
    assert len(message) < 1000


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_prompts_is_refused(write, content: str) -> None:
    with pytest.raises(DataError, match="holds 0 calibration prompts: give two or more"):
        read_prompts(write(content))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path / "absent", tmp_path, tmp_path / "binary"):
        with pytest.raises(DataError, match=f"cannot read prompts from {file}"):
            read_prompts(file)


# Drawn scenes


def test_drawn_scenes_are_the_same_every_time(stored: StoredModel) -> None:
    one, other = drawn_scenes(stored.config), drawn_scenes(stored.config)
    assert described(one.calibrate) == described(other.calibrate)
    assert described(one.measure) == described(other.measure)
    assert (len(one.calibrate), len(one.measure)) == (CALIBRATED, MEASURED)
    assert one.source == f"{CALIBRATED} prompts about drawn scenes"


def test_what_is_measured_with_is_not_what_was_calibrated_with(stored: StoredModel) -> None:
    found = drawn_scenes(stored.config)
    pictures = [[shown for parts in described(prompts) for shown in parts[::2]]
                for prompts in (found.calibrate, found.measure)]
    assert len(set(pictures[0])) == len(pictures[0]) == 96
    assert not set(pictures[0]) & set(pictures[1])


def test_scenes_are_asked_about_in_the_models_own_form(stored: StoredModel) -> None:
    """Captions and questions, of one picture and of two, each with its answer and end."""
    config = stored.config
    form = replace(config, prompts=replace(config.prompts, caption="Say:"))
    texts = [[part for part in prompt.parts if isinstance(part, str)] for prompt in drawn_scenes(form).calibrate]
    captions = [text for row in texts for text in row if text.startswith("Say: ")]
    questions = [text for row in texts for text in row if text.startswith("Question: ")]
    assert len(captions) == len(questions) == 48
    assert all(text.endswith(config.tokens.end_of_chunk) for row in texts for text in row)
    assert {len(row) for row in texts} == {1, 2}


# Prompts as cases


@pytest.fixture
def tokenizer(checkpoint: Path, stored: StoredModel) -> TextTokenizer:
    return TextTokenizer(checkpoint / "tokenizer.json", stored.config.tokens, stored.config.language.vocab_size)


@pytest.fixture(scope="module")
def model(stored: StoredModel) -> Flamingo:
    return stored.load()


def picture(seed: int) -> Image:
    colours = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image(np.repeat(np.repeat(colours, 4, axis=0), 4, axis=1))


PROMPTS = placed(
    [picture(0), "Output: a red circle"], ["Question: how many stars?"],
    [picture(1), "Output: a star", picture(2), "Output: two circles and a square"],
)


def test_prompts_become_cases_that_are_read_as_in_use(model: Flamingo, tokenizer: TextTokenizer) -> None:
    """Prefill, then the last tokens one by one. A prompt without pictures gets features that it does not look at."""
    told: list[int] = []
    reference = encode_prompts(model, tokenizer, PROMPTS, told.append)
    assert told == [1] * 4
    assert reference.pixel_values.shape[0] == reference.features.shape[0] == 3
    _first, text, both = reference.cases
    assert [len(expected.case.visuals[0]) for expected in reference.cases] == [1, 0, 2]
    assert [expected.features.shape[:2] for expected in reference.cases] == [(1, 1), (1, 1), (2, 1)]
    assert torch.equal(both.features[:, 0], reference.features[1:])
    for expected in reference.cases:
        assert expected.case.pieces == (1,) * STEPWISE
        assert expected.case.lengths[0] + STEPWISE == expected.input_ids.shape[1] == expected.case.tokens
        assert set(expected.media) == {media_name(i, part) for i in range(2) for part in ("key", "value")}
    assert both.media_index[0, -1] == 2
    assert text.media_index.max() == 0


def test_the_answers_of_the_cases_are_the_models_own(model: Flamingo, tokenizer: TextTokenizer) -> None:
    reference = encode_prompts(model, tokenizer, PROMPTS)
    answer(model, reference.cases)
    for prompt, expected in zip(PROMPTS, reference.cases, strict=True):
        pictures = [part for part in prompt.parts if isinstance(part, Image)]
        visuals = [torch.from_numpy(visual_pixels(picture, model.config)) for picture in pictures]
        shown = (torch.stack(visuals), torch.arange(len(visuals))[None]) if visuals else (None, None)
        with torch.no_grad():
            logits, _ = model(expected.input_ids, expected.media_index, *shown)
        torch.testing.assert_close(expected.logits[0], logits[0], rtol=0, atol=2e-4)


def test_a_batch_says_which_positions_are_no_padding(model: Flamingo, tokenizer: TextTokenizer) -> None:
    reference = encode_prompts(model, tokenizer, PROMPTS)
    batch = TextBatch.of(reference.cases)
    lengths = [expected.input_ids.shape[1] for expected in reference.cases]
    assert batch.lengths == lengths
    assert len(set(lengths)) > 1
    assert batch.tokens.sum(1).tolist() == lengths
    assert batch.tokens.shape == batch.input_ids.shape == (3, max(lengths))
    for row, length in enumerate(lengths):
        assert batch.tokens[row, :length].all()
    assert batch.keys[0].shape == (3, 2, 2 * model.config.resampler.latents, 16)


def test_a_short_prompt_has_fewer_single_steps(model: Flamingo, tokenizer: TextTokenizer) -> None:
    reference = encode_prompts(model, tokenizer, placed([picture(0)], [picture(1), "a"]))
    for expected in reference.cases:
        assert expected.case.lengths[0] >= 1
        assert expected.case.tokens == expected.input_ids.shape[1]


def test_pictures_of_all_prompts_are_encoded_together_some_at_a_time(
    model: Flamingo, tokenizer: TextTokenizer, monkeypatch
) -> None:
    """A model that reads its weights from the disk reads them once for each call."""
    calls: list[tuple[str, int]] = []
    handles = [getattr(model, name).register_forward_pre_hook(
        lambda module, inputs, name=name: calls.append((name, inputs[0].shape[0]))) for name in ("vision", "resampler")]
    prompts = placed(*[[picture(seed), "a"] for seed in range(5)], ["b"], [picture(5), picture(6), "c"])
    together = encode_prompts(model, tokenizer, prompts)
    assert calls == [("vision", 7), ("resampler", 7)]
    calls.clear()
    monkeypatch.setattr(calibration_cases, "PICTURES_AT_ONCE", 3)
    apart = encode_prompts(model, tokenizer, prompts)
    assert calls == [(name, count) for count in (3, 3, 1) for name in ("vision", "resampler")]
    for handle in handles:
        handle.remove()
    for one, other in zip(together.cases, apart.cases, strict=True):
        with torch.no_grad():
            alone = encode_media(model, one.features)
        for name, tensor in one.media.items():
            torch.testing.assert_close(tensor, other.media[name], rtol=0, atol=1e-4)
            torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("parts", "message"), [
    ([picture(0), "x " * 200], r"the prompt has \d+ tokens, the context is 96: shorten it"),
    ([picture(0), Image(Path("absent.png"))], r".*absent\.png"),
    (["a <image> b"], "the text 'a <image> b' holds <image>: give the picture itself"),
    ([""], "the prompt is empty"),
], ids=["long", "picture", "token", "empty"])
def test_a_prompt_that_cannot_be_used_is_named_by_its_place(
    model: Flamingo, tokenizer: TextTokenizer, parts: list, message: str
) -> None:
    with pytest.raises(DataError, match=rf"^prompts\.jsonl, line 2: {message}"):
        encode_prompts(model, tokenizer, placed([picture(0), "good"], parts))


def test_prompts_without_any_picture_are_refused(model: Flamingo, tokenizer: TextTokenizer) -> None:
    with pytest.raises(DataError, match="no calibration prompt has a picture"):
        encode_prompts(model, tokenizer, placed(["Output: a"], ["Output: b"]))


def test_a_file_of_prompts_beyond_measure_is_refused_unread(write) -> None:
    file = write(["a"], ["b"])
    with file.open("r+b") as opened:
        opened.truncate(3_000_000_000)  # a hole: it takes no space
    with pytest.raises(DataError, match="has more than 100 MB"):
        read_prompts(file)
