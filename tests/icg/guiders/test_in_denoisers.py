"""Guidance on our own denoisers: classes, discrete latents, both; the samplers' ``denoise(x, sigma)``."""

import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.icg import CombinedGuidance, IndependentConditionGuidance, TimeStepGuidance, guided_denoiser
from toolkit.zoo.disco.prior import MarginalPrior
from toolkit.zoo.edm.mlp import MLPDenoiser, ToyScoreDenoiser
from toolkit.zoo.edm.samplers import edm_sigmas, heun
from toolkit.zoo.edm.unet import ADMUNet, SongUNet
from toolkit.zoo.edm.uvit import UViT

ICG, TSG = IndependentConditionGuidance, TimeStepGuidance
K, M, CODES, B = 5, 3, 4, 6


def mlp(**config):
    torch.manual_seed(0)
    latents = {"num_latents": M, "codebook_size": CODES}
    model = MLPDenoiser(sample_shape=(2,), width=16, depth=2, **({"num_classes": K} | latents | config)).eval()
    for name, parameter in model.named_parameters():
        if "embed_latents" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def unet(cls):
    torch.manual_seed(0)
    sizes = {"image_size": 8, "in_channels": 1, "model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1}
    sizes |= {"depth": 1} if cls is UViT else {"attn_resolutions": (4,)}
    model = cls(num_classes=K, **sizes).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.std() < 1e-3:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def x():
    return torch.randn(B, 2, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def conditions():
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(K, (B,), generator=generator)
    return {"class_labels": labels, "latents": torch.randint(CODES, (B, M), generator=generator)}


def test_off_is_the_denoiser_and_one_call(x, conditions):
    model = mlp()
    for guider in (ICG(1.0), TSG(1.0), ICG(3.0, sigma_max=0.1), TSG(3.0, sigma_min=5.0), ICG(3.0, enabled=False)):
        denoise = guided_denoiser(model, guider, **conditions)
        assert torch.equal(denoise(x, 1.0), model(x, 1.0, **conditions)) and denoise.num_calls == 1


def test_scale_zero_is_the_weak_branch_and_the_formula_is_linear(x, conditions):
    model = mlp()
    cond, weak = model(x, 1.0, **conditions), guided_denoiser(model, ICG(0.0), **conditions)(x, 1.0)
    assert not torch.equal(cond, weak)
    torch.testing.assert_close(guided_denoiser(model, ICG(3.0), **conditions)(x, 1.0), weak + 3 * (cond - weak))
    original = guided_denoiser(model, ICG(2.0, use_original_formulation=True), **conditions)(x, 1.0)
    torch.testing.assert_close(original, cond + 2 * (cond - weak))


@pytest.mark.parametrize("fields", [["latents"], ["class_labels"], ["class_labels", "latents"], None])
def test_independent_latents_alone_or_with_the_class(x, conditions, fields):
    """The weak branch sees another z, another class, or both; the rest stays the sample's own."""
    seen = []
    model = mlp()
    handle = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    guided_denoiser(model, ICG(2.0, fields=fields), **conditions)(x, 1.0)
    handle.remove()
    for name, real in conditions.items():
        assert torch.equal(seen[0][name], real)
        assert torch.equal(seen[1][name], real) == (name not in (fields or conditions))
    assert seen[1]["latents"].min() >= 0 and seen[1]["latents"].max() < CODES


def test_latents_from_a_bank_and_from_a_prior(x, conditions):
    model, draws = mlp(), []
    rows = torch.tensor([[0, 1, 2], [3, 3, 3]])
    guider = ICG(2.0, fields=["latents"])
    guider.set_condition_bank({"latents": rows})
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: draws.append(kwargs["latents"]), with_kwargs=True
    )
    guided_denoiser(model, guider, **conditions)(x, 1.0)
    assert all(any(torch.equal(one, row) for row in rows) for one in draws[1])
    prior = MarginalPrior(num_latents=M, codebook_size=CODES)
    generator = torch.Generator().manual_seed(0)
    guider.set_condition_sampler(lambda real, _: {"latents": prior.sample(len(real["latents"]), generator=generator)})
    guided_denoiser(model, guider, **conditions)(x, 1.0)
    handle.remove()
    assert draws[3].shape == (B, M) and not torch.equal(draws[3], draws[1])


def test_continuous_latents_are_gaussian(x):
    model = mlp(latent_kind="continuous", num_classes=0)
    latents = torch.randn(B, M, CODES)
    denoise = guided_denoiser(model, ICG(2.0), latents=latents)
    assert torch.isfinite(denoise(x, 1.0)).all() and denoise.num_calls == 2


def test_one_hot_labels_get_one_hot_draws(x, conditions):
    """EDM's labels are vectors: a Gaussian would not be a class. Integer and one-hot labels draw the same classes."""
    model = mlp()
    hot = F.one_hot(conditions["class_labels"], K).float()
    integers = guided_denoiser(model, ICG(2.0, fields=["class_labels"]), **conditions)(x, 1.0)
    vectors = guided_denoiser(model, ICG(2.0, fields=["class_labels"]), hot, conditions["latents"])(x, 1.0)
    torch.testing.assert_close(vectors, integers)


@pytest.mark.parametrize("guider", [ICG(2.0), TSG(2.0), CombinedGuidance([ICG(2.0), TSG(2.0)]), ICG(2.0, num_draws=3)])
def test_batched_calls_agree(x, conditions, guider):
    model, outputs = mlp(), []
    for batched in (False, True):
        denoise = guided_denoiser(model, guider, **conditions, batched=batched)
        outputs.append(heun(denoise, 80 * x, edm_sigmas(4)))
        assert denoise.num_calls == 7 * (1 + guider._num_branches())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cls", [ADMUNet, SongUNet, UViT])
def test_unets_of_the_zoo(cls):
    model, labels = unet(cls), torch.arange(4)
    x = 80 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = heun(guided_denoiser(model, TSG(1.0), labels), x, edm_sigmas(3))
    for guider in (ICG(2.0), TSG(2.0), CombinedGuidance([ICG(2.0), TSG(2.0)])):
        samples = heun(guided_denoiser(model, guider, labels), x, edm_sigmas(3))
        assert torch.isfinite(samples).all() and not torch.equal(samples, plain)
        assert torch.equal(heun(guided_denoiser(model, guider, labels), x, edm_sigmas(3)), samples)
    assert torch.equal(heun(guided_denoiser(model, TSG(1.0), labels), x, edm_sigmas(3)), plain)


def test_toy_network_with_time_step_guidance(x):
    model = ToyScoreDenoiser(num_latents=M, codebook_size=CODES)
    assert guided_denoiser(model, TSG(2.0), latents=torch.zeros(B, M, dtype=torch.long))(x, 1.0).shape == x.shape


def test_noise_of_tsg_is_per_sample_though_sigma_is_shared(x):
    """The network embeds one sigma for all; the noise must not be shared among the samples with it."""
    model = mlp(num_classes=0, num_latents=0)
    same = x[:1].expand(B, -1)
    assert len(guided_denoiser(model, TSG(3.0))(same, 1.0).unique(dim=0)) == B


def test_classifier_free_guidance_beside_tsg(x, conditions):
    """CFG and TSG in three calls: D + (w - 1)(D - D_null) + (w' - 1)(D - D_tsg); null is what the zoo drops to."""
    model = mlp()
    null = {"class_labels": None, "latents": None}
    denoise = guided_denoiser(model, TSG(2.0, guidance_scale=1.5), **conditions, null=null)
    result = denoise(x, 1.0)
    assert denoise.num_calls == 3
    cond, dropped = model(x, 1.0, **conditions), model(x, 1.0)
    tsg = guided_denoiser(model, TSG(0.0), **conditions)(x, 1.0)
    torch.testing.assert_close(result, cond + (cond - tsg) + 0.5 * (cond - dropped))
    with pytest.raises(UserError, match="null condition"):
        guided_denoiser(model, TSG(2.0, guidance_scale=1.5), **conditions)(x, 1.0)


def test_guiders_of_diffusers_work_too(x, conditions):
    model, null = mlp(), {"class_labels": None, "latents": None}
    cond, dropped = model(x, 1.0, **conditions), model(x, 1.0)
    cfg = guided_denoiser(model, ClassifierFreeGuidance(3.0), **conditions, null=null)(x, 1.0)
    torch.testing.assert_close(cfg, dropped + 3 * (cond - dropped))
    apg = AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_rescale=0.5, eta=0.2)
    theirs = guided_denoiser(model, apg, **conditions, null=null)(x, 1.0)
    ours = ICG(3.0, apg_norm=0.5, apg_eta=0.2)
    ours.set_condition_sampler(lambda real, _: {"class_labels": torch.zeros(B, K), "latents": torch.full((B, M), -1)})
    one_hot = F.one_hot(conditions["class_labels"], K).float()
    weak = guided_denoiser(model, ICG(0.0), **conditions)
    assert weak(x, 1.0).shape == theirs.shape
    projected = guided_denoiser(model, ours, one_hot, conditions["latents"])(x, 1.0)
    # the paper starts from the conditional prediction, diffusers from the unconditional one: they differ by cond - null
    # less its projection, so the two agree on the guided part
    difference = cond - dropped
    shrunk = difference * (0.5 / difference.norm(dim=1, keepdim=True)).clamp(max=1)
    parallel = (shrunk * cond).sum(1, keepdim=True) / cond.square().sum(1, keepdim=True) * cond
    update = shrunk - 0.8 * parallel
    torch.testing.assert_close(theirs, dropped + 3 * update, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(projected, cond + 2 * update, rtol=1e-4, atol=1e-5)


def test_apg_momentum_and_rescale(x, conditions):
    model = mlp()
    heavy = guided_denoiser(model, ICG(2.0, apg_momentum=0.5, resample="run"), **conditions)
    light = guided_denoiser(model, ICG(2.0, resample="run"), **conditions)
    torch.testing.assert_close(heavy(x, 1.0), light(x, 1.0))  # no past at the first step
    cond = model(x, 1.0, **conditions)
    torch.testing.assert_close(heavy(x, 1.0) - cond, 1.5 * (light(x, 1.0) - cond))
    rescaled = guided_denoiser(model, ICG(4.0, guidance_rescale=1.0), **conditions)(x, 1.0)
    torch.testing.assert_close(rescaled.std(1), cond.std(1))


def test_cads_anneals_the_condition(x, conditions):
    """Noise while t >= tau2, none from tau1 down; t is the share of EDM's schedule that is left."""
    model, labels = mlp(num_latents=0), conditions["class_labels"]
    guider = ICG(1.0, cads_scale=0.5, cads_tau1=0.3, cads_tau2=0.8)
    denoise = guided_denoiser(model, guider, labels)
    assert not torch.equal(denoise(x, 40.0), model(x, 40.0, labels)) and denoise.num_calls == 1
    torch.testing.assert_close(denoise(x, 0.05), model(x, 0.05, labels), rtol=0, atol=0)
    one, two = (guided_denoiser(model, guider, labels)(x, 40.0) for _ in range(2))
    assert torch.equal(one, two)


def test_per_run_draws_and_steps(x, conditions):
    model = mlp()
    fixed = guided_denoiser(model, ICG(2.0, resample="run"), **conditions)
    assert torch.equal(fixed(x, 1.0), fixed(x, 1.0))
    fresh = guided_denoiser(model, ICG(2.0), **conditions)
    assert not torch.equal(fresh(x, 1.0), fresh(x, 1.0))
    fresh.restart()
    again = guided_denoiser(model, ICG(2.0), **conditions)
    assert torch.equal(fresh(x, 1.0), again(x, 1.0))
    half = guided_denoiser(model, ICG(2.0, stop=0.5), **conditions, num_evaluations=4)
    for sigma in (4.0, 3.0, 2.0, 1.0):
        half(x, sigma)
    assert half.num_calls == 6
    with pytest.raises(UserError, match="num_evaluations"):
        guided_denoiser(model, ICG(2.0, stop=0.5), **conditions)(x, 1.0)


def test_sample_alone_and_in_a_batch(x, conditions):
    model = mlp()
    guider = CombinedGuidance([ICG(2.0, seed=[3, 4, 5, 6, 7, 8]), TSG(2.0, seed=[3, 4, 5, 6, 7, 8])])
    alone = CombinedGuidance([ICG(2.0, seed=[5]), TSG(2.0, seed=[5])])
    together = heun(guided_denoiser(model, guider, **conditions), 80 * x, edm_sigmas(4))
    one = {name: value[2:3] for name, value in conditions.items()}
    single = heun(guided_denoiser(model, alone, **one), 80 * x[2:3], edm_sigmas(4))
    torch.testing.assert_close(together[2:3], single, rtol=1e-4, atol=1e-4)


def test_exception_leaves_the_denoiser_as_it_was(x):
    model = mlp(num_classes=0, num_latents=0)
    plain = model(x, 1.0)
    handle = model.body.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken step")))
    with pytest.raises(RuntimeError, match="broken step"):
        guided_denoiser(model, TSG(2.0))(x, 1.0)
    handle.remove()
    assert torch.equal(model(x, 1.0), plain) and not model.embed_noise._forward_hooks


def test_one_line_errors(x, conditions):
    model = mlp()
    with pytest.raises(UserError, match="unconditional model"):
        guided_denoiser(mlp(num_classes=0, num_latents=0), ICG(2.0))(x, 1.0)
    with pytest.raises(UserError, match=r"class_labels: must be in \[0, 5\), got 7"):
        guided_denoiser(model, ICG(2.0), torch.full((B,), 7), conditions["latents"])(x, 1.0)
    with pytest.raises(UserError, match="num_classes=1"):
        guided_denoiser(mlp(num_classes=1), ICG(2.0), torch.zeros(B, dtype=torch.long))(x, 1.0)
    with pytest.raises(UserError, match="one per sample"):
        guided_denoiser(model, ICG(2.0, seed=[1, 2]), **conditions)(x, 1.0)
    with pytest.raises(UserError, match="num_draws=6"):
        guided_denoiser(model, ICG(2.0, num_draws=6), **conditions)(x, 1.0)
    with pytest.raises(UserError, match="same time"):
        guided_denoiser(model, TSG(2.0), **conditions)(x, torch.arange(1.0, B + 1))


def test_a_network_of_ones_own_is_guided(x):
    """A plain module that says nothing of itself, and a function: what the page on Python promises."""
    table = torch.randn(K, 2, generator=torch.Generator().manual_seed(3))

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.time_embedder = torch.nn.Linear(1, 2)

        def forward(self, x, sigma, class_labels):
            level = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1, 1).expand(len(x), 1)
            return x.float() + table[class_labels] + self.time_embedder(level.log())

    own, labels = Own(), [0, 1, 2, 3, 4, 0]
    plain = own(x, 1.0, torch.tensor(labels))
    for network in (own, lambda x, sigma, class_labels: own(x, sigma, class_labels)):
        guided = guided_denoiser(network, ICG(2.0, num_classes=K), labels)(x, 1.0)
        assert guided.shape == plain.shape and not torch.equal(guided, plain)
    assert not torch.equal(guided_denoiser(own, TSG(2.0), labels)(x, 1.0), plain)
    with pytest.raises(UserError, match=r"noise inside of the network: give the nn\.Module, not a function"):
        guided_denoiser(lambda x, sigma, class_labels: own(x, sigma, class_labels), TSG(2.0), labels)(x, 1.0)
    with pytest.raises(UserError, match="class_labels: 4 rows for 6 samples; give one for each"):
        guided_denoiser(own, ICG(2.0, num_classes=K), labels[:4])(x, 1.0)
