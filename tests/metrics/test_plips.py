"""PLIPS: its reader, and that it is a distance that rises with damage; real weights where they are in the cache."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.data.videos import moving
from toolkit.data import fetching
from toolkit.errors import UserError
from toolkit.metrics.plips import PLIPS


def weights_file(path, network):
    """The network's features in the packaged file's layout."""
    fires = [layer for fire in network.fires.values() for layer in (fire.squeeze, fire.one, fire.three)]
    parts = []
    for layer in [network.first, *fires]:
        parts += [np.zeros(1, np.float32), layer.weight.numpy().ravel(), layer.bias.numpy()]
    np.concatenate([*parts, np.ones(7, np.float32)]).tofile(path)  # the classifier follows


def test_the_file_fills_every_layer_and_another_file_is_refused(tmp_path):
    torch.manual_seed(0)
    network, again = PLIPS(), PLIPS()
    weights_file(tmp_path / "w.bin", network)
    again.read_features(tmp_path / "w.bin")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    np.ones(1000, np.float32).tofile(tmp_path / "other.bin")
    with pytest.raises(UserError, match=r"other\.bin: not the float32 weights"):
        again.read_features(tmp_path / "other.bin")


def test_features_are_normalised_and_the_distance_of_equal_pictures_is_nothing():
    torch.manual_seed(0)
    network = PLIPS()
    for head in network.heads:
        head.fill_(1.0)
    x = torch.rand(2, 3, 48, 64) * 255
    features = network.features(x)
    assert [one.shape[1] for one in features] == [64, 128, 256, 384, 384, 512, 512]
    assert features[0].square().sum(1).sqrt().amax() == pytest.approx(1, abs=1e-4)
    assert network(x, x).tolist() == [0, 0] and (network(x, x.flip(3)) > 0).all()


def test_it_is_the_authors_network_on_blue_green_and_red():
    """Two taps: the first convolution of BGR less its mean; a pool that counts the last column, then two fires."""
    torch.manual_seed(0)
    network, x = PLIPS(), torch.rand(2, 3, 47, 62) * 255
    bgr = torch.stack([x[:, 2] - 104.0, x[:, 1] - 117.0, x[:, 0] - 123.0], 1)
    hidden = F.relu(F.conv2d(bgr, network.first.weight, network.first.bias, stride=2))
    first, third, *_ = network.features(x)
    torch.testing.assert_close(first, hidden / hidden.norm(dim=1, keepdim=True), atol=1e-4, rtol=0)
    assert hidden.shape[-2:] == (23, 30)
    hidden = F.max_pool2d(F.pad(hidden, (0, 1), value=-1.0), 3, 2)
    for fire in (network.fires["fire2"], network.fires["fire3"]):
        squeezed = F.relu(fire.squeeze(hidden))
        hidden = F.relu(torch.cat([fire.one(squeezed), fire.three(squeezed)], 1))
    torch.testing.assert_close(third, hidden / hidden.norm(dim=1, keepdim=True), atol=1e-4, rtol=0)


def test_the_distance_is_a_sum_over_channels_and_taps_and_a_mean_over_places(monkeypatch):
    network = PLIPS()
    maps = {0.0: [torch.zeros(1, width, 2, 3) for width in (64, 128, 256, 384, 384, 512, 512)]}
    maps[1.0] = [torch.ones_like(one) for one in maps[0.0]]
    monkeypatch.setattr(network, "features", lambda x: maps[float(x)])
    for number, head in enumerate(network.heads):
        head.fill_(float(number + 1))
    wanted = sum((number + 1) * width for number, width in enumerate((64, 128, 256, 384, 384, 512, 512)))
    assert network(torch.tensor(0.0), torch.tensor(1.0)).tolist() == [wanted]


def test_with_its_weights_it_rises_with_blur_and_noise():
    if not (fetching.is_cached("squeezenet_caffe") and fetching.is_cached("lpips_heads")):
        pytest.skip("the weights are not in the cache; enhance-video perceptual=true fetches them")
    network = PLIPS.load()
    x = torch.from_numpy(moving(1, 128, 96)[0]).permute(2, 0, 1)[None].float()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noisy = [float(network((x + level * noise).clamp(0, 255), x)) for level in (2, 8, 32)]
    blurred = [float(network(blur(x, side), x)) for side in (3, 5, 9)]
    assert noisy == sorted(noisy) and blurred == sorted(blurred) and noisy[0] > 0 and blurred[0] > 0


def blur(x, side):
    half = side // 2
    return F.avg_pool2d(F.pad(x, (half,) * 4, mode="replicate"), side, 1)
