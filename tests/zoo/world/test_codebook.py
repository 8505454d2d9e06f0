"""Codes that start, and start anew, far from the others: what is frequent takes few of them."""

import torch

from toolkit.zoo.world.codebook import CodebookEMA, VectorQuantizer, draw_apart

RNG = torch.Generator().manual_seed(0)
BACKGROUND = 0.01 * torch.randn(950, 4, generator=RNG)  # nine tenths of all latents
RARE = torch.eye(4).repeat(25, 1)[:50] * 3 + 0.01 * torch.randn(50, 4, generator=RNG)
LATENTS = torch.cat([BACKGROUND, RARE])


def far(rows):
    return int((rows.norm(dim=1) > 1).sum())


def test_drawn_apart_the_rare_latents_get_codes():
    plain, apart = VectorQuantizer(8, 4), VectorQuantizer(8, 4)
    plain.initialise(LATENTS, torch.Generator().manual_seed(1))
    apart.initialise(LATENTS, torch.Generator().manual_seed(1), apart=True)
    assert far(plain.embedding.weight) <= 2 and far(apart.embedding.weight) >= 4
    assert {int(row.argmax()) for row in apart.embedding.weight if row.norm() > 1} == {0, 1, 2, 3}


def test_what_is_coded_already_is_not_drawn_again():
    rows = draw_apart(LATENTS, 4, torch.Generator().manual_seed(0), start=torch.zeros(1, 4))
    assert far(rows) == 4


def test_dead_codes_move_to_what_is_badly_coded():
    quantizer = VectorQuantizer(6, 4)
    with torch.no_grad():
        quantizer.embedding.weight.zero_()
        quantizer.embedding.weight[1:] += 50  # five codes that nothing uses
    ema = CodebookEMA(quantizer, decay=0.5, restart_below=0.6, apart=True)
    for step in range(3):
        ema.update(LATENTS, quantizer.nearest(LATENTS), torch.Generator().manual_seed(step))
    assert far(quantizer.embedding.weight) >= 4 and quantizer.embedding.weight.max() < 10
