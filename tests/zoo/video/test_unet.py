"""The video UNet and its control network: no-op at the start, conditions where they belong, one pass for many texts."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet3DConditionModel
from torch import nn

from toolkit import zoo
from toolkit.zoo.video import layers as video_layers
from toolkit.zoo.video.controlled_unet import ControlledVideoUNet, index_of_keys
from toolkit.zoo.video.controlnet import VideoControlNetModel, zeroed
from toolkit.zoo.video.unet import VideoUNet

TINY = {
    "block_out_channels": (16, 32),
    "attention_levels": (True, False),
    "layers_per_block": 1,
    "cross_attention_dim": 8,
    "attention_head_dim": 8,
    "entry_heads": 2,
    "norm_num_groups": 8,
    "dropout": 0.0,
}


def randomised(network):
    """Every weight random, the zero-initialised ones too: nothing is hidden behind a zero."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.dim() > 1 else 0.3)
    return network.eval()


def make_pair(random_control=False, **changes):
    torch.manual_seed(0)
    unet = randomised(VideoUNet(**TINY | changes))
    control = VideoControlNetModel.from_unet(unet).eval()
    return ControlledVideoUNet.from_parts(unet, randomised(control) if random_control else control)


def inputs(frames=5, frame_factor=2, height=8, width=12, batch=2, text=3):
    torch.manual_seed(1)
    keys = (frames - 1) // frame_factor + 1
    index = torch.full((batch, frames), -1)
    index[:, ::frame_factor] = torch.arange(keys)
    x = torch.randn(batch, 4, frames, height, width)
    given = {"hint": torch.randn(batch, 4, keys, height, width), "key_frame_index": index}
    return x, torch.tensor([700, 20][:batch]), torch.randn(batch, text, 8), given


@torch.no_grad()
@pytest.mark.parametrize("frame_factor", [1, 2, 3, 8])
@pytest.mark.parametrize(("scale", "noise_level"), [(1.0, 0), (2.37, 150.5), (8.0, 299)])
def test_a_new_control_network_changes_nothing(frame_factor, scale, noise_level):
    pair = make_pair()
    x, t, y, given = inputs(frames=9, frame_factor=frame_factor, height=4, width=4)
    assert torch.equal(pair(x, t, y), pair(x, t, y, t_hint=noise_level, up_scale=scale, **given))


def test_it_starts_as_a_copy_of_the_encoder_and_shares_nothing():
    pair = make_pair()
    base, control = pair.unet.state_dict(), pair.controlnet.state_dict()
    shared = base.keys() & control.keys()
    assert all(torch.equal(base[name], control[name]) for name in shared)
    assert not {base[name].data_ptr() for name in shared} & {control[name].data_ptr() for name in shared}
    new = {name.split(".")[0] for name in control.keys() - base.keys()}
    assert new == {
        "cond_conv_in", "noise_proj", "scale_embedding", "controlnet_down_blocks", "controlnet_mid_block"
    }  # fmt: skip


def test_gradients_reach_zero_convolutions_first_then_every_control_weight_and_never_the_base():
    pair = make_pair().requires_grad_(False)
    pair.controlnet.requires_grad_(True).train()
    x, t, y, given = inputs()
    optimizer = torch.optim.Adam(pair.controlnet.parameters(), lr=1e-2)
    moved = []
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        (pair(x, t, y, t_hint=9, up_scale=2, **given) - x).square().mean().backward()
        moved.append({name for name, one in pair.controlnet.named_parameters() if one.grad.abs().sum() > 0})
        optimizer.step()
    assert {name.split(".")[0] for name in moved[0]} == {"controlnet_down_blocks", "controlnet_mid_block"}
    still = {name for name, _ in pair.controlnet.named_parameters()} - moved[2]
    assert {name.rsplit(".", 1)[0] for name in still} <= {"scale_embedding.linear_1"}  # one step behind its zero layer
    assert all(parameter.grad is None for parameter in pair.unet.parameters())


@torch.no_grad()
def test_noise_level_and_scale_are_told_to_key_frames_only():
    control = make_pair(random_control=True).controlnet
    index = torch.tensor([[0, -1, -1, 1, -1, -1, 2]])
    is_key = index[0] >= 0
    before = control.embed_conditions(500, 100, 4.0, index)
    for noise_level, scale in ((250, 4.0), (100, 4.5)):
        changed = (control.embed_conditions(500, noise_level, scale, index) != before).any(dim=-1)[0]
        assert torch.equal(changed, is_key)
    assert torch.equal(before[:, ~is_key], control.embed_time(500, 1).expand(1, 4, -1))


