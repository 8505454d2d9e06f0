"""Saving, loading, presets, clocks, and settings that are refused (invariant U14)."""

import json
import math
import subprocess
import sys

import diffusers
import pytest
import torch

from toolkit.errors import UserError
from toolkit.icg import (
    CombinedGuidance,
    FrequencyDecoupledGuidance,
    IndependentConditionGuidance,
    SchedulerClock,
    SkipLayerGuidance,
    TimeStepGuidance,
)
from toolkit.icg.guiders import presets
from toolkit.icg.guiders.clock import NoiseLevels
from toolkit.zoo.edm.mlp import MLPDenoiser

ICG, TSG = IndependentConditionGuidance, TimeStepGuidance


@pytest.mark.parametrize(
    "guider",
    [
        ICG(1.7, condition="bank", fields=["latents"], seed=[1, 2], std=0.5, num_draws=2, sigma_max=3.0),
        TSG(3.0, 1.25, 0.25, t_min=100, time_embedding_modules=["a.*"], max_layers=4, seed=None),
        CombinedGuidance([ICG(1.4, num_classes=7), TSG(2.0, alpha=0.0)], guidance_rescale=0.3),
        FrequencyDecoupledGuidance([3.0, 1.5, 1.0], guidance_rescale=0.2, start=0.1),
        SkipLayerGuidance(2.5, [1, 2], t_min=100, guidance_scale=4.0),
    ],
)
def test_round_trips(guider, tmp_path):
    guider.save_pretrained(tmp_path)
    text = (tmp_path / "guider_config.json").read_text()
    loaded = type(guider).from_pretrained(tmp_path)
    plain = lambda one: json.dumps({k: v for k, v in one.config.items() if k[0] != "_"}, sort_keys=True)  # noqa: E731
    assert plain(loaded) == plain(guider) == plain(guider.new()) and "tensor(" not in text
    assert guider.new(enabled=False).num_conditions == 1
    assert repr(guider)


def test_combined_parts_survive_saving(tmp_path):
    CombinedGuidance([ICG(1.4, num_classes=7), TSG(2.0, alpha=0.0)]).save_pretrained(tmp_path)
    icg, tsg = CombinedGuidance.from_pretrained(tmp_path).guiders
    assert isinstance(icg, ICG) and icg.guidance_scale == 1.4 and icg.condition.sizes == {"class_labels": 7}
    assert isinstance(tsg, TSG) and tsg.tsg_scale == 2.0 and tsg.alpha == 0.0


def test_new_changes_only_what_is_named():
    guider = ICG(1.7, seed=3).new(guidance_scale=2.0)
    assert guider.guidance_scale == 2.0 and guider.config.seed == 3
    with pytest.raises(UserError, match="did you mean 'guidance_scale'"):
        guider.new(guidance_scal=2.0)


