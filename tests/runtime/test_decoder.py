"""The decoder: a cache written in place, media computed once, and only what is needed handed to the backend."""

from dataclasses import replace

import numpy as np
import pytest
from recording import RecordingEngine

from flamingo_rt.contract import (
    LANGUAGE_MODEL,
    RESAMPLER,
    VISION_ENCODER,
    layer_parts,
    media_name,
    past_name,
    present_name,
)
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.processing.preprocess import visual_pixels
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.processing.visuals import Video
from flamingo_rt.runtime.decoder import Decoder, Row
from flamingo_rt.runtime.model import Model
from flamingo_rt.runtime.timing import StageTimer
from flamingo_rt.runtime.visual_encoder import encode_visuals

FLOAT32 = {"rtol": 0, "atol": 2e-4}  # logits of about 5, sums in another order over two layers
CAPACITY = 40


@pytest.fixture
def backend(flamingo):
    return RecordingEngine(TorchBackend(flamingo))


def decoder(backend, config, rows=1):
    return Decoder(backend, config, rows, CAPACITY)


def rows_of(prompts, backend, config, tokenizer, start=True):
    """Each prompt as a row, with its visuals encoded."""
    rows = []
    for parts in prompts:
        prompt = build_prompt(parts, tokenizer, start=start)
        pixels = [visual_pixels(visual, config) for visual in prompt.visuals]
        media = encode_visuals(backend, pixels, StageTimer())
        rows.append(Row(prompt.input_ids, prompt.media_index, media))
    return rows


@pytest.fixture
def row(backend, config, tokenizer, pictures):
    """Two pictures with text."""
    return rows_of([[pictures[0], "Output: a", pictures[1], "Output:"]], backend, config, tokenizer)[0]


def test_the_cache_is_one_buffer_that_is_read_and_written_in_place(backend, config, row):
    running = decoder(backend, config)
    running.prefill([row])
    for _ in range(3):
        running.step(np.array([65]))
    prefill, step = backend.of(LANGUAGE_MODEL)
    for part in layer_parts(config.language.layers):
        past = prefill.inputs[past_name(*part)]
        assert past.shape == (1, 2, CAPACITY, 16)
        for array in (prefill.outputs[present_name(*part)], step.inputs[past_name(*part)],
                      step.outputs[present_name(*part)]):
            assert array.ctypes.data == past.ctypes.data
        filled = np.abs(past).sum(axis=(0, 1, 3)) > 0
        assert filled.tolist() == [position < len(row.input_ids) + 3 for position in range(CAPACITY)]


def test_the_step_is_bound_once(backend, config, row):
    running = decoder(backend, config)
    running.prefill([row])
    for _ in range(5):
        running.step(np.array([65]))
    assert len(backend.of(LANGUAGE_MODEL)) == 2
    assert backend.calls[LANGUAGE_MODEL] == 6


def test_inputs_that_never_change_between_steps_are_bound_as_constant(backend, config, row):
    running = decoder(backend, config)
    running.prefill([row])
    running.step(np.array([65]))
    _, step = backend.of(LANGUAGE_MODEL)
    cache = {past_name(*part) for part in layer_parts(config.language.layers)}
    changing = {"input_ids", "cache_length", *cache}
    assert set(step.constant) == set(step.inputs) - changing
    before = {name: step.inputs[name].copy() for name in step.constant}
    running.step(np.array([70]))
    for name, array in before.items():
        np.testing.assert_array_equal(step.inputs[name], array)


def test_a_step_is_the_same_as_reading_the_token_in_the_prompt(backend, config, row):
    token = 65
    longer = Row(np.append(row.input_ids, token), np.append(row.media_index, 2), row.media)
    running = decoder(backend, config)
    running.prefill([row])
    np.testing.assert_allclose(running.step(np.array([token])), decoder(backend, config).prefill([longer]), **FLOAT32)


def test_a_restored_prefix_is_the_same_as_reading_everything_again(backend, config, tokenizer, pictures):
    shots, query = [pictures[0], "Output: a cat", pictures[1], "Output: b"], ["so ", pictures[2], "Output:"]
    first = decoder(backend, config)
    first.prefill(rows_of([shots], backend, config, tokenizer))
    whole = decoder(backend, config)
    expected = whole.prefill(rows_of([[*shots, *query]], backend, config, tokenizer))

    continued = decoder(backend, config)
    continued.restore(first.prefix())
    logits = continued.prefill(rows_of([query], backend, config, tokenizer, start=False))
    np.testing.assert_allclose(logits, expected, **FLOAT32)
    np.testing.assert_array_equal(continued.lengths, whole.lengths)
    for name, array in whole.prefix().cache.items():
        np.testing.assert_allclose(continued.prefix().cache[name], array, **FLOAT32)