@torch.no_grad()
@pytest.mark.parametrize(("conditioning", "told"), [("shared", True), ("none", False)])
def test_the_other_ways_of_conditioning(conditioning, told):
    unet = VideoUNet(**TINY)
    control = randomised(VideoControlNetModel.from_unet(unet, conditioning=conditioning))
    index = torch.tensor([[0, -1, 1]])
    one, other = (control.embed_conditions(500, 100, scale, index).expand(1, 3, -1) for scale in (2.0, 4.0))
    assert torch.equal(one != other, torch.full_like(one, told, dtype=torch.bool) & (one != other))
    assert (one != other).any(dim=-1).all() == told


@pytest.mark.processor
@torch.no_grad()
def test_hints_that_no_frame_names_change_nothing():
    # in float64: layers that see more hints round otherwise
    pair = make_pair(random_control=True).double()
    x, t, y, given = inputs(frames=5, frame_factor=2)
    x, y, hint, index = x.double(), y.double(), given["hint"].double(), given["key_frame_index"]
    output = pair(x, t, y, hint=hint, key_frame_index=index)
    more = torch.cat([torch.randn_like(hint[:, :, :1]), hint, torch.randn_like(hint[:, :, :1])], dim=2)
    moved = torch.where(index >= 0, index + 1, -1)
    torch.testing.assert_close(pair(x, t, y, hint=more, key_frame_index=moved), output)
    assert (pair(x, t, y, hint=more, key_frame_index=index) - output).abs().max() > 0.01


@pytest.mark.processor
@torch.no_grad()
def test_many_texts_in_one_pass_equal_one_after_the_other():
    pair = make_pair(random_control=True)
    x, t, y, given = inputs()
    other = torch.randn_like(y)
    both = pair(x, t, torch.stack([y, other], dim=1).flatten(0, 1), t_hint=9, up_scale=2, **given)
    for index, text in enumerate((y, other)):
        alone = pair(x, t, text, t_hint=9, up_scale=2, **given)
        torch.testing.assert_close(both[index::2], alone, atol=2e-5, rtol=1e-4)


def test_slices_gradients_and_checkpointing_change_nothing(monkeypatch):
    pair = make_pair(random_control=True)
    x, t, y, given = inputs()
    with torch.no_grad():
        whole = pair(x, t, y, **given)
        monkeypatch.setitem(video_layers.SLICE_NUMEL, "cpu", 1)
        torch.testing.assert_close(pair(x, t, y, **given), whole, atol=2e-5, rtol=1e-4)
    trained = pair(x, t, y, **given)
    torch.testing.assert_close(trained, whole, atol=2e-5, rtol=1e-4)
    trained.square().mean().backward()
    gradient = pair.controlnet.conv_in.weight.grad.clone()
    pair.zero_grad()
    pair.unet.enable_gradient_checkpointing()
    pair.controlnet.enable_gradient_checkpointing()
    pair(x, t, y, **given).square().mean().backward()
    torch.testing.assert_close(pair.controlnet.conv_in.weight.grad, gradient)


def test_autocast_gives_the_same_with_and_without_gradients():
    """Products into an existing array, which save memory without gradients, are not what autocast casts."""
    pair = make_pair(random_control=True)
    x, t, y, given = inputs(height=4, width=4)
    with torch.autocast("cpu", torch.bfloat16):
        with_gradients = pair(x, t, y, **given).detach()
        with torch.no_grad():
            without = pair(x, t, y, **given)
    exact = pair(x, t, y, **given).detach()
    assert (without - with_gradients).abs().max() < 0.05 * exact.abs().max()
    assert (without - exact).abs().max() < 0.2 * exact.abs().max()


@pytest.mark.processor
@torch.no_grad()
def test_diffusers_own_network_gives_the_same():
    torch.manual_seed(0)
    theirs = randomised(
        UNet3DConditionModel(
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            layers_per_block=1,
            cross_attention_dim=8,
            attention_head_dim=8,
            norm_num_groups=8,
        )
    )
    x, t, y, _ = inputs()
    ours = VideoUNet.from_diffusers(theirs).eval()(x, t, y)
    torch.testing.assert_close(ours, theirs(x, t, y).sample, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(10, 8), (18, 16), (26, 24)])
