"""Layers that do less work for the same answer: against the layers they replace, values and gradients."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn

from tests.zoo.world.nano_world import nano_clips, nano_tokenizer
from toolkit.zoo.world.fast_layers import Linear, Pointwise, UpsampledConv, exchange_layers


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


@torch.no_grad()
def test_memory_layout_changes_no_answer():
    plain, last = nano_tokenizer().double(), nano_tokenizer().double().to(memory_format=torch.channels_last)
    frames = nano_clips()[0]
    tokens = plain.tokenize(frames)
    assert torch.equal(last.tokenize(frames), tokens)
    torch.testing.assert_close(last.detokenize(tokens), plain.detokenize(tokens))
    torch.testing.assert_close(last.detokenize(tokens[:1]), plain.detokenize(tokens[:1]))
    assert last.fingerprint() == plain.fingerprint()
