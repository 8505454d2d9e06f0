"""The same operators on the zoo's own Transformer, DisCo-Diff's prior."""

import pytest
import torch

from tests.stacking.models import relative_change
from toolkit.errors import UserError
from toolkit.stacking.config import Growth
from toolkit.stacking.zoo_networks import grow_network, grow_saved_network
from toolkit.zoo import load
from toolkit.zoo.disco.encoders import ViTEncoder
from toolkit.zoo.disco.prior import AutoregressivePrior
from toolkit.zoo.edm.mlp import MLPDenoiser


@pytest.fixture
def prior():
    torch.manual_seed(0)
    network = AutoregressivePrior(num_latents=4, codebook_size=5, width=16, depth=2, num_heads=2, num_classes=3).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


CODES, LABELS = torch.tensor([[0, 1, 2, 3], [4, 0, 4, 1]]), torch.tensor([2, 0])


def change(network, grown):
    with torch.no_grad():
        return (grown(CODES, LABELS) - network(CODES, LABELS)).abs().max().item()


def test_stack_copies_blocks_and_saves_as_any_network(prior, tmp_path):
    network, grown = grow_network(prior, Growth(operator="stack", factor=3))
    assert network.config.depth == 6
    assert grown.sources == [0, 1] * 3
    for i, block in enumerate(network.body.blocks):
        for name, tensor in block.state_dict().items():
            assert torch.equal(tensor, prior.body.blocks[i % 2].state_dict()[name])
    network.save_pretrained(tmp_path)
    assert change(network, load(tmp_path)) == 0
    drawn = network.sample(2, LABELS, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 4)


def test_a_saved_network_grows_into_a_folder(prior, tmp_path):
    prior.save_pretrained(tmp_path / "prior")
    growth = Growth(operator="zero", factor=2)
    report = grow_saved_network(str(tmp_path / "prior"), tmp_path / "out", growth)
    assert report["function"]["verdict"] == "exact"
    assert report["source_layers"] == [0, 0, 1, 1]
    assert load(tmp_path / "out").config.depth == 4
    with pytest.raises(UserError, match="not an empty folder"):
        grow_saved_network(str(tmp_path / "prior"), tmp_path / "out", growth)


def test_silent_copies_change_nothing(prior):
    assert change(prior, grow_network(prior, Growth(operator="zero", factor=2))[0]) == 0


def test_direct_width_is_exact_under_layer_norm(prior):
    network, _ = grow_network(prior.double(), Growth(operator="direct", direction="width", factor=2))
    assert (network.config.width, network.config.num_heads) == (32, 4)
    with torch.no_grad():
        assert change(prior, network.double()) < 1e-5


def test_the_encoder_grows_too(tmp_path):
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "num_latents": 2, "codebook_size": 5}
    encoder = ViTEncoder(**sizes, width=16, depth=2, num_heads=2).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        before = encoder(images)
        silent, _ = grow_network(encoder, Growth(operator="zero", factor=3))
        assert torch.equal(silent(images), before)
        wide, _ = grow_network(encoder, Growth(operator="direct", direction="width", factor=2))
        assert relative_change(wide(images), before) < 1e-5
    encoder.save_pretrained(tmp_path / "encoder")
    report = grow_saved_network(str(tmp_path / "encoder"), tmp_path / "out", Growth(operator="zero", factor=2))
    assert report["function"]["verdict"] == "exact"
    assert load(tmp_path / "out").config.depth == 4


def test_learned_and_fresh_growth(prior):
    stacked, _ = grow_network(prior, Growth(operator="stack", factor=2))
    assert change(stacked, grow_network(prior, Growth(operator="learn", factor=2))[0]) == 0
    assert grow_network(prior, Growth(operator="learn", direction="width", factor=2))[0].config.width == 32
    assert change(prior, grow_network(prior, Growth(operator="random", factor=2))[0]) > 1e-3


def test_refusals(prior):
    for operator in ("zero", "random"):
        with pytest.raises(UserError, match="LayerNorm"):
            grow_network(prior, Growth(operator=operator, direction="width", factor=2))
    with pytest.raises(UserError, match="always four times"):
        grow_network(prior, Growth(operator="direct", direction="width", factor=2, intermediate_size=130))
    with pytest.raises(UserError, match="MLPDenoiser: not a Transformer"):
        grow_network(MLPDenoiser(sample_shape=(2,)), Growth(factor=2))
