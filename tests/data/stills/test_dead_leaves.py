"""Dead leaves: shapes that hide each other, of sizes that follow a power law."""

import numpy as np
import pytest
from PIL import Image

from toolkit.data.stills import dead_leaves as leaves
from toolkit.data.stills.crops import still_crops


def test_a_picture_is_a_function_of_its_random_numbers():
    one, again, other = (leaves.dead_leaves(np.random.default_rng(seed), 32) for seed in (1, 1, 2))
    assert one.shape == (32, 32, 3) and one.dtype == np.uint8
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_sizes_follow_a_power_law(monkeypatch):
    """The share of radii above r: (r^-e - R^-e) / (least^-e - R^-e), for the exponent e."""
    monkeypatch.setattr(leaves, "EXPONENTS", (0.8, 0.8))
    radii = leaves._radii(np.random.default_rng(0), 20_000, 200.0)
    assert radii.min() >= 6 and radii.max() <= 200
    for at in (10, 30, 100):
        expected = (at**-0.8 - 200**-0.8) / (6**-0.8 - 200**-0.8)
        assert (radii > at).mean() == pytest.approx(expected, abs=0.012)


def test_mostly_the_largest_lie_lowest():
    """In 70 % of pictures; of those in any order a chance of 1 / 5! have it too."""
    rng = np.random.default_rng(0)
    falling = [bool((np.diff(leaves._radii(rng, 5, 200.0)) < 0).all()) for _ in range(2000)]
    assert np.mean(falling) == pytest.approx(0.7 + 0.3 / 120, abs=0.03)


def test_a_leaf_hides_what_lies_below_and_nothing_else(monkeypatch):
    monkeypatch.setattr(leaves, "SHAPES", (leaves._ellipse,))
    monkeypatch.setattr(leaves, "SHAPE_SHARES", (1.0,))
    monkeypatch.setattr(leaves, "SOFT", 0.0)
    picture = Image.new("RGB", (400, 400), (1, 2, 3))
    for seed, value in ((7, 90), (7, 200), (2, 50)):  # the second lies on the first
        leaves._drop(np.random.default_rng(seed), picture, 11.0, np.full((2, 3), float(value)))
    found = {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3).tolist()}
    assert found == {(1, 2, 3), (50, 50, 50), (200, 200, 200)}
    area = (np.asarray(picture)[..., 0] == 200).sum()
    assert np.pi * 11 * 11 * 0.3 < area < np.pi * 11.5 * 11.5


@pytest.mark.parametrize("shape", leaves.SHAPES, ids=lambda shape: shape.__name__.strip("_"))
def test_every_shape_leaves_a_mark_within_its_box(shape):
    """A box reaches 1.5 radii and 8 pixels from its middle: what went beyond would be cut with a straight edge."""
    for seed in range(5):
        canvas = Image.new("L", (800, 800), 0)
        shape(np.random.default_rng(seed), leaves.ImageDraw.Draw(canvas), 400.0, 100.0)
        left, top, right, bottom = canvas.getbbox()
        if shape not in (leaves._letters, leaves._grains):  # a word may be longer, a grain farther
            assert min(left, top) >= 400 - 158 and max(right, bottom) <= 400 + 159


@pytest.mark.parametrize("fill", leaves.FILLS, ids=lambda fill: fill.__name__.strip("_"))
def test_a_fill_lies_between_its_two_colours(fill):
    colours = np.array([[10.0, 200.0, 90.0], [60.0, 100.0, 90.0]])
    pixels = np.asarray(fill(np.random.default_rng(3), (40, 24), colours)).astype(int)
    assert pixels.shape == (24, 40, 3)
    assert pixels.min((0, 1)).tolist() >= [10, 100, 90] and (pixels.max((0, 1)) <= [60, 200, 90]).all()
    assert (len(np.unique(pixels.reshape(-1, 3), axis=0)) == 1) == (fill is leaves._plain)


def test_crops_hold_the_share_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (64, 64), (7, 7, 7)).save(tmp_path / "plain.png")
    crops = still_crops([tmp_path / "plain.png"], [], [], 10, 16, drawn_share=0.3).read(range(10))
    plain = [bool((crop == 7).all()) for crop in crops]
    assert plain == [True] * 7 + [False] * 3
    drawn = leaves.dead_leaves(np.random.default_rng([1, 2]), 16)  # the third, whole: it has the size of a crop
    assert np.array_equal(crops[9].permute(1, 2, 0).numpy(), drawn)
    assert len(still_crops([], [], [], 4, 16, drawn_share=1.0)) == 4


def test_grains_are_round():
    class Luck:
        """One grain in the middle, five pixels far."""

        integers, uniform = (lambda *_: 1), (lambda *_: 5.0)

        def normal(self, mean, deviation, size):
            return np.zeros(size)

    canvas = Image.new("L", (40, 40), 0)
    leaves._grains(Luck(), leaves.ImageDraw.Draw(canvas), 20.0, 9.0)
    assert canvas.getbbox() == (15, 15, 26, 26)
