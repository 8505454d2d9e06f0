"""All that trains, samples and guides, on a pretended card: nothing of it mixes devices. No GPU is needed.

Not collected by name: test_without_a_card.py runs this file in a process of its own, since autograd takes no device
that comes after its first backward pass.
"""

from functools import partial

import pytest
import torch

from tests.device.card import CARD, pretended_card, to_card
from tests.plan.test_command import SMOKE, shapes
from tests.zoo.world.nano_world import SIZE, nano_world
from toolkit.disco.config import Sampling
from toolkit.disco.sampling import draw_samples
from toolkit.icg import CombinedGuidance, IndependentConditionGuidance, TimeStepGuidance, guided_denoiser
from toolkit.icg.guiders.projection import Projection
from toolkit.icg.guiders.streams import Draws
from toolkit.metrics import turning
from toolkit.plan.command import TRAINING
from toolkit.venhancer.train.augment import degrade
from toolkit.zoo import precision
from toolkit.zoo.disco.prior import AutoregressivePrior, MarginalPrior
from toolkit.zoo.edm.mlp import MLPDenoiser
from toolkit.zoo.edm.noise import SampleNoise
from toolkit.zoo.edm.samplers import edm_sigmas, heun, heun_churn
from toolkit.zoo.edm.unet import ADMUNet, SongUNet

STAGES = [
    ("train-disco", "denoiser"),
    ("train-disco", "baseline"),
    ("train-disco", "prior"),
    ("train-ivideogpt", "tokenizer"),
    ("train-ivideogpt", "transformer"),
    ("grow-llm", "scratch"),
    ("enhance-video", "train"),
]
CODES, LATENTS, CLASSES = 4, 3, 5


def test_devices_are_not_mixed():
    """The check itself: what a GPU refuses is refused, what it takes is taken."""
    with pretended_card():
        here, there = torch.ones(3), torch.ones(3, device=CARD)
        with pytest.raises(RuntimeError, match="two devices"):
            here + there
        with pytest.raises(RuntimeError, match="generator of cpu"):
            torch.randn(3, device=CARD, generator=torch.Generator())
        assert (here.to(CARD) + there + torch.tensor([1.0, 2.0, 3.0], device=CARD)).device.type == CARD
        assert (there * torch.tensor(2.0)).device.type == CARD and float(there.sum()) == 1.0
        assert there[torch.tensor([0, 2])].shape == (2,)


@pytest.mark.parametrize(("command", "stage"), STAGES, ids=lambda one: str(one))
def test_a_training_step(command, stage):
    shape = next(one for one in shapes(command) if one.name == stage)
    networks = shape.build()
    with pretended_card():
        to_card(networks.trained, *networks.frozen, *networks.averaged)
        loss = networks.loss(2)
        loss.backward()
        trained = [one for one in networks.trained.parameters() if one.requires_grad]
        assert loss.device.type == CARD and {one.grad.device.type for one in trained} == {CARD}
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        torch.optim.AdamW(trained, fused=True).step()


def test_every_training_command_is_among_them():
    assert {command for command, _ in STAGES} == set(TRAINING) == set(SMOKE)


def test_clips_are_degraded_where_they_are():
    """Scales and levels are drawn on the processor, whatever the device."""
    from toolkit.venhancer.model.conditioning import Fill

    with pretended_card():
        clips = torch.zeros(2, 3, 3, 16, 16, dtype=torch.uint8, device=CARD)
        batch = degrade(clips, 2, torch.tensor([2.0, 4.0]), torch.tensor([0, 100]), Fill())
        assert {one.device.type for one in (batch.clean, batch.keys, batch.fill)} == {CARD}


