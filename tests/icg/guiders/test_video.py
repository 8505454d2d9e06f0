"""The guiders on VEnhancer's network of the zoo, by the contract of diffusers' guiders: no pipeline is needed."""

import pytest
import torch
from torch import nn

from toolkit.icg import CombinedGuidance, IndependentConditionGuidance, TimeStepGuidance, find_time_embeddings
from toolkit.zoo.video.controlled_unet import ControlledVideoUNet
from toolkit.zoo.video.controlnet import VideoControlNetModel
from toolkit.zoo.video.unet import VideoUNet

ICG, TSG = IndependentConditionGuidance, TimeStepGuidance


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    sizes = {
        "block_out_channels": (16, 16),
        "attention_levels": (True, False),
        "layers_per_block": 1,
        "cross_attention_dim": 4,
        "attention_head_dim": 8,
    }
    unet = VideoUNet(in_channels=4, out_channels=4, entry_heads=1, norm_num_groups=4, dropout=0.0, **sizes)
    control = VideoControlNetModel.from_unet(unet)
    for parameter in [*unet.parameters(), *control.parameters()]:
        nn.init.normal_(parameter, std=0.1)
    return ControlledVideoUNet.from_parts(unet, control).eval()


@torch.no_grad()
def predict(network, guider, hint=True):
    """One guided prediction of velocity (1, 4, 3, 8, 8), and the calls it took."""
    draw = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 4, 3, 8, 8, generator=draw), torch.randn(1, 5, 4, generator=draw)
    more = {"hint": torch.randn(1, 4, 3, 8, 8, generator=draw)} if hint else {}
    guider.set_state(0, 10, 500.0)
    states = guider.prepare_inputs({"prompt_embeds": text})
    for state in states:
        guider.prepare_models(network)
        state.noise_pred = network(x, 500.0, state.prompt_embeds, **more)
        guider.cleanup_models(network)
    return guider(states).pred, len(states)


def test_the_time_embedding_is_the_base_networks(network):
    assert [name for name, _ in find_time_embeddings(network)] == ["unet.time_embedding"]
    assert [name for name, _ in find_time_embeddings(network.unet)] == ["time_embedding"]


@pytest.mark.parametrize(
    ("guider", "calls"), [(ICG(3.0), 2), (TSG(3.0), 2), (CombinedGuidance([ICG(2.0), TSG(2.0)]), 3)]
)
def test_guidance_changes_the_prediction_and_leaves_nothing_behind(network, guider, calls):
    plain, one = predict(network, TSG(1.0))
    guided, used = predict(network, guider)
    assert one == 1 and used == calls and not torch.equal(guided, plain)
    assert torch.equal(predict(network, TSG(1.0))[0], plain)
