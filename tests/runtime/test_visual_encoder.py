"""Pictures of prompts: decoded in threads, encoded in batches, each content once, and kept within a bound."""

import io
import threading

import numpy as np
import PIL.Image
import pytest
from recording import RecordingEngine, encoded

import flamingo_rt
from flamingo_rt.contract import RESAMPLER, VISION_ENCODER
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.processing import preprocess, video
from flamingo_rt.processing.preprocess import decode_visual, visual_pixels
from flamingo_rt.processing.visuals import Image, Video
from flamingo_rt.runtime.model import Model
from flamingo_rt.runtime.timing import StageTimer
from flamingo_rt.runtime.visual_encoder import MediaCache, VisualEncoder, encode_visuals

FLOAT32 = {"rtol": 0, "atol": 2e-4}  # sums in another order


@pytest.fixture
def backend(flamingo):
    return RecordingEngine(TorchBackend(flamingo))


@pytest.fixture
def encoder(backend, config):
    """Encodes visuals for the configuration, with a cache of so many bytes."""

    def make(most_bytes=2**20):
        made = VisualEncoder(backend, MediaCache(most_bytes))
        return lambda visuals, timer=None: encoded(made, visuals, config, timer)

    return make


@pytest.fixture
def files(pictures, tmp_path):
    """Six pictures as files."""
    paths = [tmp_path / f"{index}.png" for index in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        PIL.Image.fromarray(picture.source).save(path)
    return paths


def frames(backend):
    """Pictures in each run of the vision encoder."""
    return [bound.inputs["pixel_values"].shape[0] for bound in backend.of(VISION_ENCODER)]


def assert_equal(media, expected, **tolerance):
    for found, other in zip(media, expected, strict=True):
        assert found.keys() == other.keys()
        for name, array in other.items():
            np.testing.assert_allclose(found[name], array, **(tolerance or {"rtol": 0, "atol": 0}))


def test_every_visual_has_its_own_media_in_order(encoder, backend, config, pictures, clip, files):
    visuals = [Image(files[5]), clip, pictures[1], Video(files[:2], frames=2), Image(files[2]), pictures[3], clip]
    alone = [
        encode_visuals(backend, [visual_pixels(visual, config)], StageTimer())[0]
        for visual in visuals
    ]
    backend.bound.clear()
    assert_equal(encoder()(visuals), alone, **FLOAT32)
    assert frames(backend) == [4, 4, 1]  # with the clip of three; with the clip of two; the last picture
    assert sorted(bound.inputs["features"].shape[:2] for bound in backend.of(RESAMPLER)) == [(1, 2), (1, 3), (4, 1)]


def test_pictures_with_the_same_content_are_encoded_once(encoder, backend, pictures, files):
    same = [pictures[0], Image(pictures[0].source.copy()), Image(files[0]), Image(files[0].read_bytes())]
    for most_bytes in (2**20, 0):
        backend.bound.clear()
        media = encoder(most_bytes)([*same, pictures[1]])
        assert frames(backend) == [2]
        assert_equal(media[:4], [media[0]] * 4)


def test_a_picture_that_comes_again_is_not_encoded_and_has_the_same_numbers(encoder, backend, pictures, clip):
    encode = encoder()
    first = encode([pictures[0], clip, pictures[1]])
    backend.bound.clear()
    timer = StageTimer()
    again = encode([pictures[1], Image(pictures[0].source.copy()), clip], timer)
    assert not backend.bound
    assert_equal(again, [first[2], first[0], first[1]])
    assert set(timer.milliseconds) == {"images", "vision", "resampler"}
    assert timer.milliseconds["vision"] == 0.0
    assert_equal(encode([pictures[2], pictures[0]])[1:], first[:1])
    assert frames(backend) == [1]


def test_a_clip_and_a_picture_of_the_same_content_are_told_apart(encoder, backend, pictures):
    still = Video([pictures[0].source], frames=2)
    picture, clip = encoder()([pictures[0], still])
    assert frames(backend) == [3]
    assert np.abs(picture["media_key_values.0.key"] - clip["media_key_values.0.key"]).max() > 1e-3


def test_prompts_queries_and_scores_use_the_cache(backend, config, tokenizer, pictures):
    model = Model(backend, config, tokenizer)
    shots = model.prompt([pictures[0], "a"])
    expected = model.generate([pictures[1], "b"], prefix=shots, max_new_tokens=3).result()
    calls = backend.calls[VISION_ENCODER]
    model.score([pictures[0], "b"], ["yes"])
    model.prompt([pictures[1], "a"])
    result = model.generate([pictures[1], "b"], prefix=shots, max_new_tokens=3).result()
    assert backend.calls[VISION_ENCODER] == calls == 2
    assert (result.tokens, result.logprobs) == (expected.tokens, expected.logprobs)


def test_a_model_without_a_cache_encodes_again(backend, config, tokenizer, pictures):
    model = Model(backend, config, tokenizer, image_cache_bytes=0)
    for _ in range(2):
        model.generate([pictures[0], "a"], max_new_tokens=1).result()
    assert backend.calls[VISION_ENCODER] == 2


def test_loading_sets_the_caches_size(checkpoint_folder, bundle_folder):
    for folder in (checkpoint_folder, bundle_folder):
        assert flamingo_rt.load(folder, image_cache_bytes=0)
        with pytest.raises(UsageError, match=r"image_cache_bytes is -1; it must be an integer, 0 .off. or more"):
            flamingo_rt.load(folder, image_cache_bytes=-1)


# Decoding


def test_pictures_are_decoded_while_others_are_encoded(encoder, backend, files, monkeypatch):
    decoded, encoding = threading.Semaphore(0), []
    bind = backend.bind

    def decode(visual, config):
        made = decode_visual(visual, config)
        decoded.release()
        return made

    def wait(graph, inputs, outputs):
        if graph == VISION_ENCODER and not encoding:  # the fifth picture is decoded before the first four are encoded
            encoding.append([decoded.acquire(timeout=30) for _ in range(5)])
        return bind(graph, inputs, outputs)

    monkeypatch.setattr(preprocess, "THREADS", 2)
    monkeypatch.setattr(preprocess, "decode_visual", decode)
    monkeypatch.setattr(backend, "bind", wait)
    encoder()([Image(file) for file in files])
    assert encoding == [[True] * 5]
    assert frames(backend) == [4, 2]


def test_no_more_is_decoded_ahead_than_allowed(encoder, backend, files, monkeypatch):
    started, bind, ahead = [], backend.bind, []

    def decode(visual, config):
        started.append(visual)
        return decode_visual(visual, config)

    def look(graph, inputs, outputs):
        if graph == VISION_ENCODER:
            ahead.append(len(started))
        return bind(graph, inputs, outputs)

    monkeypatch.setattr(preprocess, "AHEAD", 2)
    monkeypatch.setattr(preprocess, "decode_visual", decode)
    monkeypatch.setattr(backend, "bind", look)
    rng = np.random.default_rng(0)
    many = [Image(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(20)]
    encoder()(many)
    assert max(count - 4 * run for run, count in enumerate(ahead, 1)) <= 2


@pytest.mark.parametrize("bad", [0, 2, 5])
def test_a_bad_picture_is_reported_and_no_thread_is_left(bad, encoder, files):
    before = threading.active_count()
    files[bad].write_bytes(b"no picture")
    files[-1].unlink(missing_ok=True)
    with pytest.raises(DataError) as error:
        encoder()([Image(file) for file in files])
    assert str(files[bad]) in str(error.value)  # the first, of two
    assert threading.active_count() == before


def test_no_thread_is_left_when_the_encoder_fails(encoder, backend, files, monkeypatch):
    before = threading.active_count()

    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(backend, "bind", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        encoder()([Image(file) for file in files])
    assert threading.active_count() == before


def test_clips_and_opened_pictures_are_decoded_one_at_a_time(encoder, pictures, files, monkeypatch):
    inside, most = [], []

    def counted(read):
        def reading(*arguments):
            inside.append(read)
            most.append(len(inside))
            result = read(*arguments)
            inside.remove(read)
            return result

        return reading

    monkeypatch.setattr(preprocess, "open_picture", counted(preprocess.open_picture))
    monkeypatch.setattr(video, "read_frames", counted(video.read_frames))
    opened = PIL.Image.open(io.BytesIO(files[0].read_bytes()))  # decoded by whoever looks at it first
    visuals = [Image(opened), Video(files[:3], frames=3), Image(opened), Video([opened, opened], frames=2)] * 3
    encoder()([type(visual)(*vars(visual).values()) for visual in visuals])
    assert most == [1] * 12


# The cache


def media(value, count=10):
    return {"media": np.full(count, value, dtype=np.float32)}


def test_the_least_recently_used_is_dropped_when_the_bytes_are_full():
    cache = MediaCache(100)
    cache.put(b"a", media(1))
    cache.put(b"b", media(2))
    assert cache.get(b"a")["media"][0] == 1
    cache.put(b"c", media(3))
    assert cache.get(b"b") is None
    assert (cache.get(b"a")["media"][0], cache.get(b"c")["media"][0]) == (1, 3)


def test_an_entry_larger_than_the_cache_drops_nothing():
    cache = MediaCache(100)
    cache.put(b"a", media(1))
    cache.put(b"b", media(2, count=26))
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None


def test_the_cache_keeps_a_copy_that_cannot_be_written():
    cache, array = MediaCache(), np.zeros((4, 10), dtype=np.float32)
    cache.put(b"a", {"media": array[1]})
    array[:] = 7
    kept = cache.get(b"a")["media"]
    assert not kept.any()
    assert kept.base is None
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1


def test_putting_an_entry_twice_takes_no_more_room():
    cache = MediaCache(100)
    for _ in range(5):
        cache.put(b"a", media(1))
    cache.put(b"b", media(2))
    assert cache.get(b"a") is not None