def unet(cls, **keys):
    sizes = {"image_size": 8, "in_channels": 1, "model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1}
    return cls(num_classes=CLASSES, attn_resolutions=(4,), **sizes, **keys).eval()


def mlp():
    keys = {"num_classes": CLASSES, "num_latents": LATENTS, "codebook_size": CODES}
    return MLPDenoiser(sample_shape=(2,), width=16, depth=2, **keys).eval()


def noise(num=4):
    return SampleNoise(0, range(num), CARD)


@pytest.mark.parametrize("solver", ["heun", "churn"])
def test_a_sampler_with_latents_and_classes(solver):
    denoiser, sampling = mlp(), Sampling(solver=solver, num_steps=4, cfg_scale=1.0, batch_size=2)
    with pretended_card():
        to_card(denoiser)
        latents = torch.randint(CODES, (4, LATENTS), device=CARD)
        labels = torch.arange(4, device=CARD)
        samples, _ = draw_samples(denoiser, latents, 4, sampling, noise(), labels)
        assert samples.device.type == CARD and samples.shape == (4, 2)


@pytest.mark.parametrize(
    "prior",
    [
        lambda: AutoregressivePrior(LATENTS, CODES, width=16, depth=1, num_heads=2, num_classes=CLASSES),
        lambda: MarginalPrior(LATENTS, CODES, CLASSES),
    ],
    ids=["autoregressive", "marginal"],
)
def test_latents_are_drawn(prior):
    made = prior().eval()
    with pretended_card():
        to_card(made)
        drawn = made.sample(4, class_labels=torch.arange(4, device=CARD), generator=noise())
        assert drawn.device.type == CARD and drawn.shape == (4, LATENTS)


@pytest.mark.parametrize("network", [mlp, lambda: unet(ADMUNet), lambda: unet(SongUNet)], ids=["mlp", "adm", "song"])
@pytest.mark.parametrize(
    "guider",
    [
        lambda: IndependentConditionGuidance(2.0),
        lambda: IndependentConditionGuidance(2.0, exclude_own=True, num_draws=2),
        lambda: TimeStepGuidance(2.0),
        lambda: CombinedGuidance([IndependentConditionGuidance(2.0), TimeStepGuidance(2.0)]),
    ],
    ids=["icg", "icg of two others", "tsg", "both"],
)
def test_a_guider(guider, network):
    denoiser = network()
    with pretended_card():
        to_card(denoiser)
        given = {"class_labels": torch.arange(3, device=CARD)}
        if denoiser.num_latents:
            given["latents"] = torch.zeros(3, LATENTS, dtype=torch.int64, device=CARD)
        x = torch.randn(3, *denoiser.shape, device=CARD)
        denoise = guided_denoiser(denoiser, guider(), **given)
        assert denoise(x, 1.0).device.type == denoise(x, 0.5).device.type == CARD


def test_a_world_is_imagined_and_forked():
    world = nano_world(dtype=torch.float32, has_reward=True)
    with pretended_card():
        to_card(world.tokenizer, world.transformer)
        state = world.begin(torch.zeros(2, 2, SIZE, SIZE, 3, dtype=torch.uint8), seeds=7)
        preds = world.rollout(state, torch.zeros(2, 3, 3))
        assert {one.device.type for one in (preds.frames, preds.tokens, preds.rewards)} == {CARD}
        assert world.rollout(preds.state.fork(2), torch.zeros(4, 1, 3)).frames.shape == (4, 1, SIZE, SIZE, 3)


@pytest.fixture
def no_float64(monkeypatch):
    """The card as MPS is: whoever asks for the widest numbers gets float32, and float64 is an error."""
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", ("mps", CARD))
    with pretended_card(has_float64=False):
        yield


def test_float64_is_refused_where_there_is_none(no_float64):
    with pytest.raises(TypeError, match="float64 on a device that has none"):
        torch.ones(2, device=CARD).double()
    assert torch.ones(2, device=CARD).cpu().double().dtype == torch.float64


def square(x, sigma):
    return x * x


def test_paths_are_followed_where_there_is_no_float64(no_float64):
    x = torch.randn(3, 2, device=CARD)
    path = turning.follow(square, x, turning.turning_grid(80.0, 0.5))
    assert {one.device.type for one in (path.turning, path.defect, path.x)} == {CARD}
    assert turning.curvature(square, x, 1.0).shape == turning.jacobian_norm(square, x, 1.0).shape == (3,)


@pytest.mark.parametrize("solver", [heun, partial(heun_churn, s_churn=1.0)], ids=["heun", "churn"])
def test_samples_are_drawn_where_there_is_no_float64(no_float64, solver):
    assert solver(square, torch.randn(3, 2, device=CARD), edm_sigmas(4)).dtype == torch.float32


def test_guiders_draw_and_project_where_there_is_no_float64(no_float64):
    ones = torch.ones(3, 4, device=CARD)
    assert Draws(0, "conditions").choices(ones, 2).shape == (3, 2)
    assert Projection(eta=0.5)(ones, ones, "").dtype == torch.float32
