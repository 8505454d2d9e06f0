"""The tokenizer's loss: groups weigh alike, movers count more, the adversarial term is balanced and bounded."""

import pytest
import torch
from torch.nn import functional as F

from tests.ivideogpt import tiny
from toolkit.errors import UserError
from toolkit.ivideogpt.config import TokenizerLoss
from toolkit.ivideogpt.train.losses import (
    MOST_GAN_WEIGHT,
    TokenizerObjective,
    emphasis,
    fakes,
    generator_loss,
    hinge,
    median,
)
from toolkit.ivideogpt.train.perceptual import GradientDistance, make_distance
from toolkit.zoo.lpips import LPIPS, _expected_shapes, load_lpips

CONTEXT, FUTURE = torch.rand(2, 1, 3, 16, 16), torch.rand(2, 2, 3, 16, 16)


def objective(perceptual=None, **keys):
    return TokenizerObjective(tiny.tokenizer(), TokenizerLoss(**keys), perceptual)


def test_terms_add_up_to_the_loss():
    made = objective(GradientDistance(), perceptual_weight=0.5)
    terms, found = made(CONTEXT, FUTURE, True)
    perceptual = terms["perceptual"] + terms["context_perceptual"]
    plain = terms["reconstruction"] + terms["context_reconstruction"] + terms["codebook"]
    assert torch.allclose(terms["loss"], plain + 0.5 * perceptual)
    assert torch.allclose(terms["reconstruction"], (found.sample - FUTURE).abs().mean())
    assert torch.allclose(terms["context_reconstruction"], (found.ref_sample - CONTEXT).abs().mean())


def test_without_quantising_there_is_no_codebook_term():
    assert "codebook" not in objective()(CONTEXT, FUTURE, False)[0]


def test_squared_errors_and_the_commitment_are_the_configs():
    terms, found = objective(reconstruction="l2")(CONTEXT, FUTURE, True)
    assert torch.allclose(terms["reconstruction"], (found.sample - FUTURE).square().mean())
    heavy, light = (objective(commitment=weight)(CONTEXT, FUTURE, True)[0]["codebook"] for weight in (1.0, 0.25))
    assert torch.allclose(light, heavy * 1.25 / 2)  # both parts are equal in value, one is weighed


def test_pixels_that_differ_from_the_reference_weigh_more():
    reference = torch.zeros(1, 1, 3, 4, 4)
    frames = torch.zeros(1, 2, 3, 4, 4)
    frames[0, 1, 1, 0, 0] = 0.5
    weight = emphasis(frames, reference, 8.0)
    assert weight.shape == (1, 2, 1, 4, 4) and weight[0, 1, 0, 0, 0] == 4 and weight.sum() == 4
    assert emphasis(frames, reference, 0.0) == 0


def test_the_median_of_a_frame_is_its_background():
    frames = torch.full((1, 2, 3, 4, 4), 0.3)
    frames[0, 1, :, :2, :2] = 0.9
    assert median(frames).shape == (1, 2, 3, 1, 1) and torch.equal(median(frames), torch.full((1, 2, 3, 1, 1), 0.3))


def test_movers_and_contrasts_weigh_more_in_the_loss():
    plain, moving, contrast = (
        objective(**keys)(CONTEXT, FUTURE, True)[0] for keys in ({}, {"motion_weight": 4}, {"contrast_weight": 4})
    )
    assert moving["reconstruction"] > 1.5 * plain["reconstruction"] < contrast["reconstruction"] / 1.5
    assert moving["context_reconstruction"] == plain["context_reconstruction"] < contrast["context_reconstruction"]


def discriminate(scale):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 1, 4, stride=4)
    layer.weight.data.mul_(scale)
    return layer


def test_the_adversarial_term_has_the_gradient_of_the_perceptual_one():
    made = objective(GradientDistance())
    terms, found = made(CONTEXT, FUTURE, True)
    last = made.tokenizer.cond_decoder.conv_out.weight
    wanted = torch.autograd.grad(terms["perceptual"], last, retain_graph=True)[0].norm()
    for scale in (1.0, 10.0):
        adversarial = generator_loss(discriminate(scale), found, terms, made.tokenizer)
        assert torch.allclose(torch.autograd.grad(adversarial, last, retain_graph=True)[0].norm(), wanted, rtol=1e-4)


def test_a_vanishing_adversarial_gradient_does_not_explode():
    made = objective()
    terms, found = made(CONTEXT, FUTURE, True)
    blind = discriminate(0.0)
    assert generator_loss(blind, found, terms, made.tokenizer).isfinite()
    size = generator_loss(blind, found, terms, made.tokenizer).detach().abs()
    assert size <= MOST_GAN_WEIGHT * blind.bias.detach().abs()


def test_the_discriminator_is_trained_on_a_hinge_and_leaves_the_tokenizer_alone():
    made = objective()
    _, found = made(CONTEXT, FUTURE, True)
    certain = lambda images: torch.full((len(images),), 2.0) if images.shape[0] == 6 else None  # noqa: E731
    real = torch.cat([CONTEXT.flatten(0, 1), FUTURE.flatten(0, 1)])
    assert hinge(certain, fakes(found), -1) == 3 and hinge(certain, real, 1) == 0  # fakes called real cost 1 + 2
    hinge(discriminate(1.0), fakes(found), -1).backward()
    assert all(parameter.grad is None for parameter in made.tokenizer.parameters())


def test_gradient_distance_sees_edges_and_not_brightness():
    x = torch.rand(3, 3, 16, 16)
    distance = GradientDistance()
    assert torch.allclose(distance(x, x), torch.zeros(3)) and torch.allclose(
        distance(x, x + 0.1), torch.zeros(3), atol=1e-5
    )
    blurred = F.avg_pool2d(x, 3, 1, 1)
    assert (distance(blurred, x) > 0.1).all() and "LPIPS" not in distance.name


def lpips_weights():
    rng = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(shape, generator=rng) * (0.1 if "lin" in name else 0.05)
        for name, shape in _expected_shapes().items()
    }


def test_lpips_is_read_from_its_files_and_behaves(tmp_path):
    weights = lpips_weights()
    torch.save({k: v for k, v in weights.items() if k.startswith("features.")}, tmp_path / "vgg16-397923af.pth")
    torch.save({f"{k}.model.1.weight": v for k, v in weights.items() if k.startswith("lin")}, tmp_path / "vgg.pth")
    distance = load_lpips(tmp_path)
    x = torch.rand(2, 3, 16, 16)
    assert torch.allclose(distance(x, x), torch.zeros(2)) and (distance(x, x.flip(-1)) > 0).all()
    assert torch.allclose(distance(x, x.flip(-1)), LPIPS(weights)(x, x.flip(-1)))
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_lpips_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(
        UserError, match=rf"^tokenizer_loss\.perceptual_path={tmp_path}: no tensor 'features\.0\.weight'"
    ):
        load_lpips(tmp_path)
    weights = lpips_weights() | {"lin2": torch.ones(1, 3, 1, 1)}
    torch.save(weights, tmp_path / "all.pth")
    with pytest.raises(UserError, match=r"'lin2' has shape \[1, 3, 1, 1\], expected \[1, 256, 1, 1\]"):
        load_lpips(tmp_path)
    (tmp_path / "all.pth").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"all\.pth: cannot be read as weights"):
        load_lpips(tmp_path)
    with pytest.raises(UserError, match="LPIPS needs its weights"):
        make_distance("lpips", None)
    with pytest.raises(UserError, match="no such folder, nor to be had from the hub"):
        load_lpips("nobody/nothing")
