"""The captioner: each token is written from the cells and from the tokens before it alone."""

from __future__ import annotations

import torch

from flamingo_rt.model.captioner import Captioner
from flamingo_rt.model.text_encoder import TextEncoderConfig

SIZES = TextEncoderConfig(vocab_size=20, context=8, width=16, layers=1, heads=2, ff_width=32)


def made() -> tuple[Captioner, torch.Tensor, torch.Tensor]:
    """Two layers, cells [2, 6, 12] and texts [2, 5]."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    return (Captioner(SIZES, 12, 2).eval(), torch.randn(2, 6, 12, generator=generator),
            torch.randint(20, (2, 5), generator=generator))


@torch.no_grad()
def test_a_token_is_written_from_the_tokens_before_it_alone() -> None:
    captioner, cells, ids = made()
    logits = captioner(cells, ids)
    assert logits.shape == (2, 5, 20)
    for place in range(5):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % 20
        found = captioner(cells, changed)
        torch.testing.assert_close(found[:, : place + 1], logits[:, : place + 1], rtol=1e-5, atol=1e-6)
        if place < 4:
            assert (found[:, place + 1 :] - logits[:, place + 1 :]).abs().amax() > 1e-3


@torch.no_grad()
def test_every_token_sees_every_cell_of_its_own_picture() -> None:
    captioner, cells, ids = made()
    logits = captioner(cells, ids)
    for cell in range(6):
        changed = cells.clone()
        changed[0, cell] += 1.0
        found = captioner(changed, ids)
        assert (found[0] - logits[0]).abs().amax(dim=-1).min() > 1e-5
        torch.testing.assert_close(found[1], logits[1], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_order_of_the_cells_says_nothing() -> None:
    """So a thing's place must be in its cell, as the resampler needs it."""
    captioner, cells, ids = made()
    torch.testing.assert_close(captioner(cells.flip(1), ids), captioner(cells, ids), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_text_counts_as_much_as_another_whatever_its_length() -> None:
    captioner, cells, ids = made()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    surprise = -captioner(cells, ids).log_softmax(-1)
    expected = [sum(float(surprise[text, place, ids[text, place]]) for place in range(length)) / length
                for text, length in enumerate((5, 2))]
    torch.testing.assert_close(captioner.losses(cells, ids, mask), torch.tensor(expected), rtol=1e-5, atol=1e-6)
