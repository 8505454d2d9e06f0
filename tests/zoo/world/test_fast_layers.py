"""Layers that do less work for the same answer: against the layers they replace, values and gradients."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional as F

from tests.zoo.world.nano_world import nano_clips, nano_tokenizer
from toolkit.zoo.world.fast_layers import Linear, Pointwise, Residual, UpsampledConv, WinogradConv, exchange_layers


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_doubling_and_convolution_in_one(memory_format):
    torch.manual_seed(0)
    plain = Upsample2D(6, use_conv=True, out_channels=6).double()
    ours = UpsampledConv(plain.conv)
    maps = torch.randn(2, 6, 5, 7).double().contiguous(memory_format=memory_format).requires_grad_()
    one, two = plain(maps), ours(maps)
    torch.testing.assert_close(two, one)
    inputs, grad = [maps, plain.conv.weight, plain.conv.bias], torch.randn_like(one)
    for a, b in zip(torch.autograd.grad(one, inputs, grad), torch.autograd.grad(two, inputs, grad), strict=True):
        torch.testing.assert_close(b, a)


def test_kept_kernels_follow_the_weights():
    torch.manual_seed(0)
    plain = Upsample2D(4, use_conv=True, out_channels=4)
    ours, maps = UpsampledConv(plain.conv), torch.randn(1, 4, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(ours(maps), plain(maps))
        plain.conv.weight.mul_(2.0)
        torch.testing.assert_close(ours(maps), plain(maps))
        plain.conv.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
        torch.testing.assert_close(ours(maps), plain(maps))


def test_layers_are_exchanged_with_their_parameters():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), Upsample2D(8, use_conv=True, out_channels=8), nn.Conv2d(8, 8, 3), nn.Linear(4, 2)
    )
    names, before = set(network.state_dict()), [one.data_ptr() for one in network.parameters()]
    maps = torch.randn(2, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    expected = network(maps)
    exchange_layers(network)
    assert [type(one) for one in network] == [Pointwise, UpsampledConv, nn.Conv2d, Linear]
    assert set(network.state_dict()) == names and [one.data_ptr() for one in network.parameters()] == before
    torch.testing.assert_close(network(maps), expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("num", "size", "bias"), [(1, (4, 4), True), (3, (8, 12), True), (5, (16, 16), False)])
@torch.no_grad()
def test_a_convolution_of_tiles(num, size, bias, memory_format):
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 80, 3, padding=1, bias=bias)
    maps = torch.randn(num, 64, *size).contiguous(memory_format=memory_format)
    expected = conv.double()(maps.double())
    conv.float().__class__ = WinogradConv
    error = (conv(maps) - expected).abs().max() / expected.std()
    assert 0 < error < 1e-4
    assert conv._kept is not None and conv._kept[1].shape == (36, 64, 80)
    with torch.no_grad():
        conv.weight.mul_(2.0)
    torch.testing.assert_close(conv(maps), F.conv2d(maps, conv.weight, conv.bias, padding=1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", ["gradient", "float64", "odd"])
def test_other_convolutions_stay_as_they_are(case):
    conv, maps = nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 8, 8)
    if case == "float64":
        conv, maps = conv.double(), maps.double()
    if case == "odd":
        maps = maps[..., :7]
    with torch.set_grad_enabled(case == "gradient"):
        expected = conv(maps)
        conv.__class__ = WinogradConv
        assert torch.equal(conv(maps), expected)
    assert conv._kept is None


@pytest.mark.parametrize("channels", [16, 24])
def test_a_block_without_its_division(channels):
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=16, out_channels=channels, temb_channels=None, groups=8).double()
    maps = torch.randn(2, 16, 4, 4).double().requires_grad_()
    expected, before = block(maps, None), maps.detach().clone()
    exchange_layers(holder := nn.Sequential(block))
    assert type(holder[0]) is Residual
    torch.testing.assert_close(holder[0](maps, None), expected)
    grad = torch.randn_like(expected)
    one, two = (torch.autograd.grad(out, [maps, *block.parameters()], grad) for out in (expected, block(maps, None)))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(b, a)
    with torch.no_grad():
        torch.testing.assert_close(block(maps, None), expected)
    assert torch.equal(maps, before)


def test_only_plain_convolutions_of_many_channels_become_tiles():
    convs = [
        nn.Conv2d(64, 64, 3, padding=1),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, 2, 1),
        nn.Conv2d(8, 8, 3, 1, 1),
    ]
    exchange_layers(network := nn.Sequential(*convs), winograd=True)
    assert [type(one) for one in network] == [WinogradConv, nn.Conv2d, nn.Conv2d, nn.Conv2d]


@torch.no_grad()
def test_memory_layout_changes_no_answer():
    plain, last = nano_tokenizer().double(), nano_tokenizer().double().to(memory_format=torch.channels_last)
    frames = nano_clips()[0]
    tokens = plain.tokenize(frames)
    assert torch.equal(last.tokenize(frames), tokens)
    torch.testing.assert_close(last.detokenize(tokens), plain.detokenize(tokens))
    torch.testing.assert_close(last.detokenize(tokens[:1]), plain.detokenize(tokens[:1]))
    assert last.fingerprint() == plain.fingerprint()