def test_presets_are_the_tables():
    assert ICG.preset("dit-xl-2").guidance_scale == 1.4 and ICG.preset("edm-cifar10").guidance_scale == 1.05
    assert ICG.preset("dit-cads").annealing.scale == 0.15
    tsg = TSG.preset("dit-uncond")
    assert (tsg.tsg_scale, tsg.noise_scale, tsg.alpha, tsg.interval.t_min, tsg.interval.t_max) == (
        5.0,
        1.0,
        0.0,
        200,
        800,
    )
    assert all(ICG.preset(name) for name in presets.ICG) and all(TSG.preset(name) for name in presets.TSG)
    with pytest.raises(UserError, match="choose one of dit-uncond"):
        TSG.preset("sdxl")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ICG(-1.0), "guidance_scale=-1.0"),
        (lambda: ICG(math.nan), "guidance_scale=nan"),
        (lambda: ICG("3"), "guidance_scale=3"),
        (lambda: TSG(math.inf), "tsg_scale=inf"),
        (lambda: TSG(noise_scale=-1.0), "noise_scale=-1.0: must be a finite number of at least 0$"),
        (lambda: TSG(alpha=-1.0), "alpha=-1.0: must be a finite number of at least 0$"),
        (lambda: ICG(control_std=-1.0), "control_std=-1.0: must be a finite number of at least 0$"),
        (lambda: TSG(max_layers=0), "max_layers=0"),
        (lambda: ICG(resample="epoch"), "resample=epoch"),
        (lambda: ICG(num_draws=0), "num_draws=0"),
        (lambda: ICG(t_min=500, t_max=400), "t_min=500"),
        (lambda: ICG(sigma_min=2.0, sigma_max=1.0), "sigma_min=2.0"),
        (lambda: ICG(guidance_rescale=1.5), "guidance_rescale=1.5"),
        (lambda: ICG(cads_scale=0.1, cads_tau1=0.9, cads_tau2=0.5), "cads_tau1=0.9"),
        (lambda: ICG(seed="a"), "seed='a'"),
        (lambda: CombinedGuidance([ICG()]), "at least two"),
        (lambda: CombinedGuidance([ICG(), ICG()]), "another kind"),
        (lambda: CombinedGuidance([ICG(guidance_rescale=0.5), TSG()]), "set it on the combination"),
        (lambda: CombinedGuidance([ICG(cads_scale=0.1), TSG(cads_scale=0.1)]), "cads_scale: set it on one part alone"),
        (lambda: CombinedGuidance([ICG(), {"_class_name": "PAG"}]), "PAG cannot be combined"),
    ],
)
def test_bad_settings_are_one_line(build, message):
    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_clocks_read_the_noise_level():
    ddpm = diffusers.DDPMScheduler()
    clock = SchedulerClock(ddpm)
    kept = ddpm.alphas_cumprod[500].double()
    assert clock.noise_level(500) == pytest.approx(float(((1 - kept) / kept).sqrt()), rel=1e-5)
    assert clock.fraction(500) == 0.5
    flow = SchedulerClock(diffusers.FlowMatchEulerDiscreteScheduler())
    assert flow.noise_level(750.0) == pytest.approx(3.0) and flow.noise_level(1000.0) == math.inf
    edm = SchedulerClock(diffusers.EDMEulerScheduler())
    assert edm.noise_level(0.25 * math.log(7.0)) == pytest.approx(7.0) and 0 < edm.fraction(0.25 * math.log(7.0)) < 1
    zero_snr = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    assert SchedulerClock(zero_snr).noise_level(999) > 1e3
    levels = NoiseLevels()
    assert levels.fraction(80.0) == pytest.approx(1) and levels.fraction(0.0) == 0 and levels.fraction(1e9) == 1
    with pytest.raises(UserError, match="the noise level of ScoreSdeVeScheduler is not known"):
        SchedulerClock(diffusers.ScoreSdeVeScheduler()).noise_level(1.0)


def test_state_is_forgotten_after_the_last_step():
    guider = TSG(2.0)
    for step in range(2):
        guider.set_state(step, 2, torch.tensor(500))
        states = guider.prepare_inputs({"x": torch.zeros(1)})
        for state in states:
            state.noise_pred = torch.zeros(1)
        guider(states)
    assert guider.get_state()["step"] is None and guider.num_conditions == 1
    assert TSG(2.0, guidance_scale=2.0).num_conditions == 2, "the negative prompt will be needed"


def test_importing_the_room_loads_no_torch():
    code = "import sys, toolkit.icg; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError):
        from toolkit import icg

        _ = icg.nothing


def test_a_guider_serves_networks_with_other_numbers_of_classes():
    guider = ICG(2.0)
    guider.bind(MLPDenoiser(num_classes=3))
    guider.bind(MLPDenoiser(num_classes=9))
    assert guider.condition.sizes == {"class_labels": 9}
    fixed = ICG(2.0, num_classes=4)
    fixed.bind(MLPDenoiser(num_classes=9))
    assert fixed.condition.sizes == {"class_labels": 4}
