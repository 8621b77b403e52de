"""The whole model: its loss, shared pictures, what is frozen, and the slow generator."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from flamingo_rt.model.flamingo import IGNORED_LABEL, Flamingo
from flamingo_rt.model.naive import generate_naively

IDS = torch.tensor([[4, 9, 1, 30, 2, 7], [5, 9, 8, 3, 36, 0]])
INDEX = torch.tensor([[0, 1, 1, 2, 2, 2], [1, 1, 1, 1, 2, 2]])


@pytest.fixture
def model(flamingo_config, randomise) -> Flamingo:
    return randomise(Flamingo(flamingo_config))


@pytest.fixture
def talker(flamingo_config, randomise) -> Flamingo:
    """Gates a little open: its next token depends on the pictures and on the token before."""
    model = randomise(Flamingo(flamingo_config), seed=1)
    with torch.no_grad():
        for layer in model.cross_attention.layers.values():
            layer.attention_gate.fill_(0.05)
            layer.ff_gate.fill_(0.01)
    return model


@pytest.fixture
def pixels(random_tensor) -> torch.Tensor:
    """Three visuals of two frames."""
    return random_tensor(3, 2, 3, 8, 8)


@torch.no_grad()
def test_the_loss_is_the_mean_surprise_of_the_wanted_next_tokens(model, pixels):
    labels = IDS.clone()
    labels[0, :3] = IGNORED_LABEL
    labels[1, 4:] = IGNORED_LABEL
    logits, loss = model(IDS, INDEX, pixels, torch.tensor([[0, 1], [2, 0]]), labels)
    surprises = []
    for row in range(2):
        for place in range(1, 6):
            if labels[row, place] != IGNORED_LABEL:
                scores = logits[row, place - 1].double().tolist()
                surprises.append(math.log(sum(map(math.exp, scores))) - scores[labels[row, place]])
    assert len(surprises) == 3 + 3
    assert loss.item() == pytest.approx(sum(surprises) / len(surprises), rel=1e-5)


@torch.no_grad()
def test_without_labels_there_is_no_loss(model, pixels):
    logits, loss = model(IDS, INDEX, pixels, torch.tensor([[0, 1], [2, 0]]))
    assert logits.shape == (2, 6, 37)
    assert loss is None


@torch.no_grad()
def test_rows_that_share_pictures_equal_rows_with_their_own(model, pixels):
    rows = torch.tensor([[2, 0], [0, 1]])
    shared, _ = model(IDS, INDEX, pixels, rows)
    own, _ = model(IDS, INDEX, pixels[rows.flatten()], torch.tensor([[0, 1], [2, 3]]))
    torch.testing.assert_close(shared, own, rtol=1e-5, atol=1e-5)
    for row in range(2):
        alone, _ = model(IDS[row : row + 1], INDEX[row : row + 1], pixels[rows[row]], torch.tensor([[0, 1]]))
        torch.testing.assert_close(shared[row], alone[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_row_with_fewer_visuals_may_point_anywhere(model, pixels):
    index = torch.tensor([[0, 1, 1, 1, 1, 1]])
    logits = [model(IDS[:1], index, pixels, torch.tensor([[2, spare]]))[0] for spare in range(3)]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


@torch.no_grad()
def test_a_visual_is_encoded_alike_alone_and_in_a_batch(model, pixels):
    together = model.encode(pixels)
    assert together.shape == (3, 3, 16)
    torch.testing.assert_close(together[1:2], model.encode(pixels[1:2]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_text_only_batch_needs_no_pictures(model):
    logits, loss = model(IDS, torch.zeros_like(IDS), labels=IDS)
    assert logits.shape == (2, 6, 37)
    assert math.isfinite(loss.item())


@pytest.mark.parametrize("vision", ["vit", "nfnet"])
def test_freezing_leaves_what_is_new_trainable(flamingo_config, nfnet_config, randomise, pixels, vision):
    config = flamingo_config
    if vision == "nfnet":
        config = replace(config, vision=replace(nfnet_config, image_size=8))
    model = randomise(Flamingo(config))
    model.freeze()
    model(IDS, INDEX, pixels, torch.tensor([[0, 1], [2, 0]]), IDS)[1].backward()
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    silent = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is None}
    assert trained == {"resampler", "cross_attention"}
    assert silent == {"vision", "language"}


def test_either_pretrained_part_can_be_thawed(model):
    model.freeze(vision=True, language=False)
    assert all(parameter.requires_grad for parameter in model.language.parameters())
    assert not any(parameter.requires_grad for parameter in model.vision.parameters())
    model.freeze(vision=False, language=True)
    assert not any(parameter.requires_grad for parameter in model.language.parameters())
    assert all(parameter.requires_grad for parameter in model.vision.parameters())


@torch.no_grad()
def greedy(model: Flamingo, pixels: torch.Tensor, count: int) -> list[int]:
    """The most likely token after row 0, again and again, through `Flamingo.forward`."""
    ids, index = IDS[:1], INDEX[:1]
    for _ in range(count):
        logits, _ = model(ids, index, pixels[:2], torch.tensor([[0, 1]]))
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        index = torch.cat([index, index[:, -1:]], dim=1)
    return ids[0, IDS.shape[1] :].tolist()


def test_the_slow_generator_takes_the_most_likely_token_each_time(talker, pixels):
    expected = greedy(talker, pixels, 8)
    assert len(set(expected)) > 3
    assert expected != greedy(talker, pixels.flip(0), 8)
    assert generate_naively(talker, IDS[0].tolist(), INDEX[0].tolist(), list(pixels[:2]), 8) == expected


def test_the_slow_generator_stops_before_a_stop_token(talker, pixels):
    expected = greedy(talker, pixels, 8)
    last = expected[-1]
    assert expected.index(last) > 0
    arguments = (talker, IDS[0].tolist(), INDEX[0].tolist(), list(pixels[:2]), 8)
    assert generate_naively(*arguments, frozenset({last})) == expected[: expected.index(last)]
    assert generate_naively(*arguments, frozenset({expected[0]})) == []


def test_the_slow_generator_reads_visuals_of_different_lengths(model, pixels):
    clip, picture = pixels[0], pixels[1, :1]
    ids = generate_naively(model, IDS[0].tolist(), INDEX[0].tolist(), [clip, picture], 2)
    with torch.no_grad():
        latents = torch.cat([model.encode(clip[None]), model.encode(picture[None])])
        logits, _ = model.read(IDS[:1], INDEX[:1], latents, torch.tensor([[0, 1]]))
    assert ids[0] == logits[0, -1].argmax().item()


def test_the_slow_generator_continues_text_alone(model):
    ids = generate_naively(model, [4, 9, 1], [0, 0, 0], [], 3)
    with torch.no_grad():
        logits, _ = model(torch.tensor([[4, 9, 1]]), torch.zeros(1, 3, dtype=torch.int64))
    assert len(ids) == 3
    assert ids[0] == logits[0, -1].argmax().item()
