"""Frames between and the colour fix's wavelets, with plain numbers."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.venhancer.clips import side_by_side
from toolkit.venhancer.clips.classic import _enlarged_rows, _luma, blended_frames, interpolate
from toolkit.venhancer.clips.colour import low_pass, wavelet
from toolkit.venhancer.clips.scenes import CutFinder, change


def test_wavelet_bands_are_those_of_kernels_one_two_and_four_pixels_apart():
    line = np.zeros(63)
    line[31] = 1.0
    expected = line
    for step in (1, 2, 4):
        kernel = np.zeros(2 * step + 1)
        kernel[[0, step, 2 * step]] = 0.25, 0.5, 0.25
        expected = np.convolve(expected, kernel, mode="same")
    image = torch.from_numpy(line).float().view(1, 1, 1, -1).expand(1, 1, 40, -1)
    assert np.allclose(low_pass(image, 3)[0, 0, 20].numpy(), expected, atol=1e-6)


def test_of_two_motions_the_one_that_explains_both_pictures_is_taken():
    torch.manual_seed(0)
    wide = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 36, 64), 5, 1) * 255
    a, b = wide[..., 4:44], wide[..., :40]  # to the right by 4 pixels
    truth = wide[..., 2:42]  # halfway
    right = torch.zeros(1, 2, *a.shape[-2:])
    right[:, 0] = 4.0
    wrong = torch.zeros_like(right)
    wrong[:, 0] = 9.0
    for forward, backward in ((right, wrong), (wrong, -right)):
        made = interpolate(a.expand(1, 3, -1, -1), b.expand(1, 3, -1, -1), forward, backward, a, b, 0.5)
        inside = (made - truth)[..., 6:-6, 12:-12].abs().mean()
        assert inside < 0.1 * (a - truth)[..., 6:-6, 12:-12].abs().mean()


def test_without_motion_a_frame_between_is_nearer_to_the_key_that_is_nearer_in_time():
    torch.manual_seed(1)
    a, b = torch.rand(2, 1, 1, 16, 16) * 255
    still = torch.zeros(1, 2, 16, 16)
    made = interpolate(a.expand(1, 3, -1, -1), b.expand(1, 3, -1, -1), still, still, a, b, 0.25)
    assert torch.allclose(made, (0.75 * a + 0.25 * b).expand(1, 3, -1, -1), atol=1e-3)


def test_blending_weighs_by_time():
    class Keys:
        num_frames = 2

        def frames(self, start=0):
            yield from [np.full((2, 2, 3), value, np.uint8) for value in (0, 100)][start:]

    made = list(blended_frames(Keys(), [Fraction(0), Fraction(1, 4), Fraction(1)], 0))
    assert [int(frame[0, 0, 0]) for frame in made] == [0, 25, 100]


def test_brightness_at_half_the_size_is_the_same_in_strips_as_in_one():
    """Blurred by [1 3 3 1] / 8 both ways, every second place kept, edges repeated; 147 rows are three strips."""
    torch.manual_seed(2)
    colours = torch.randint(0, 256, (1, 3, 295, 22), dtype=torch.uint8)
    grey = (colours.double() * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(1, 3, 1, 1)).sum(1)[0]
    assert (_luma(colours, False)[0, 0] - grey).abs().max() < 0.05
    edges = np.pad(grey.numpy(), 1, mode="edge")
    taps = np.array([1, 3, 3, 1]) / 8
    rows = sum(tap * edges[place : place + 2 * 147 : 2] for place, tap in enumerate(taps))
    expected = sum(tap * rows[:, place : place + 2 * 11 : 2] for place, tap in enumerate(taps))
    made = _luma(colours, True)
    assert made.shape == (1, 1, 147, 11) and np.abs(made[0, 0].numpy() - expected).max() < 0.05


def test_one_loud_block_is_one_of_the_144():
    """A block of 4 x 4 thumbnail pixels that nothing explains counts once, however much it differs."""
    before = np.zeros((36, 64, 3), np.float32)
    after = before.copy()
    after[4:8, 8:12] = 255
    assert change(before, after) == pytest.approx(1 / 144)
    after[4:8, 8:12] = 16  # a quarter of what counts as all
    assert change(before, after) == pytest.approx(0.25 / 144)


def test_motion_is_enlarged_between_the_middles_of_its_pixels():
    """Two rows and two columns to four and four: a quarter and three quarters of the way, the edges repeated."""
    small = torch.tensor([[0.0, 8.0], [16.0, 24.0]]).view(1, 1, 2, 2)
    steps = torch.tensor([0.0, 0.25, 0.75, 1.0])
    wanted = 16 * steps[:, None] + 8 * steps
    assert torch.allclose(_enlarged_rows(small, slice(1, 4), 4, 4)[0, 0], wanted[1:])


def test_colours_are_the_guides_as_far_as_31_pixels_around():
    """Five bands: 1 + 2 + 4 + 8 + 16."""
    x, guide = torch.zeros(2, 1, 3, 70, 90)
    guide[:, :, 35, 45] = 100
    columns = wavelet(x, guide)[0].amax(dim=(0, 1)).nonzero().flatten()
    assert columns.tolist() == list(range(45 - 31, 45 + 32))


@pytest.mark.parametrize(
    ("scores", "cuts"),
    [
        ([0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0], [4, 7]),
        ([0, 0, 0, 0, 1, 0, 1, 0, 0, 0], [4]),  # two frames on: a flash
        ([0, 0.4, 0.5], []),  # the first frame, which has no frame before it, is no sign of a picture that stands still
    ],
)
def test_scenes_last_three_frames_at_least_and_what_moves_throughout_is_not_cut(scores, cuts):
    finder = CutFinder(0.2)
    finder.scores = scores
    assert finder.cuts() == cuts


def test_panels_side_by_side_have_1920_pixels_together_and_are_never_enlarged():
    assert side_by_side._panel_size((1920, 1080), 2) == (960, 540)
    assert side_by_side._panel_size((1920, 1080), 3) == (640, 360)
    assert side_by_side._panel_size((100, 60), 2) == (100, 60)


@pytest.mark.parametrize(("num_frames", "shown"), [(7, [0, 2, 4, 6]), (2, [0, 1]), (1, [0])])
def test_a_sheet_has_four_frames_from_the_first_to_the_last(tmp_path, monkeypatch, num_frames, shown):
    frames = [np.full((1, 2, 3), number, np.uint8) for number in range(9)]
    monkeypatch.setattr(side_by_side, "frames_of", lambda clip: iter(frames))
    side_by_side.write_sheet(tmp_path / "sheet.png", tmp_path, num_frames)
    assert np.asarray(Image.open(tmp_path / "sheet.png"))[:, 0, 0].tolist() == shown
