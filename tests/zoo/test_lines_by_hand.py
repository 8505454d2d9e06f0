"""What is counted of a network and recomputed, numbers of official weights, time's direction in video layers."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from toolkit.zoo import counting, loading
from toolkit.zoo.checkpointing import CheckpointedBlock, checkpoint_activations, checkpointed_blocks
from toolkit.zoo.counting import count_flops, count_parameters
from toolkit.zoo.edm import import_edm, import_edm2
from toolkit.zoo.edm.import_edm import _interleave, _regroup
from toolkit.zoo.video import layers
from toolkit.zoo.video.import_venhancer import RELEASE, _arguments
from toolkit.zoo.video.unet import VideoUNet


def test_a_multiply_add_is_two_operations():
    """Two rows of 3 numbers to 4: 24 multiply-adds; a 3 x 3 convolution of 2 to 5 channels on 4 x 4: 1440."""
    assert count_flops(nn.Linear(3, 4), {"input": torch.zeros(2, 3)}) == 48
    assert count_flops(nn.Conv2d(2, 5, 3, padding=1), {"input": torch.zeros(1, 2, 4, 4)}) == 2 * 1440
    norm = nn.BatchNorm1d(3)
    assert count_parameters(norm, None, nn.Linear(3, 4)) == 6 + 16  # no buffers


@pytest.mark.parametrize(
    ("offline", "proxy", "answers", "wanted"),
    [(True, "p", True, False), (False, "p", False, True), (False, None, True, True), (False, None, False, False)],
)
def test_the_hub_is_asked_unless_it_is_off_or_behind_a_proxy(monkeypatch, offline, proxy, answers, wanted):
    def connect(address, timeout):
        if not answers:
            raise OSError
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": proxy} if proxy else {})
    monkeypatch.setattr("socket.create_connection", connect)
    assert loading.hub_answers() is wanted


@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize(("part", "of_part"), [(None, {}), ("denoiser", {"subfolder": "denoiser"})])
def test_the_hubs_cache_alone_is_read_where_it_cannot_be_reached(monkeypatch, reachable, part, of_part):
    read = []

    def load_config(name, **where):
        read.append((name, where))
        return {"_class_name": "ADMUNet"}

    monkeypatch.setattr(loading, "hub_answers", lambda: reachable)
    monkeypatch.setattr(loading, "_fetch_world_model", lambda name, offline: read.append((name, offline)))
    monkeypatch.setattr("toolkit.zoo.edm.denoiser.Denoiser.load_config", load_config)
    monkeypatch.setattr(loading, "_load_strictly", lambda kind, name, **where: (kind.__name__, name, where))
    where = {"local_files_only": not reachable} | of_part
    assert loading._load_hub("me/net", part) == ("ADMUNet", "me/net", where)
    asked_for_worlds = [] if part else [("me/net", not reachable)]  # one part of a run is no world
    assert read == [*asked_for_worlds, ("me/net", where)]


class Counting(CheckpointedBlock):
    """x^2, and how often it was computed."""

    times = 0

    def forward(self, x):
        self.times += 1
        return x * x


@pytest.mark.parametrize(("again", "times"), [(False, 1), (True, 2)])
def test_a_block_is_computed_again_in_the_backward_pass(again, times):
    network = nn.Sequential(Counting())
    if again:
        checkpoint_activations(network)
    x = torch.tensor([3.0], requires_grad=True)
    network(x).backward()
    assert x.grad.tolist() == [6] and network[0].times == times and checkpointed_blocks(network) == [network[0]]
    with torch.no_grad():
        network(x)
    assert network[0].times == times + 1


def test_edms_rows_of_attention_are_by_head_then_channel_then_kind():
    """Two heads of two channels: official row (head, channel, q|k|v) 0..11."""
    official = torch.arange(12)[:, None]
    ours = _regroup(official, 2)
    assert ours.flatten().tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]  # all q, all k, all v
    assert torch.equal(_interleave(ours, 2), official)


def test_edm2s_latents_have_the_official_encoders_statistics(monkeypatch):
    """Mean and deviation of Stable Diffusion's four channels; ``res_balance`` is of blocks."""
    given = {}
    monkeypatch.setattr(import_edm2, "EDM2UNet", lambda **keys: given.update(keys) or nn.Identity())
    monkeypatch.setattr(import_edm2, "build_on_meta", lambda make, *_: make())
    config = {"img_resolution": 64, "img_channels": 4, "label_dim": 1000, "res_balance": 0.4, "attn_balance": 0.4}
    import_edm2._build(config | {"concat_balance": 0.6, "use_fp16": True}, {}, None)
    assert given == {
        "image_size": 64, "in_channels": 4, "num_classes": 1000, "block_balance": 0.4, "concat_balance": 0.6,
        "latents_mean": [5.81, 3.25, 0.12, -2.15], "latents_std": [4.17, 4.62, 3.71, 3.28],
    }  # fmt: skip
    given.clear()
    import_edm2._build({"img_resolution": 32, "img_channels": 3, "label_dim": 0}, {}, None)
    assert given == {"image_size": 32, "in_channels": 3, "num_classes": 0}


def test_venhancers_attention_is_at_the_scales_that_its_config_names():
    """Halved level by level: scales 1, 1/2 and 1/4 are the first three of four."""
    made = _arguments(RELEASE)
    assert made["unet_config"]["attention_levels"] == [True, True, True, False]
    assert made["unet_config"]["block_out_channels"] == [320, 640, 1280, 1280]
    half = _arguments(RELEASE | {"attn_scales": [0.5, 0.125]})
    assert half["controlnet_config"]["attention_levels"] == [False, True, False, True]


