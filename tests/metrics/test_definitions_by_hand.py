"""Measures against their definitions written with loops over few numbers, in the default suite."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg
from torch.nn import functional as F

from toolkit.metrics.distances import energy_distance, sliced_wasserstein2, wasserstein2
from toolkit.metrics.frechet import frechet_distance, frechet_floor
from toolkit.metrics.inception_score import inception_score
from toolkit.metrics.neighbours import memorisation_ratio, precision_recall
from toolkit.metrics.plips import PLIPS
from toolkit.metrics.ssim import ssim
from toolkit.metrics.stats import difference, ratio, summary
from toolkit.metrics.turning import curvature, jacobian_norm
from toolkit.metrics.video import _warp_error, noise_deviation, sharpness

RNG = np.random.default_rng(0)


def test_ssim_is_its_definition_in_several_channels():
    x = RNG.random((1, 2, 14, 13))
    y = np.clip(0.8 * x + 0.1 + 0.1 * RNG.normal(size=x.shape), 0, 1)
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    found = []
    for channel in range(2):
        for row in range(4):
            for column in range(3):
                p, q = (one[0, channel, row : row + 11, column : column + 11] for one in (x, y))
                p_mean, q_mean = (window * p).sum(), (window * q).sum()
                p_var, q_var = (window * (p - p_mean) ** 2).sum(), (window * (q - q_mean) ** 2).sum()
                both = (window * (p - p_mean) * (q - q_mean)).sum()
                light = (2 * p_mean * q_mean + 1e-4) / (p_mean**2 + q_mean**2 + 1e-4)
                found.append(light * (2 * both + 9e-4) / (p_var + q_var + 9e-4))
    assert ssim(torch.from_numpy(x), torch.from_numpy(y)).item() == pytest.approx(np.mean(found), abs=1e-9)


def test_plips_is_squeezenet_layer_by_layer():
    """SqueezeNet 1.1: BGR less the means; pooled before fires 2, 4 and 6; unit channels, squared, weighed, averaged."""
    torch.manual_seed(0)
    network = PLIPS()
    for head in network.heads:
        head.copy_(torch.rand(head.shape))
    means = torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1)

    def taps(x):
        x = torch.stack([x[:, 2], x[:, 1], x[:, 0]], 1) - means
        x = F.conv2d(x, network.first.weight, network.first.bias, stride=2).clamp(min=0)
        yield x
        for number in range(2, 10):
            if number in (2, 4, 6):
                x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
            fire = network.fires[f"fire{number}"]
            x = F.conv2d(x, fire.squeeze.weight, fire.squeeze.bias).clamp(min=0)
            wide = F.conv2d(x, fire.three.weight, fire.three.bias, padding=1)
            x = torch.cat([F.conv2d(x, fire.one.weight, fire.one.bias), wide], 1).clamp(min=0)
            if number not in (2, 4):
                yield x

    x, y = torch.rand(2, 3, 48, 40) * 255, torch.rand(2, 3, 48, 40) * 255
    wanted = torch.zeros(2)
    for head, a, b in zip(network.heads, taps(x), taps(y), strict=True):
        gap = F.normalize(a, dim=1) - F.normalize(b, dim=1)
        wanted += (head * gap**2).sum(1).flatten(1).mean(1)
    torch.testing.assert_close(network(x, y), wanted, rtol=1e-4, atol=1e-6)
    assert wanted.min() > 1e-3


def test_sharpness_is_the_length_of_the_gradient_across_and_down():
    x = torch.zeros(1, 3, 5, 7)
    x[0] += 3 * torch.arange(7.0) + 4 * torch.arange(5.0)[:, None]
    assert sharpness(x) == pytest.approx(5, abs=1e-4)
    assert sharpness(3 * torch.arange(7.0).expand(1, 3, 5, 7)) == pytest.approx(3, abs=1e-4)
    assert sharpness(4 * torch.arange(5.0)[:, None].expand(1, 3, 5, 7)) == pytest.approx(4, abs=1e-4)


def test_noise_is_the_mean_response_of_immerkaers_mask():
    grey = RNG.random((6, 7)) * 255
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    sizes = [abs((mask * grey[i : i + 3, j : j + 3]).sum()) for i in range(4) for j in range(5)]
    wanted = math.sqrt(math.pi / 2) / (6 * 4 * 5) * sum(sizes)
    x = torch.from_numpy(grey).float().expand(1, 3, 6, 7)
    assert noise_deviation(x) == pytest.approx(wanted, rel=1e-4)


def test_the_frechet_distance_is_heusels_formula_with_scipys_root():
    a, b = RNG.normal(size=(40, 3)), RNG.normal(size=(30, 3)) @ np.diag([1.0, 2.0, 0.5]) + [0.3, 0, -0.2]
    s, t = np.cov(a.T), np.cov(b.T)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(wanted, rel=1e-6)


def test_the_floor_draws_subsets_of_the_asked_size():
    train, reference = torch.from_numpy(RNG.normal(size=(60, 2))), torch.from_numpy(RNG.normal(size=(50, 2)))
    floor = frechet_floor(train, reference, 20, torch.Generator().manual_seed(0), num_draws=4)
    rng, found = torch.Generator().manual_seed(0), []
    for _ in range(4):
        found.append(frechet_distance(train[torch.randperm(60, generator=rng)[:20]], reference))
    assert (floor.num, floor.num_draws) == (20, 4)
    assert floor.mean == pytest.approx(np.mean(found)) and floor.sd == pytest.approx(np.std(found, ddof=1))


def test_precision_and_recall_are_shares_inside_balls_that_reach_the_third_neighbour():
    real, samples = RNG.normal(size=(12, 2)), RNG.normal(size=(9, 2)) * 1.3 + 0.4

    def share(points, centres):
        radii = [sorted(np.linalg.norm(centres - one, axis=1))[3] for one in centres]  # [0] is the centre itself
        inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        return np.mean(inside)

    found = precision_recall(torch.from_numpy(real), torch.from_numpy(samples))
    assert found.precision == pytest.approx(share(samples, real))
    assert found.recall == pytest.approx(share(real, samples)) and found.precision != found.recall


def test_memorisation_compares_distances_to_the_training_set():
    samples, held_out, train = (RNG.normal(size=(n, 2)) * scale for n, scale in ((5, 1), (7, 2), (11, 1)))
    near = lambda points: sorted(min(np.linalg.norm(p - t) for t in train) for p in points)  # noqa: E731
    wanted = near(samples)[2] / near(held_out)[3]
    assert memorisation_ratio(*map(torch.from_numpy, (samples, held_out, train))) == pytest.approx(wanted, rel=1e-5)


def test_energy_and_transport_distances_are_sums_over_pairs():
    x, y = RNG.normal(size=(4, 2)), RNG.normal(size=(3, 2)) + 0.5
    mean = lambda a, b, pairs: sum(np.linalg.norm(p - q) for p in a for q in b) / pairs  # noqa: E731
    wanted = 2 * mean(x, y, 12) - mean(x, x, 12) - mean(y, y, 6)
    assert energy_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(wanted)
    one = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert wasserstein2(one, torch.tensor([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(math.sqrt(16 / 2))
    shifted = sliced_wasserstein2(torch.from_numpy(x), torch.from_numpy(x) + torch.tensor([0.6, 0.8]).double(),
                                  torch.Generator().manual_seed(0), 4000)  # fmt: skip
    assert shifted == pytest.approx(1, rel=0.05)


def test_intervals_are_students():
    values = [1.0, 2.5, 2.0, 4.0]
    found = summary(values)
    half = 3.182446305284263 * np.std(values, ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((2.375 - half, 2.375 + half))
    other = [0.5, 1.0, 3.0, 1.5]
    gaps = np.subtract(values, other)
    paired, logs = difference(values, other), np.log(np.divide(values, other))
    assert paired.mean == pytest.approx(gaps.mean()) and paired.sd == pytest.approx(gaps.std(ddof=1))
    assert ratio(values, other).mean == pytest.approx(math.exp(logs.mean()))
    wide = 3.182446305284263 * logs.std(ddof=1) / 2
    assert ratio(values, other).high == pytest.approx(math.exp(logs.mean() + wide))


def test_welchs_interval_has_welchs_degrees_of_freedom():
    from scipy.stats import t, ttest_ind

    a, b = [1.0, 2.5, 2.0, 4.0, 3.0], [0.5, 9.0, 3.0]
    test = ttest_ind(a, b, equal_var=False)
    half = float(t.ppf(0.975, test.df)) * math.sqrt(np.var(a, ddof=1) / 5 + np.var(b, ddof=1) / 3)
    found = difference(a, b, paired=False)
    assert (found.low, found.high) == pytest.approx((np.mean(a) - np.mean(b) - half, np.mean(a) - np.mean(b) + half))


def test_a_linear_denoisers_jacobian_and_curvature_are_known():
    matrix = torch.from_numpy(RNG.normal(size=(3, 3)))
    denoise = lambda x, sigma: x @ matrix.to(x.dtype).T  # noqa: E731
    x = torch.from_numpy(RNG.normal(size=(2, 3)))
    wanted = float((matrix**2).sum())
    assert jacobian_norm(denoise, x, 0.7).tolist() == pytest.approx([wanted, wanted])
    slope = lambda z, level: (z - z @ matrix.T) / level  # noqa: E731
    level, step = 1.3, 1e-2
    here, back = slope(x, level), x - step * slope(x, level)
    tangents = [F.normalize(one, dim=1) for one in (here, slope(back, level - step))]
    bend = (tangents[0] - tangents[1]).norm(dim=1) / (x - back).norm(dim=1)
    found = curvature(denoise, x, level, step, torch.float64)
    torch.testing.assert_close(found, bend)


def test_warp_error_is_a_thousand_times_the_mean_square_of_what_changed_along_the_motion():
    """A frame that moved by two pixels to the right and is 0.1 brighter on its lower half: 0.1 squared, halved; of
    places that are not seen nothing counts, and where none is seen it is 0."""
    torch.manual_seed(0)
    before = torch.rand(1, 3, 8, 20) * 200
    moved = torch.zeros_like(before)
    moved[..., 2:] = before[..., :-2]
    moved[:, :, 4:] += 25.5
    flow = torch.zeros(1, 2, 8, 20)
    flow[:, 0] = 2.0
    seen = torch.ones(1, 1, 8, 20, dtype=torch.bool)
    seen[..., -2:] = False  # what came from beyond the edge
    assert _warp_error(before, moved, flow, seen) == pytest.approx(1000 * 0.1**2 / 2, rel=1e-3)
    seen[:, :, :4] = False
    assert _warp_error(before, moved, flow, seen) == pytest.approx(1000 * 0.1**2, rel=1e-3)
    assert _warp_error(before, moved, flow, torch.zeros_like(seen)) == 0.0


def test_the_inception_score_is_a_mean_over_splits():
    """Three sure and equally frequent classes score 3, a split of one class 1, three undecided images 1."""
    sure, same, undecided = torch.eye(3), torch.eye(3)[[0, 0, 0]], torch.full((3, 3), 1 / 3)
    assert inception_score(sure) == pytest.approx(3)
    assert inception_score(torch.cat([sure, same, undecided]), split_size=3) == pytest.approx(5 / 3)
    mixed = torch.tensor([[0.9, 0.1], [0.5, 0.5]])  # of mean (0.7, 0.3)
    nats = [0.9 * math.log(0.9 / 0.7) + 0.1 * math.log(0.1 / 0.3), 0.5 * math.log(0.5 / 0.7 * 0.5 / 0.3)]
    assert inception_score(mixed) == pytest.approx(math.exp(sum(nats) / 2))
