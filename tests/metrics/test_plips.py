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
