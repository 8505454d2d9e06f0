"""Tiles in space (T13): few, covering, weights that sum to one, seams that move."""

from __future__ import annotations

import pytest
import torch

from toolkit.venhancer.engine import tiles

# output: latent size -> tiles of 90x160 at 25 % overlap
ARITHMETIC = {(135, 240): 4, (180, 320): 9, (270, 480): 16, (540, 960): 64}


@pytest.mark.parametrize(("size", "count"), ARITHMETIC.items())
def test_counts_are_the_arithmetic_and_shifting_adds_none(size, count):
    for seed in (None, 0, 1):
        grid = tiles.grid(size, (90, 160), 0.25, seed)
        assert len(grid) == count
        assert all(tile.rows.stop <= size[0] and tile.columns.stop <= size[1] for tile in grid)
        assert {(len(tile.rows.weight), len(tile.columns.weight)) for tile in grid} == {(90, 160)}


@pytest.mark.parametrize("size", [*ARITHMETIC, (91, 161), (90, 400), (45, 33)])
@pytest.mark.parametrize("seed", [None, 7])
def test_cutting_up_and_blending_gives_the_same_back(size, seed):
    image, out = torch.randn(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for tile in tiles.grid(size, (90, 160), 0.25, seed):
        place = slice(tile.rows.start, tile.rows.stop), slice(tile.columns.start, tile.columns.stop)
        out[place] += image[place] * tile.weight()
    assert (out - image).abs().max() < 1e-12


@pytest.mark.parametrize("overlap", [0.0, 0.125, 0.25, 0.4, 0.5])
@pytest.mark.parametrize("tile", [5, 16, 24, 90])
def test_weights_add_up_to_one_where_three_tiles_meet(tile, overlap):
    """Lengths a little over that of two tiles have a third, of which much lies on both others."""
    for length in range(tile + 1, 4 * tile, max(1, tile // 12)):
        for seed in (None, *range(6)):
            total = torch.zeros(length, dtype=torch.float64)
            for span in tiles.spans(length, tile, overlap, seed):
                total[span.start : span.stop] += torch.tensor(span.weight, dtype=torch.float64)
            torch.testing.assert_close(total, torch.ones_like(total), msg=f"{length} {seed}")


def test_seams_move_from_step_to_step_and_stay_where_they_are_for_a_seed():
    grids = [tiles.spans(135, 90, 0.25, seed) for seed in range(8)]
    assert len({span[0].weight for span in grids}) > 4
    assert tiles.spans(135, 90, 0.25, 3) == tiles.spans(135, 90, 0.25, 3)


def test_fades_are_smooth():
    for seed in range(5):
        for span in tiles.spans(270, 90, 0.25, seed):
            weight = torch.tensor(span.weight)
            assert weight.diff().abs().max() < 0.1
            assert weight.min() >= 0 and weight.max() <= 1


def test_one_tile_is_the_whole():
    (tile,) = tiles.grid((45, 100), (90, 160), 0.25)
    assert (tile.rows.start, tile.columns.start) == (0, 0)
    assert torch.equal(tile.weight(), torch.ones(45, 100, dtype=torch.float64))
