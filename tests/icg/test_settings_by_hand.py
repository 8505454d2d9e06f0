"""What a method's settings become: its guider's, each in its own place; and the authors' published settings."""

import pytest

from toolkit.icg import IndependentConditionGuidance, TimeStepGuidance
from toolkit.icg.config import SampleICG
from toolkit.icg.guiders import presets
from toolkit.icg.methods import CFG, ICG, METHODS, TSG, AutoGuidance, CFGAndTSG, ICGAndTSG, NoGuidance
from toolkit.icg.peers.settings import FDG, SLG, CFGAndSLG, CFGZeroStar

INTERVAL = {"start": 0.1, "stop": 0.9, "t_min": 100.0, "t_max": 800.0, "sigma_min": 0.2, "sigma_max": 3.0}
OF_ICG = {
    "condition": "class", "fields": ["class_labels"], "resample": "run", "exclude_own": True, "num_draws": 2,
    "control_std": 0.7, "cads_scale": 0.15, "cads_tau1": 0.3, "cads_tau2": 0.6,
}  # fmt: skip
OF_TSG = {"noise_scale": 1.25, "alpha": 0.25, "std_scaling": False, "max_layers": 3, "time_embedding_modules": ["a"]}


def keys(guider, names):
    return {name: guider.config[name] for name in names}


def test_icgs_settings_are_its_guiders():
    made = ICG(**OF_ICG, std="0.5", rescale=0.4, **INTERVAL).make(2.5, [7, 8])
    assert keys(made, OF_ICG) == OF_ICG and keys(made, INTERVAL) == INTERVAL
    assert keys(made, ("guidance_scale", "std", "guidance_rescale", "seed")) == {
        "guidance_scale": 2.5, "std": 0.5, "guidance_rescale": 0.4, "seed": [7, 8],
    }  # fmt: skip
    assert ICG(std="sample").make(2.0, 0).config["std"] == "sample"


def test_tsgs_settings_are_its_guiders():
    made = TSG(**OF_TSG, rescale=0.4, **INTERVAL).make(3.5, 7)
    assert keys(made, OF_TSG) == OF_TSG and keys(made, INTERVAL) == INTERVAL
    assert keys(made, ("tsg_scale", "guidance_scale", "guidance_rescale", "seed")) == {
        "tsg_scale": 3.5, "guidance_scale": 1.0, "guidance_rescale": 0.4, "seed": 7,
    }  # fmt: skip


def test_no_guidance_and_cfg_are_one_guider_at_scale_one_and_at_their_own():
    for method, scale in ((NoGuidance, 1.0), (CFG, 4.0)):
        made = method(rescale=0.4, **INTERVAL).make(4.0, 7)
        assert keys(made, INTERVAL) == INTERVAL
        assert keys(made, ("tsg_scale", "guidance_scale", "guidance_rescale")) == {
            "tsg_scale": 1.0, "guidance_scale": scale, "guidance_rescale": 0.4,
        }  # fmt: skip


def test_each_part_of_a_combination_has_its_own_scale_and_interval_and_the_whole_is_rescaled():
    tsg = TSG(scale=5.0, **OF_TSG, t_min=200.0)
    both = ICGAndTSG(num_draws=2, tsg=tsg, rescale=0.4, t_max=700.0).make(2.5, 7)
    icg, other = both.guiders
    assert (icg.guidance_scale, icg.num_draws, icg.interval.t_max, icg.interval.t_min) == (2.5, 2, 700.0, 0.0)
    assert (other.tsg_scale, other.interval.t_min, other.interval.t_max) == (5.0, 200.0, 1000.0)
    assert (both.guidance_rescale, icg.guidance_rescale, keys(other, OF_TSG)) == (0.4, 0.0, OF_TSG)
    one = CFGAndTSG(tsg=tsg, rescale=0.4, **INTERVAL).make(2.5, 7)
    assert (one.tsg_scale, one.guidance_scale, one.guidance_rescale) == (5.0, 2.5, 0.4)
    assert keys(one, OF_TSG) == OF_TSG and keys(one, INTERVAL) == INTERVAL


def test_calls_of_a_step_count_every_branch():
    found = {kind: kind(num_draws=3).calls_per_step for kind in (ICG, ICGAndTSG)}
    assert found == {ICG: 4, ICGAndTSG: 5} and [kind().calls_per_step for kind in (CFG, TSG, CFGAndSLG)] == [2, 2, 3]


def test_the_peers_settings_are_their_guiders():
    coarse = FDG(coarse_scales=[1.5, 1.25], rescale=0.4, **INTERVAL)
    made = coarse.make(4.0, 0)
    assert (
        made.guidance_scales == (4.0, 1.5, 1.25) and made.guidance_rescale == 0.4 and keys(made, INTERVAL) == INTERVAL
    )
    assert coarse.make(1, 0).guidance_scales == (1.0,)
    slg = SLG(layers=[2, 5], scale=2.2, rescale=0.4, **INTERVAL)
    alone, beside = slg.make(3.0, 0), CFGAndSLG(slg=slg, rescale=0.3, start=0.2).make(3.0, 0)
    assert (alone.skip_scale, alone.guidance_scale, alone.layers, alone.guidance_rescale) == (3.0, 1.0, (2, 5), 0.4)
    assert keys(alone, INTERVAL) == INTERVAL
    assert (beside.skip_scale, beside.guidance_scale, beside.guidance_rescale, beside.interval.start) == (
        2.2,
        3.0,
        0.3,
        0.2,
    )
    zero = CFGZeroStar(zero_init_steps=4, rescale=0.4, start=0.1, stop=0.8)
    for scale, steps in ((3.0, 4), (1, 0)):  # 1 is no guidance, of any method
        config = zero.make(scale, 0).config
        names = ("guidance_scale", "guidance_rescale", "start", "stop", "zero_init_steps")
        assert [config[name] for name in names] == [scale, 0.4, 0.1, 0.8, steps]