def test_rows_behind_a_prefix_are_read_together_where_an_engine_can(backend, config, tokenizer, pictures):
    shots, queries = [pictures[0], "Output: a cat"], [["so ", pictures[2], "Output:"], ["Output: it is a"]]
    first = decoder(backend, config)
    first.prefill(rows_of([shots], backend, config, tokenizer))
    rows = rows_of(queries, backend, config, tokenizer, start=False)
    logits, calls = {}, {}
    for together in (False, True):
        backend.continues_batches = together
        continued, before = decoder(backend, config, rows=2), backend.calls[LANGUAGE_MODEL]
        continued.restore(first.prefix())
        continued.prefill(rows)
        calls[together] = backend.calls[LANGUAGE_MODEL] - before
        logits[together] = continued.step(np.array([65, 66])).copy()
    assert calls == {False: 2, True: 1}
    np.testing.assert_allclose(logits[True], logits[False], **FLOAT32)


def test_a_prefix_is_a_copy_of_its_own_length(backend, config, row):
    running = decoder(backend, config)
    running.prefill([row])
    prefix = running.prefix()
    buffers = backend.of(LANGUAGE_MODEL)[0].inputs
    assert prefix.length == len(row.input_ids)
    for name, array in prefix.cache.items():
        np.testing.assert_array_equal(array, buffers[name][:, :, : prefix.length])
        assert not np.shares_memory(array, buffers[name])
    for media in prefix.media:  # a part of what was computed for all visuals would keep all of it
        assert all(array.base is None for array in media.values())


def test_after_prefill_only_the_last_visual_is_handed_over(backend, config, row):
    running = decoder(backend, config)
    running.prefill([row])
    running.step(np.array([65]))
    prefill, step = backend.of(LANGUAGE_MODEL)
    for part in layer_parts(len(config.cross_layers)):
        assert prefill.inputs[media_name(*part)].shape[2] == 2 * config.resampler.latents
        assert step.inputs[media_name(*part)].shape[2] == config.resampler.latents
        np.testing.assert_array_equal(step.inputs[media_name(*part)][0], row.media[1][media_name(*part)])
    assert step.inputs["media_index"].tolist() == [[1]]
    assert len(running.prefix().media) == 1


def test_a_row_without_visuals_looks_at_none(backend, config, tokenizer, row):
    text = rows_of(["Output:"], backend, config, tokenizer)[0]
    running = decoder(backend, config, rows=2)
    running.prefill([text, row])
    running.step(np.array([65, 65]))
    assert backend.of(LANGUAGE_MODEL)[-1].inputs["media_index"].tolist() == [[0], [1]]


def test_a_model_that_attends_to_all_visuals_keeps_them(flamingo, config, tokenizer, pictures):
    config = replace(config, cross_attention=replace(config.cross_attention, attend="all"))
    model = Flamingo(config).eval()
    model.load_state_dict(flamingo.state_dict())
    backend = RecordingEngine(TorchBackend(model))
    shots, query = [pictures[0], "a", pictures[1], "b"], [pictures[2], "Output:"]
    first, continued, whole = (decoder(backend, config) for _ in range(3))
    first.prefill(rows_of([shots], backend, config, tokenizer))
    continued.restore(first.prefix())
    continued.prefill(rows_of([query], backend, config, tokenizer, start=False))
    logits = continued.step(np.array([65])).copy()
    latents = config.resampler.latents
    assert backend.of(LANGUAGE_MODEL)[-1].inputs[media_name(0, "key")].shape[2] == 3 * latents
    whole.prefill(rows_of([[*shots, *query]], backend, config, tokenizer))
    np.testing.assert_allclose(logits, whole.step(np.array([65])), **FLOAT32)


def test_several_tokens_at_once_are_as_one_after_the_other(backend, config, row):
    stepping, extending = decoder(backend, config), decoder(backend, config)
    stepping.prefill([row])
    extending.prefill([row])
    tokens = np.array([70, 71, 72])
    expected = [stepping.step(np.array([token]))[0].copy() for token in tokens]
    np.testing.assert_allclose(extending.extend(tokens), np.stack(expected), **FLOAT32)
    np.testing.assert_allclose(extending.step(np.array([65])), stepping.step(np.array([65])), **FLOAT32)


def test_tokens_that_were_rewound_do_not_change_what_follows(backend, config, row):
    plain, rewound = decoder(backend, config), decoder(backend, config)
    plain.prefill([row])
    rewound.prefill([row])
    rewound.extend(np.array([70, 71, 72]))
    rewound.rewind(len(row.input_ids))
    assert rewound.lengths.tolist() == plain.lengths.tolist()
    for name, array in plain.prefix().cache.items():
        np.testing.assert_array_equal(rewound.prefix().cache[name], array)
    for token in (65, 66):
        np.testing.assert_array_equal(rewound.step(np.array([token])), plain.step(np.array([token])))


