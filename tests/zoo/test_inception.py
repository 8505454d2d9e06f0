"""Inception of 2015-12-05 against torch-fidelity's network (0.3.0), on weights drawn from the tensors' own names."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.zoo.golden import GOLDEN, golden_tensor
from toolkit.errors import UserError
from toolkit.zoo.inception import Inception, load_inception, resize_as_tensorflow


@pytest.fixture(scope="module")
def weights():
    drawn = {}
    for name, value in Inception().state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        drawn[name] = golden_tensor(name, list(value.shape))
        if name.endswith("running_var"):
            drawn[name] = drawn[name].abs() + 0.5
    return drawn


@pytest.fixture(scope="module")
def network(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(weights, path)
    return load_inception(path)[0]


def test_features_and_logits_are_the_librarys(network):
    images = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (3, 3, 20, 31)).astype(np.uint8))
    seen = {}
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, out: seen.update(branch=out))
    found = network(images)
    expected = json.loads((GOLDEN / "inception.json").read_text())
    torch.testing.assert_close(found.pool[:, ::64], torch.tensor(expected["pool"]), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found.logits[:, ::42], torch.tensor(expected["logits"]), atol=5e-5, rtol=1e-4)
    # sFID's features: seven channels of a 17 x 17 map, the channel running fastest
    assert found.spatial.shape == (3, 17 * 17 * 7)
    for image, row, column, channel in ((0, 0, 0, 6), (1, 3, 16, 2), (2, 16, 5, 0)):
        assert found.spatial[image, (row * 17 + column) * 7 + channel] == seen["branch"][image, channel, row, column]


def test_resizing_takes_no_half_pixels():
    image = torch.tensor([[0.0, 30.0], [60.0, 90.0]])[None, None]
    # output pixel i reads source i * 2 / 4; beyond the last source pixel it repeats
    line = torch.tensor([0.0, 15.0, 30.0, 30.0])
    torch.testing.assert_close(resize_as_tensorflow(image, 4)[0, 0], line + 2 * line[:, None])
    down = resize_as_tensorflow(torch.arange(6.0)[None, None, None].expand(1, 1, 6, 6), 3)
    torch.testing.assert_close(down[0, 0, 0], torch.tensor([0.0, 2.0, 4.0]))  # every second pixel: no antialiasing


def test_other_files_are_refused(weights, tmp_path):
    with pytest.raises(UserError, match=r"no\.pth: no such file; expected the Inception weights"):
        load_inception(tmp_path / "no.pth")
    (tmp_path / "text.pth").write_text("not tensors")
    with pytest.raises(UserError, match=r"text\.pth: not a file of tensors"):
        load_inception(tmp_path / "text.pth")
    save_file({"fc.weight": weights["fc.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"part\.safetensors: not Inception's weights of 2015-12-05"):
        load_inception(tmp_path / "part.safetensors")


class Harm:
    def __reduce__(self):
        return (open, ("harmed", "w"))


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Harm()}, "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth: not a file of tensors"):
        load_inception("evil.pth")
    assert not (tmp_path / "harmed").exists()
