"""Muon: what a step is made of, against singular value decompositions."""

import copy

import pytest
import torch
from torch import nn

from toolkit.venhancer.train.muon import Muon, orthogonal, split


def singular(change, direction):
    """The singular values of ``change`` along the singular vectors of ``direction``; fails where it has others."""
    u, _, vh = torch.linalg.svd(direction.double().flatten(1), full_matrices=False)
    inside = u.T @ change.double().flatten(1) @ vh.T
    off = inside - torch.diag(inside.diag())
    assert off.abs().max() < 0.02 * inside.diag().abs().max()
    assert (u @ inside @ vh - change.flatten(1)).abs().max() < 1e-4  # and nothing outside of them
    return inside.diag()


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 100
    values = singular(orthogonal(matrix), matrix)
    assert values.min() > 0.65 and values.max() < 1.25
    assert (orthogonal(matrix) - orthogonal(matrix * 1e-3)).abs().max() < 1e-3  # whatever the gradient's size


@pytest.mark.parametrize(("shape", "longer"), [((8, 4, 3, 3), 1.0), ((72, 4, 1, 2), 3.0)])
def test_a_step_is_nesterovs_momentum_made_orthogonal(shape, longer):
    """A kernel's rows are its outputs; a tall matrix takes steps longer by the root of rows over columns."""
    torch.manual_seed(1)
    weight, first, second = nn.Parameter(torch.zeros(shape)), torch.randn(shape), torch.randn(shape)
    optimizer = Muon([weight], lr=0.01, momentum=0.9)
    weight.grad = first.clone()
    optimizer.step()
    one = weight.detach().clone()
    weight.grad = second.clone()
    optimizer.step()
    mean = 0.9 * 0.1 * first + 0.1 * second
    for change, direction in ((one, first), (weight.detach() - one, 0.1 * second + 0.9 * mean)):
        values = singular(-change / 0.01, direction) / longer
        assert values.min() > 0.65 and values.max() < 1.25


def test_what_has_no_gradient_stays_and_a_state_goes_on():
    torch.manual_seed(2)
    kernel, still = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
    optimizer, before, gradients = Muon([kernel, still], lr=0.1), still.detach().clone(), torch.randn(3, 4, 4)
    copies = None
    for number, gradient in enumerate(gradients):
        if number == 1:
            copies = (nn.Parameter(kernel.detach().clone()), copy.deepcopy(optimizer.state_dict()))
        kernel.grad = gradient.clone()
        optimizer.step()
    other = nn.Parameter(copies[0].detach())
    resumed = Muon([other, nn.Parameter(before.clone())], lr=0.1)
    resumed.load_state_dict(copies[1])
    for gradient in gradients[1:]:
        other.grad = gradient.clone()
        resumed.step()
    assert torch.equal(other, kernel) and torch.equal(still, before)


def test_momentum_is_jordans_where_none_is_given():
    assert Muon([nn.Parameter(torch.zeros(2, 2))], lr=0.1).defaults == {"lr": 0.1, "momentum": 0.95}


def test_kernels_are_what_is_no_bias_inside():
    network = nn.ModuleDict({"first": nn.Conv2d(3, 4, 3), "hidden": nn.Conv2d(4, 4, 3), "last": nn.Conv2d(4, 3, 3)})
    kernels, rest = split(network, [network["hidden"]])
    assert [id(one) for one in kernels] == [id(network["hidden"].weight)]
    assert len(rest) == 5 and not {id(one) for one in rest} & {id(one) for one in kernels}