def test_what_is_not_said_of_a_method():
    """Scales at which 1 is no guidance; noise on time of twice the embedding's deviation at the largest time."""
    scales = {name: kind().scale for name, kind in METHODS.items()}
    assert scales == {
        "none": 1.0, "cfg": 1.5, "icg": 1.5, "tsg": 5.0, "icg_tsg": 1.5, "cfg_tsg": 1.5, "cfg_zero_star": 3.0,
        "tcfg": 3.0, "fdg": 3.0, "slg": 2.8, "cfg_slg": 3.0, "pag": 4.0, "sag": 1.75, "autoguidance": 2.0,
    }  # fmt: skip
    icg, tsg = ICG(), TSG()
    assert (icg.condition, icg.resample, icg.exclude_own, icg.num_draws, icg.std) == (
        "auto",
        "step",
        False,
        1,
        "tensor",
    )
    assert (icg.cads_scale, icg.cads_tau1, icg.cads_tau2, icg.rescale) == (0.0, 0.5, 0.9, 0.0)
    assert (tsg.noise_scale, tsg.alpha, tsg.std_scaling, tsg.max_layers) == (2.0, 1.0, True, None)
    assert ICGAndTSG().tsg.scale == CFGAndTSG().tsg.scale == 2.5 and AutoGuidance().weak_fraction == 0.25
    assert icg.interval == {
        "start": 0.0,
        "stop": 1.0,
        "t_min": 0.0,
        "t_max": 1000.0,
        "sigma_min": None,
        "sigma_max": None,
    }
    assert (SLG().layers, FDG().coarse_scales, CFGZeroStar().zero_init_steps) == ([7, 8, 9], [1.5], 1)
    guider, other = IndependentConditionGuidance(), TimeStepGuidance()
    assert (guider.guidance_scale, guider.condition.mode, guider.resample, guider.num_draws) == (3.0, "auto", "step", 1)
    assert (other.tsg_scale, other.noise_scale, other.alpha, other.guidance_scale) == (2.5, 2.0, 1.0, 1.0)
    assert SampleICG().sampling.sigma_max == 80.0 and SampleICG().loss.label_drop == 0.1


@pytest.mark.parametrize("kind", [IndependentConditionGuidance, TimeStepGuidance])
def test_a_guiders_arguments_go_to_the_part_that_is_named(kind):
    given = {"apg_eta": 0.3, "apg_norm": 0.5, "apg_momentum": -0.75}
    given |= {"cads_scale": 0.2, "cads_tau1": 0.3, "cads_tau2": 0.6, "cads_mix": 0.9}
    made = kind(**given, **INTERVAL, num_train_timesteps=250, guidance_rescale=0.4)
    projection, annealing = made.projection, made.annealing
    assert [projection.eta, projection.norm, projection.momentum] == [0.3, 0.5, -0.75]
    assert [annealing.scale, annealing.tau1, annealing.tau2, annealing.mix] == [0.2, 0.3, 0.6, 0.9]
    assert {name: getattr(made.interval, name) for name in INTERVAL} == INTERVAL
    assert made.clock.num_train_timesteps == 250 and made.guidance_rescale == 0.4


def test_published_settings_are_those_of_tables_7_10_and_11():
    """ICG: its scale and how conditions are drawn. TSG: its scale, the noise, the exponent, times in thousandths."""
    found = {name: (row["guidance_scale"], row["condition"]) for name, row in presets.ICG.items()}
    assert found == {
        "dit-xl-2": (1.4, "class"), "dit-cads": (1.4, "class"), "stable-diffusion": (3.0, "bank"),
        "pose-to-image": (3.0, "gaussian"), "mdm": (2.5, "gaussian"), "edm-cifar10": (1.05, "class"),
        "edm2-xs": (1.25, "class"),
    }  # fmt: skip
    cads = IndependentConditionGuidance.preset("dit-cads").annealing
    assert (cads.scale, cads.tau1, cads.tau2, cads.mix) == (0.15, 0.5, 0.9, 1.0)
    order = ("tsg_scale", "noise_scale", "alpha", "t_min", "t_max")
    assert {name: tuple(row[key] for key in order) for name, row in presets.TSG.items()} == {
        "dit-uncond": (5.0, 1.0, 0.0, 200, 800), "dit-cond": (2.5, 2.0, 1.0, 0, 1000),
        "sd-uncond": (3.0, 1.25, 0.0, 100, 900), "sd-cond": (4.0, 3.0, 0.25, 400, 1000),
    }  # fmt: skip