def test_steps_of_each_size_are_bound_once_and_look_at_the_same_media(backend, config, row):
    running = decoder(backend, config)
    running.prefill([row])
    for count in (1, 4, 2, 4, 1, 2):
        running.extend(np.full(count, 65))
    _prefill, *steps = backend.of(LANGUAGE_MODEL)
    assert [step.inputs["input_ids"].shape for step in steps] == [(1, 1), (1, 4), (1, 2)]
    assert steps[1].inputs["media_index"].tolist() == [[1, 1, 1, 1]]
    for part in layer_parts(len(config.cross_layers)):
        assert len({step.inputs[media_name(*part)].ctypes.data for step in steps}) == 1


# Rows of one prompt


def test_a_widened_row_is_equal_rows(backend, config, row):
    alone, wide = decoder(backend, config), decoder(backend, config)
    alone.prefill([row])
    wide.prefill([row])
    calls = backend.calls.copy()
    wide.expand_rows(3)
    assert backend.calls == calls
    tokens = np.array([65, 66, 65])
    logits = wide.step(tokens).copy()
    np.testing.assert_allclose(logits[0], alone.step(tokens[:1])[0], **FLOAT32)
    np.testing.assert_allclose(logits[2], logits[0], **FLOAT32)
    assert np.abs(logits[1] - logits[0]).max() > 0.1


@pytest.mark.parametrize("parents", [[0, 1, 2], [1, 0, 2], [2, 2, 2], [1, 2, 0], [0, 0, 2]])
def test_reordered_rows_go_on_from_their_parents(backend, config, row, parents):
    wide, expected = decoder(backend, config), decoder(backend, config)
    histories = [[65, 70], [66, 71], [67, 72]]
    for each in (wide, expected):
        each.prefill([row])
        each.expand_rows(3)
    for column in range(2):
        wide.step(np.array([history[column] for history in histories]))
        expected.step(np.array([histories[parent][column] for parent in parents]))
    wide.reorder(parents)
    last = np.array([73, 74, 75])
    np.testing.assert_allclose(wide.step(last), expected.step(last), **FLOAT32)


def test_reordering_copies_the_rows_that_change_behind_the_prompt_alone(backend, config, row):
    wide = decoder(backend, config)
    wide.prefill([row])
    wide.expand_rows(3)
    wide.step(np.array([65, 66, 67]))
    buffers = [backend.of(LANGUAGE_MODEL)[-1].inputs[past_name(*part)] for part in layer_parts(config.language.layers)]
    length = len(row.input_ids)
    for array in buffers:
        array[:, :, :length] = np.arange(3)[:, None, None, None]  # were the prompt copied, a row would lose its number
    behind = [array[:, :, length:].copy() for array in buffers]
    wide.reorder([1, 1, 2])
    for array, before in zip(buffers, behind, strict=True):
        assert (array[:, :, :length] == np.arange(3)[:, None, None, None]).all()
        np.testing.assert_array_equal(array[:, :, length:], before[[1, 1, 2]])


# Pictures


def test_every_visual_of_a_batch_is_encoded_once(backend, config, tokenizer, pictures):
    a, b, c = pictures[:3]
    Model(backend, config, tokenizer).generate_batch([[a, b, "x"], [a, a, "y"], ["z", c]], max_new_tokens=4)
    assert backend.calls == {VISION_ENCODER: 1, RESAMPLER: 1, LANGUAGE_MODEL: 4}
    assert backend.of(VISION_ENCODER)[0].inputs["pixel_values"].shape[0] == 3


def test_a_prefix_is_not_encoded_again(backend, config, tokenizer, pictures):
    model = Model(backend, config, tokenizer)
    shots = model.prompt([pictures[0], "a", pictures[1], "b"])
    backend.bound.clear()
    for query in ("text", [pictures[2], "x"]):
        model.generate(query, prefix=shots, max_new_tokens=2).result()
    assert [bound.inputs["pixel_values"].shape[0] for bound in backend.of(VISION_ENCODER)] == [1]


def test_clips_are_resampled_with_those_of_as_many_frames(backend, config, pictures):
    sources = [picture.source for picture in pictures]
    visuals = [pictures[0], Video(sources[:3], frames=3), pictures[1], Video(sources[3:5], frames=2), pictures[2]]
    pixels = [visual_pixels(visual, config) for visual in visuals]
    together = encode_visuals(backend, pixels, StageTimer())
    assert [bound.inputs["pixel_values"].shape[0] for bound in backend.of(VISION_ENCODER)] == [4, 4]
    assert sorted(bound.inputs["features"].shape[:2] for bound in backend.of(RESAMPLER)) == [(1, 2), (1, 3), (3, 1)]
    for visual, array in zip(together, pixels, strict=True):
        (alone,) = encode_visuals(backend, [array], StageTimer())
        assert alone.keys() == visual.keys()
        for name, values in alone.items():
            np.testing.assert_allclose(visual[name], values, **FLOAT32)