@pytest.mark.parametrize("gradient", [True, False])
def test_a_convolution_over_frames_sees_the_frame_before_and_the_frame_after(gradient):
    conv = nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0))
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([100.0, 10.0, 1.0]).view(1, 1, 3, 1, 1))
        conv.bias.fill_(0.5)
    frames = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1)
    with torch.set_grad_enabled(gradient):
        made = layers._conv_over_frames(conv, frames)
    assert made.flatten().tolist() == [12.5, 123.5, 230.5]


@torch.no_grad()
def test_norms_of_frames_and_of_clips_have_their_own_statistics():
    """Frames of values -1, 1 and 9, 11: each its own mean of 0 or 10, or 5 for both and a variance of 26."""
    norm = nn.GroupNorm(1, 1, eps=1e-6)
    x = torch.tensor([[-1.0, 1.0], [9.0, 11.0]]).view(1, 2, 1, 2, 1)
    of_clip = (x - 5) / 26**0.5
    torch.testing.assert_close(layers.norm_frames(norm, x).flatten(), torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    torch.testing.assert_close(layers.norm_clip(norm, x), of_clip)
    layer, seen = nn.Module(), []
    for name in ("conv1", "conv2", "conv3", "conv4"):
        conv = nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0))
        nn.init.zeros_(conv.weight), nn.init.zeros_(conv.bias)
        setattr(layer, name, nn.Sequential(norm, nn.SiLU(), conv))
    nn.init.ones_(layer.conv4[2].bias)
    layer.conv1[1].register_forward_hook(lambda module, given, out: seen.append(given[0]))
    torch.testing.assert_close(layers.temporal_conv(layer, x), x + 1)
    torch.testing.assert_close(seen[0], of_clip)  # of the clip, also in a temporal convolution


@torch.no_grad()
def test_a_block_of_frames_drops_out_before_its_last_convolution():
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=8, temb_channels=6, groups=4, dropout=1.0).train()
    x, temb = torch.randn(1, 2, 3, 4, 8), torch.randn(1, 2, 6)
    torch.testing.assert_close(layers.resnet(block, x, temb), x + block.conv2.bias)
    assert not torch.allclose(layers.resnet(block.eval(), x, temb), x + block.conv2.bias, atol=0.01)


@torch.no_grad()
def test_what_odd_padding_added_is_dropped_at_either_end():
    """Two rows of padding in front make a row too many above and below after doubling."""
    module = nn.Module()
    module.conv = nn.Conv2d(1, 1, 1)
    nn.init.ones_(module.conv.weight), nn.init.zeros_(module.conv.bias)
    x = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1, 1)
    assert layers.upsample(module, x, (4, 2), crop=True)[0, 0, :, 0, 0].tolist() == [1, 2, 2, 3]
    assert layers.upsample(module, x, (5, 2), crop=False).shape == (1, 1, 5, 2, 1)


def test_a_new_video_network_says_nothing_and_drops_out_what_it_is_told_to():
    network = VideoUNet(
        block_out_channels=(16, 16), attention_levels=(True, False), layers_per_block=1, cross_attention_dim=8,
        attention_head_dim=8, entry_heads=2, norm_num_groups=8, dropout=0.3,
    )  # fmt: skip
    assert network.conv_out.weight.abs().sum() == 0
    parts = [*network.down_blocks, *network.up_blocks, network.mid_block]
    dropouts = {
        one.p for part in parts for block in [*part.resnets, *part.temp_convs] for one in block.modules()
        if isinstance(one, nn.Dropout)
    }  # fmt: skip
    assert dropouts == {0.3}


def test_what_edms_config_leaves_out_is_the_releases_default(monkeypatch):
    """Four levels of widths 1, 2, 2, 2 where ours has three."""
    given = {}
    _, *rest = import_edm._NETWORKS["SongUNet"]
    monkeypatch.setitem(import_edm._NETWORKS, "SongUNet", (lambda **keys: given.update(keys), *rest))
    monkeypatch.setattr(import_edm, "build_on_meta", lambda make, *_: make())
    config = {"model_type": "SongUNet", "img_resolution": 32, "img_channels": 3, "label_dim": 10, "use_fp16": True}
    import_edm._build_edm(config, None, {})
    assert given == {"image_size": 32, "in_channels": 3, "num_classes": 10, "channel_mult": [1, 2, 2, 2]}
    import_edm._build_edm(config | {"channel_mult": [2, 2]}, None, {})
    assert given["channel_mult"] == [2, 2]


def test_a_text_in_the_place_of_weights_is_called_no_file_of_torch(tmp_path):
    """The error is the first letter, as an operation of pickle that there is not."""
    from toolkit.zoo.importing import load_tensors

    (tmp_path / "weights.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"torch\.save writes no such file \(KeyError: 101\)"):
        load_tensors(tmp_path / "weights.pt")


def test_a_published_world_model_is_counted_with_its_actions(monkeypatch):
    parts = {"target": "x", "config": {"width": 8}}
    monkeypatch.setattr(counting, "NAMED", {"net": SimpleNamespace(**parts)})
    monkeypatch.setattr(counting, "resolve", lambda target: dict)
    monkeypatch.setattr(counting, "build_on_meta", lambda name: name)
    for numbers, told in ((7, 7), (0, None)):
        one = SimpleNamespace(transformer="net", tokenizer="coder", action_dim=numbers)
        monkeypatch.setattr(counting, "PUBLISHED", {"a": one})
        found = counting.published_parts("a")
        assert found == {"tokenizer": "coder", "transformer": {"width": 8, "action_dim": told}}