def test_the_releases_padding_brings_sizes_back(height, width):
    levels = {"block_out_channels": (16, 16, 16, 16), "attention_levels": (False,) * 4}
    network = VideoUNet(**TINY | levels, asymmetric=True).eval()
    x = torch.randn(1, 4, 2, height, width)
    assert network(x, 5, torch.zeros(1, 1, 8)).shape == x.shape


@pytest.mark.parametrize(("height", "width"), [(8, 10), (16, 16), (18, 12), (12, 16)])
def test_the_releases_padding_refuses_other_sizes(height, width):
    levels = {"block_out_channels": (16, 16, 16, 16), "attention_levels": (False,) * 4}
    network = VideoUNet(**TINY | levels, asymmetric=True)
    with pytest.raises(ValueError, match=r"takes heights of 8 n \+ 2 and widths of 8 n"):
        network(torch.zeros(1, 4, 2, height, width), 5, torch.zeros(1, 1, 8))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(7, 9), (5, 4), (1, 3)])
def test_the_plain_padding_takes_any_size(height, width):
    pair = make_pair(random_control=True)
    x, t, y, given = inputs(height=height, width=width)
    output = pair(x, t, y, **given)
    assert output.shape == x.shape and output.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_frame_index": torch.tensor([[0, -1, 3, -1, 2]] * 2)}, "must lie in -1..2"),
        ({"key_frame_index": torch.zeros(2, 4, dtype=torch.int64)}, r"key_frame_index \(2, 4\): must be \(2, 5\)"),
        ({"hint": torch.zeros(2, 4, 3, 8, 8)}, "batch and size"),
        ({"mask_cond": torch.zeros(2, 5)}, "give one"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    x, t, y, given = inputs()
    with pytest.raises(ValueError, match=message):
        make_pair()(x, t, y, **given | change)


def test_saved_and_loaded_whole_and_in_parts(tmp_path):
    pair = make_pair(random_control=True)
    x, t, y, given = inputs()
    with torch.no_grad():
        expected = pair(x, t, y, **given)
        pair.save_pretrained(tmp_path / "pair")
        assert torch.equal(zoo.load(tmp_path / "pair")(x, t, y, **given), expected)
        pair.unet.save_pretrained(tmp_path / "unet")
        pair.controlnet.save_pretrained(tmp_path / "controlnet")
        again = ControlledVideoUNet.from_parts(zoo.load(tmp_path / "unet"), zoo.load(tmp_path / "controlnet"))
        assert torch.equal(again(x, t, y, **given), expected)


def test_published_sizes():
    for name, parameters in (("venhancer", 2_044_809_796), ("venhancer_base", 1_411_233_860)):
        assert zoo.registry.count_parameters(zoo.registry.build_on_meta(name)) == parameters


def test_zeroed_really_is():
    assert not any(parameter.any() for parameter in zeroed(nn.Linear(2, 2)).parameters())


def test_a_mask_numbers_its_key_frames_from_nought():
    mask = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 1, 1, 0]])
    assert index_of_keys(mask).tolist() == [[0, -1, -1, 1, 2], [-1, 0, -1, -1, 1]]


@torch.no_grad()
def test_every_residual_is_scaled_by_the_conditioning_scale():
    x, t, y, given = inputs()
    control = make_pair(random_control=True).controlnet
    arguments = (x, t, y, given["hint"], given["key_frame_index"], 100, 2.0)
    whole, half = (control(*arguments, conditioning_scale=scale) for scale in (1.0, 0.5))
    for one, other in zip([*whole[0], whole[1]], [*half[0], half[1]], strict=True):
        torch.testing.assert_close(other, 0.5 * one)


@torch.no_grad()
def test_the_control_network_is_told_what_the_key_frames_are():
    """Their noise and scale beside the clip's own time; without an index every frame is a key frame."""
    pair, (x, t, y, given) = make_pair(random_control=True), inputs()
    told, forward = [], pair.controlnet.forward
    pair.controlnet.forward = lambda *args, **keys: told.append((args, keys)) or forward(*args, **keys)
    pair(x, t, y, t_hint=150, up_scale=3.0, conditioning_scale=0.5, **given)
    (args, keys) = told.pop()
    assert args[1] is t and args[5:] == (150, 3.0) and keys == {"conditioning_scale": 0.5}
    assert args[3] is given["hint"] and torch.equal(args[4], given["key_frame_index"])
    pair(x, t, y, hint=torch.zeros_like(x))
    assert told.pop()[0][4].tolist() == [list(range(5))] * 2
