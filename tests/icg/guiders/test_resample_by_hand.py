"""How long a drawn condition is kept, and what brings the contrast of a guided prediction back."""

import torch

from tests.icg.guiders.test_in_denoisers import CODES, ICG, K, M, mlp
from toolkit.icg import guided_denoiser


def given(num):
    generator = torch.Generator().manual_seed(num)
    return {
        "class_labels": torch.randint(K, (num,), generator=generator),
        "latents": torch.randint(CODES, (num, M), generator=generator),
    }


def points(num):
    return torch.randn(num, 2, generator=torch.Generator().manual_seed(1))


def test_a_condition_is_kept_for_a_step_or_for_a_run_and_never_into_the_next():
    model, each, whole = mlp(), ICG(2.0), ICG(2.0, resample="run")
    for guider, same in ((each, False), (whole, True)):
        denoise = guided_denoiser(model, guider, **given(6))
        assert torch.equal(denoise(points(6), 1.0), denoise(points(6), 1.0)) == same
    denoise.restart()  # the next run has another batch
    again = guided_denoiser(model, whole, **given(3))(points(3), 1.0)
    alone = guided_denoiser(model, ICG(2.0, resample="run"), **given(3))(points(3), 1.0)
    assert torch.equal(again, alone)


def test_a_control_image_is_kept_for_a_step_or_for_a_run_also_without_a_seed():
    real = torch.zeros(1, 1, 2, 2)
    for resample, seed in (("step", 0), ("step", None), ("run", 0), ("run", None)):
        guider = ICG(2.0, control_std=1.0, resample=resample, seed=seed)
        first, second = guider.random_control(real), guider.random_control(real)
        assert torch.equal(first, second) == (resample == "run"), (resample, seed)
        guider.restart()
        assert torch.equal(guider.random_control(real), first) == (seed == 0), (resample, seed)


def test_a_generator_of_the_caller_draws_conditions_annealing_and_control_images():
    model, x, conditions = mlp(), points(6), given(6)

    def drawn(seed, **generator):
        guider = ICG(2.0, cads_scale=0.5, cads_tau1=0.0, cads_tau2=1.0, control_std=1.0, seed=seed)
        for number in generator.values():
            guider.set_generator(torch.Generator().manual_seed(number))
        return guided_denoiser(model, guider, **conditions)(x, 1.0), guider.random_control(x)

    for of_one, of_another in zip(drawn(0, generator=5), drawn(1, generator=5), strict=True):
        assert torch.equal(of_one, of_another)
    for of_one, of_another in zip(drawn(0), drawn(1), strict=True):
        assert not torch.equal(of_one, of_another)


def test_rescaling_brings_the_deviation_of_each_sample_towards_the_conditional_ones():
    """Lin et al. 2024, eq. 15 and 16."""
    model, x, conditions = mlp(), points(6), given(6)
    plain = guided_denoiser(model, ICG(4.0), **conditions)(x, 1.0)
    found = guided_denoiser(model, ICG(4.0, guidance_rescale=0.7), **conditions)(x, 1.0)
    with torch.no_grad():
        conditional = model(x, torch.tensor(1.0), **conditions)
    ratio = conditional.std(dim=1, keepdim=True) / plain.std(dim=1, keepdim=True)
    torch.testing.assert_close(found, plain * (0.7 * ratio + 0.3), rtol=1e-4, atol=1e-5)
    assert (ratio - 1).abs().min() > 1e-3
